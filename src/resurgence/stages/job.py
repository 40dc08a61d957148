"""The frame of all jobs: read settings and inputs, log, write the artefact.

    python -m resurgence.stages.NAME --settings JSON --out FOLDER/manifest.json --inputs NAME=FILE... [--gpu]

The settings are defined in workflow/job_settings.py, the names of the inputs in workflow/graph.py; a name may have
several files.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from resurgence import errors
from resurgence.config.task import TaskPart
from resurgence.provenance.inputs import check_parents
from resurgence.provenance.manifest import EARLIER_SECONDS, MANIFEST, RUN, described, write_artefact, write_made
from resurgence.provenance.outputs import check_apart
from resurgence.stages.runtime import become_only_writer, check_inputs, end_imports, take_gpu

log = logging.getLogger(__name__)
SCRATCH = Path("scratch")


@dataclass(frozen=True)
class Job:
    """Settings and files of a job."""

    settings: Mapping[str, Any]
    out: Path  # the declared output
    inputs: Mapping[str, tuple[Path, ...]]  # by name
    device: str = "auto"
    code: str = ""  # version of the code that bears on the result
    started: float = field(default_factory=time.monotonic)

    @property
    def state(self) -> Path:
        """A scratch folder for the state of an unfinished job with this output and these settings.

        Outside of the output, which Snakemake removes before a retry; removed when the artefact is complete.
        """
        text = json.dumps([self.out.as_posix(), self.settings], sort_keys=True)
        return SCRATCH / hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def files(self) -> list[Path]:
        """All inputs."""
        return [path for paths in self.inputs.values() for path in paths]

    def folder(self, name: str) -> Path:
        """The folder of the only artefact of a name.

        Raises:
            LookupError: there is none, or there are several.
        """
        folders = self.folders(name)
        if len(folders) != 1:
            raise LookupError(f"{self.out}: {len(folders)} inputs are named {name!r}, expected one: workflow/graph.py")
        return folders[0]

    def optional(self, name: str) -> Path | None:
        """The folder of the artefact of a name; None where the job has no such input."""
        return self.folder(name) if self.inputs.get(name) else None

    def folders(self, name: str) -> list[Path]:
        """The folders of the artefacts of a name, in their order."""
        return [path.parent for path in self.inputs.get(name, ())]

    def manifest_inputs(self) -> dict[str, Path]:
        """Inputs for the manifest: path -> artefact or file."""
        return {path.as_posix(): path.parent if path.name == MANIFEST else path for path in self.files}

    def write_made(self, kind: str, files: Iterable[Path]) -> None:
        """Write the declared output: the manifest of the files that the job put into shared folders."""
        manifest = described(kind, self.settings, self.manifest_inputs(), {})
        write_made(self.out, manifest, files, time.monotonic() - self.started, {"code": self.code, "argv": sys.argv})

    @functools.cached_property
    def task(self) -> TaskPart:
        """The fields of the task that the job may read."""
        return TaskPart(self.settings["task"], f"the settings of {self.out}")


def leave(*_: object) -> NoReturn:
    """End the job by an exception, so that temporary folders are removed; a second SIGTERM does not interrupt that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def raise_end(error: RuntimeError) -> None:
    """Raise the SystemExit that an error was made of: Python 3.11 does so where `leave` interrupts `__set_name__`."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, SystemExit):
        cause = cause.__cause__
    if cause is not None:
        raise cause


def parse_inputs(texts: Iterable[str]) -> dict[str, tuple[Path, ...]]:
    """Parse NAME=FILE arguments; a name may occur several times.

    Raises:
        ValueError: an argument without name.
    """
    inputs: dict[str, tuple[Path, ...]] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not (name and path):
            raise ValueError(f"--inputs {text!r}: write NAME=FILE")
        inputs[name] = (*inputs.get(name, ()), Path(path))
    return inputs


def start(arguments: Sequence[str] | None = None) -> Job:
    """Read the command line, start the log, lock the output, verify the inputs, and lock a GPU.

    An exception that ends the job is told as `errors.report` does.

    Raises:
        TimeoutError, OSError: see `become_only_writer`. ValueError: see `check_inputs` and `check_parents`.
    """
    parser = errors.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=json.loads, required=True, help="settings as JSON")
    parser.add_argument("--out", type=Path, required=True, help="the file that is written last")
    parser.add_argument("--inputs", nargs="*", default=[], metavar="NAME=FILE", help="manifests and files")
    parser.add_argument("--code", default="", help="version of the code that bears on the result")
    parser.add_argument("--gpu", action="store_true", help="the job uses a GPU if the study has one")
    parser.add_argument("--unverified", action="store_true", help="do not hash the files of the inputs first")
    device = os.environ.get("RESURGENCE_DEVICE", "auto")
    parser.add_argument("--device", default=device, help="auto, cpu or cuda (default: RESURGENCE_DEVICE, else auto)")
    args = parser.parse_args(arguments)
    sys.excepthook = functools.partial(errors.report, str(args.out), False)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    slurm = f", SLURM job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    log.info("host %s%s: %s of %d inputs", platform.node(), slurm, args.out, len(args.inputs))
    end_imports()
    job = Job(args.settings, args.out, parse_inputs(args.inputs), args.device, args.code)
    signal.signal(signal.SIGTERM, leave)
    become_only_writer(job.out)
    if not args.unverified:
        check_inputs(job.files)
    check_parents(job.folders("changes"))
    if args.gpu:
        take_gpu()
    return job


def arithmetic() -> dict[str, Any]:
    """The entries of run.json that say in which mode, and how fast, a GPU computed; none for a job without."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    from resurgence.diffusion.device import is_deterministic
    from resurgence.diffusion.speed import used

    return {"deterministic": is_deterministic(), "speed": used()}


def split_passes() -> dict[str, int | bool]:
    """The entries of run.json that say how a training split its passes; none for a job without."""
    memory = sys.modules.get("resurgence.training.memory")
    return memory.USED if memory else {}


def earlier_runs() -> dict[str, float]:
    """The entry of run.json with the seconds that a resumed training took before it was saved; none for another job."""
    checkpoint = sys.modules.get("resurgence.training.checkpoint")
    seconds = sum(checkpoint.EARLIER.values()) if checkpoint else 0.0
    return {EARLIER_SECONDS: round(seconds, 3)} if seconds else {}


def main(kind: str, make: Callable[[Job, Path], dict[str, Any] | None]) -> None:
    """Run a job that writes an artefact.

    Args:
        kind: of the artefact; {names} in it are filled from the settings.
        make: writes the files of the artefact into a folder, and returns entries of run.json.
    """
    job = start()
    seeds = {"seed": job.settings["seed"]} if "seed" in job.settings else {}
    run: dict[str, Any] = {"argv": sys.argv, "code": job.code}
    kind = kind.format_map(job.settings)
    check_apart("--out", job.out.parent, job.manifest_inputs())
    with write_artefact(job.out.parent, kind, job.settings, job.manifest_inputs(), seeds, run) as folder:
        try:
            run |= make(job, folder) or {}
            run |= arithmetic() | split_passes() | earlier_runs()
        except RuntimeError as error:  # of an import that was interrupted
            raise_end(error)
            raise
        except SystemExit:  # a training has saved its state and ends; the clean-up must not be interrupted
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise
    shutil.rmtree(job.state, ignore_errors=True)
    run = json.loads((job.out.parent / RUN).read_text(encoding="utf-8"))
    log.info("done in %.1f s, peak memory %.0f MiB", run["seconds"], run["peak_memory_mib"])
