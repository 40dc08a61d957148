"""What every job does around its work: read settings and inputs, log, write the artefact.

    python -m resurgence.stages.NAME --settings JSON --out FOLDER/manifest.json --inputs NAME=FILE... [--gpu]

The settings are those of workflow/job_settings.py. Each input has the name under which workflow/graph.py gives it; a
name may have several files.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from resurgence.config.task import TaskPart
from resurgence.provenance.manifest import MANIFEST, described, write_artefact, write_made
from resurgence.stages.runtime import become_only_writer, check_inputs, end_imports, take_gpu

log = logging.getLogger(__name__)
SCRATCH = Path("scratch")


@dataclass(frozen=True)
class Job:
    """One job's settings and files."""

    settings: Mapping[str, Any]
    out: Path  # the declared output
    inputs: Mapping[str, tuple[Path, ...]]  # by name
    device: str = "auto"
    code: str = ""  # version of the code that bears on the result
    started: float = field(default_factory=time.monotonic)

    @property
    def state(self) -> Path:
        """A scratch folder for the state of an unfinished training, belonging to this result and these settings.

        Snakemake removes declared outputs before a retry, so it lies elsewhere.
        """
        text = json.dumps([self.out.as_posix(), self.settings], sort_keys=True)
        return SCRATCH / hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def files(self) -> list[Path]:
        """All inputs."""
        return [path for paths in self.inputs.values() for path in paths]

    def file(self, name: str) -> Path:
        """The one input of a name.

        Raises:
            LookupError: there is none, or there are several.
        """
        paths = self.inputs.get(name, ())
        if len(paths) != 1:
            raise LookupError(
                f"{self.out}: {len(paths)} inputs are named {name!r}, expected one; see workflow/graph.py"
            )
        return paths[0]

    def folder(self, name: str) -> Path:
        """The folder of the one artefact of a name; LookupError without it."""
        return self.file(name).parent

    def optional(self, name: str) -> Path | None:
        """The folder of the artefact of a name; None where the job has no such input."""
        return self.folder(name) if self.inputs.get(name) else None

    def folders(self, name: str) -> list[Path]:
        """The folders of the artefacts of a name, in their order."""
        return [path.parent for path in self.inputs.get(name, ())]

    def digested(self) -> dict[str, Path]:
        """Inputs for the manifest: path -> artefact or file."""
        return {path.as_posix(): path.parent if path.name == MANIFEST else path for path in self.files}

    def write_made(self, kind: str, files: Iterable[Path]) -> None:
        """Write the declared output: the manifest of the files that the job put into shared folders."""
        manifest = described(kind, self.settings, self.digested(), {})
        write_made(self.out, manifest, files, time.monotonic() - self.started, {"code": self.code, "argv": sys.argv})

    @functools.cached_property
    def task(self) -> TaskPart:
        """The fields of the task that the job may read."""
        return TaskPart(self.settings["task"], f"the settings of {self.out}")


def leave(*_: object) -> NoReturn:
    """End the job by unwinding, so that temporary folders are removed; a second SIGTERM does not interrupt that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def named(texts: Iterable[str]) -> dict[str, tuple[Path, ...]]:
    """Read NAME=FILE arguments; a name may occur several times.

    Raises:
        ValueError: an argument without name.
    """
    found: dict[str, tuple[Path, ...]] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--inputs {text!r}: write NAME=FILE")
        found[name] = (*found.get(name, ()), Path(path))
    return found


def start(arguments: Sequence[str] | None = None) -> Job:
    """Read the command line, begin the log, and take the lock of the output and a GPU; the inputs must be whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=json.loads, required=True, help="settings as JSON")
    parser.add_argument("--out", type=Path, required=True, help="the file that is written last")
    parser.add_argument("--inputs", nargs="*", default=[], metavar="NAME=FILE", help="manifests and files")
    parser.add_argument("--code", default="", help="version of the code that bears on the result")
    parser.add_argument("--gpu", action="store_true", help="the job uses a GPU where the study has one")
    parser.add_argument("--unverified", action="store_true", help="do not hash the files of the inputs first")
    device = os.environ.get("RESURGENCE_DEVICE", "auto")
    parser.add_argument("--device", default=device, help="auto, cpu or cuda (default: RESURGENCE_DEVICE, else auto)")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    slurm = f", SLURM job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    log.info("host %s%s: %s of %d inputs", platform.node(), slurm, args.out, len(args.inputs))
    end_imports()
    job = Job(args.settings, args.out, named(args.inputs), args.device, args.code)
    signal.signal(signal.SIGTERM, leave)
    become_only_writer(job.out)
    if not args.unverified:
        check_inputs(job.files)
    if args.gpu:
        take_gpu()
    return job


def main(kind: str, make: Callable[[Job, Path], dict[str, Any] | None]) -> None:
    """Run a job that writes an artefact.

    Args:
        kind: of the artefact; {names} in it are filled from the settings.
        make: fills the folder that it is given; what it returns goes to run.json.
    """
    job = start()
    seeds = {"seed": job.settings["seed"]} if "seed" in job.settings else {}
    run: dict[str, Any] = {"argv": sys.argv, "code": job.code}
    kind = kind.format_map(job.settings)
    with write_artefact(job.out.parent, kind, job.settings, job.digested(), seeds, run) as folder:
        try:
            run |= make(job, folder) or {}
        except SystemExit:  # a training has saved its state and leaves; what follows is the clean-up
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise
    written = json.loads((job.out.parent / "run.json").read_text(encoding="utf-8"))
    log.info("done in %.1f s, peak memory %.0f MiB", written["seconds"], written["peak_memory_mib"])
