"""What every job does around its work: read block and inputs, log, write the artefact.

    python -m resurgence.stages.NAME --block JSON --out FOLDER/manifest.json --inputs FILE... [--device auto]

A block holds all settings (blocks.py). Among the inputs, `*.py` are the source modules, `manifest.json` are artefacts
found by their kind, and everything else is a file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from resurgence.config.task import Task, make_task
from resurgence.provenance.manifest import MANIFEST, described, read_manifest, write_artefact, write_made

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

log = logging.getLogger(__name__)
SCRATCH = Path("scratch")


@dataclass(frozen=True)
class Job:
    """One job's settings and files."""

    block: dict[str, Any]
    out: Path  # the declared output
    inputs: tuple[Path, ...]
    device: str

    @property
    def state(self) -> Path:
        """A scratch folder for the state of an unfinished training: it belongs to this result and these settings.

        Snakemake removes declared outputs before a retry, so it lies elsewhere.
        """
        text = json.dumps([self.out.as_posix(), self.block], sort_keys=True)
        return SCRATCH / hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def sources(self) -> list[Path]:
        """The source modules among the inputs."""
        return [path for path in self.inputs if path.suffix == ".py"]

    @property
    def artefacts(self) -> dict[Path, str]:
        """Manifests among the inputs, and the kind of each."""
        return {path: read_manifest(path)["kind"] for path in self.inputs if path.name == MANIFEST}

    def find(self, kind: str) -> Path | None:
        """Folder of the input of this kind; None without one.

        Raises:
            ValueError: when there are several.
        """
        found = [path.parent for path, seen in self.artefacts.items() if seen == kind]
        if len(found) > 1:
            raise ValueError(f"inputs of kind {kind!r}: {[str(p) for p in found]}; give one")
        return found[0] if found else None

    def folder(self, kind: str) -> Path:
        """Folder of the input of this kind; FileNotFoundError without one."""
        found = self.find(kind)
        if found is None:
            raise FileNotFoundError(
                f"no input of kind {kind!r} among {sorted(set(self.artefacts.values()))}; give its manifest"
            )
        return found

    def digested(self) -> dict[str, Path]:
        """Inputs for the manifest: path -> artefact or file."""
        used = [path for path in self.inputs if path.suffix != ".py"]
        return {path.as_posix(): path.parent if path.name == MANIFEST else path for path in used}

    def made(self, kind: str, files: Iterable[Path]) -> None:
        """Write the declared output: the manifest of the files that the job put into shared folders."""
        write_made(self.out, described(kind, self.block, self.digested(), self.sources, {}), files)

    def task(self) -> Task:
        """The task of the block; fields that the block leaves out are filled with what no job may read."""
        values = {"retain": ["unused"], "templates": ["{}"], "seeds": {"erase": 1, "retain": 1, "synonym": 1}}
        values |= self.block["task"]
        values.setdefault("mapping", dict.fromkeys(values["erase"], "unused"))
        return make_task(values, "block.task")

    def pipe(self, precision: str = "fp32") -> StableDiffusionPipeline:
        """The base of the block, on the job's device."""
        import torch

        from resurgence.diffusion.pipeline import load_base, resolve_device

        torch.set_flush_denormal(True)
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        base = self.block["base"]
        return load_base(base["path"], resolve_device(self.device), dtype, base["revision"])


def leave(*_: object) -> NoReturn:
    """End the job by unwinding, so that temporary folders are removed; a second SIGTERM does not cut that short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def start(arguments: Sequence[str] | None = None) -> Job:
    """Read the command line and begin the log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", type=json.loads, required=True, help="settings as JSON")
    parser.add_argument("--out", type=Path, required=True, help="the file that is written last")
    parser.add_argument("--inputs", type=Path, nargs="*", default=[], help="manifests, files and source modules")
    device = os.environ.get("RESURGENCE_DEVICE", "auto")
    parser.add_argument("--device", default=device, help="auto, cpu or cuda (default: RESURGENCE_DEVICE, else auto)")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    slurm = f", SLURM job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    log.info("host %s%s: %s of %d inputs", platform.node(), slurm, args.out, len(args.inputs))
    signal.signal(signal.SIGTERM, leave)
    return Job(args.block, args.out, tuple(args.inputs), args.device)


def main(kind: str, make: Callable[[Job, Path], dict[str, Any] | None]) -> None:
    """Run a job that writes an artefact.

    Args:
        kind: of the artefact; {names} in it are filled from the block.
        make: fills the folder that it is given; what it returns goes to run.json.
    """
    job = start()
    seeds = {"seed": job.block["seed"]} if "seed" in job.block else {}
    run: dict[str, Any] = {"argv": sys.argv}
    kind = kind.format_map(job.block)
    with write_artefact(job.out.parent, kind, job.block, job.digested(), job.sources, seeds, run) as folder:
        try:
            run |= make(job, folder) or {}
        except SystemExit:  # a training has saved its state and leaves; what follows is the clean-up
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise
    peak = json.loads((job.out.parent / "run.json").read_text())
    log.info("done in %.1f s, peak memory %.0f MiB", peak["seconds"], peak["peak_memory_mib"])
