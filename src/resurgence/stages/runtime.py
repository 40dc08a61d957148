"""Preparation of a job: lock its output and a GPU, and verify its inputs.

The locks are file locks, which the kernel releases when the process ends, even if it is killed. Nothing here affects a
result. It runs before CUDA is initialised, so the process sees no other device.

    RESURGENCE_DEVICE      cuda or cpu: where jobs that can use a GPU run; set by the Snakefile
    RESURGENCE_DETERMINISTIC  false: kernels of a GPU that may give other bytes the next time; set by the Snakefile
    RESURGENCE_SPEED       how the UNet runs on a GPU (base.speed); set by the Snakefile
    RESURGENCE_LOCKS       folder of the locks of GPUs on this machine (default: below the folder of temporary files)
    RESURGENCE_WAIT        seconds that a second writer of an output waits for the first (default: 60)
    HF_HUB_OFFLINE         1 in jobs unless it is set: what they load from the hub was looked up before the first job
    CUDA_VISIBLE_DEVICES   if set, one of these devices is used; a single one of a SLURM job stays as SLURM assigned it
"""

from __future__ import annotations

import atexit
import errno
import gc
import importlib.machinery
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from resurgence.files import lock, sign
from resurgence.provenance.manifest import MANIFEST, damages
from resurgence.provenance.outputs import check_writable
from resurgence.workflow.resume import WRITERS

log = logging.getLogger(__name__)
POLL = 0.5  # seconds between two attempts to take a lock
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # errors of a file system without locks
_held: list[IO[str]] = []  # locks of this process: an open file each
WHEN_USED = ("scipy.stats",)  # half a CPU-second; diffusers imports it for samplers of which no job uses one


class Postponing:
    """Finder of modules whose code runs when they are first used, and not when `import NAME` is met.

    `from NAME import x` uses the module, so it is imported at once.
    """

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module's own specification, with its loader postponed; None for other modules."""
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in WHEN_USED else None
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


@contextmanager
def importing() -> Iterator[None]:
    """Import without garbage collection, and exempt the imported objects from it.

    torch, transformers and diffusers create a million objects that live as long as the process. Searching them for
    garbage during the import and at the end of the process took a third of the CPU time of a start of the miniature.
    Modules of `WHEN_USED` are imported when they are used.
    """
    modules = len(sys.modules)
    gc.disable()
    sys.meta_path.insert(0, Postponing)
    try:
        yield
    finally:
        sys.meta_path.remove(Postponing)
        if len(sys.modules) > modules:  # otherwise new objects are those of a model, which must be collected
            gc.freeze()
            atexit.register(discard_last_messages)
        gc.enable()


def begin_imports() -> None:
    """Prepare the process of a job: no network for the hub's libraries, which read that when they are imported.

    Garbage collection is disabled until `end_imports`; see `importing`.
    """
    if sys.argv[0] == "-m":  # while Python looks for the module of `python -m resurgence.stages.NAME`
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        gc.disable()


def end_imports() -> None:
    """Enable garbage collection, but not of the imported objects, nor at the end of the process."""
    gc.freeze()
    gc.enable()
    atexit.register(discard_last_messages)
    atexit.register(gc.freeze)


def discard_last_messages() -> None:
    """Discard what libraries print after Python's last line: nanobind lists the objects that were left, as leaks."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def take_lock(file: Path, out: Path, seconds: float, remedy: str) -> IO[str] | None:
    """Take the lock of an output, after so many seconds at most; None, with a warning, on a file system without locks.

    Raises:
        TimeoutError: another process holds it. OSError: the disk of the lock is full, read-only or not permitted.
    """
    until = time.monotonic() + seconds
    try:
        while (handle := lock(file)) is None and time.monotonic() < until:
            time.sleep(POLL)
        if handle is not None:
            sign(handle)
            return handle
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise OSError(f"{file} cannot be written ({error.strerror}); free some space, or use a folder that can be "
                          "written") from error  # fmt: skip
        log.warning("no file locks on %s (%s): a second job could write %s at the same time", file.parent, error, out)
        return None
    raise TimeoutError(f"{out} is still being written by another process ({file.read_text().strip()}); {remedy}")


def job_lock(out: Path) -> Path:
    """The lock of a job with this output."""
    return WRITERS / out.as_posix().replace("/", "%")


def become_only_writer(out: Path) -> None:
    """Hold the lock of an output until the process ends: a job of a killed Snakemake may still be writing it.

    Raises:
        TimeoutError, OSError: see `take_lock`; another process is still writing after RESURGENCE_WAIT seconds.
    """
    seconds = float(os.environ.get("RESURGENCE_WAIT", "60"))
    if (handle := take_lock(job_lock(out), out, seconds, "run: resurgence resume")) is not None:
        _held.append(handle)


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Hold the lock of a folder that a command writes: a file beside it, which is removed at the end.

    In the folder of a study the lock of a job with the same output is held too.

    Raises:
        TimeoutError, OSError: see `take_lock`; nothing is waited for.
    """
    target, remedy = Path(os.path.realpath(out)), "wait until it has ended, or name another output"
    check_writable([target.parent])
    beside, of_job = target.with_name(f".{target.name}.lock"), job_lock(Path(os.path.relpath(out)) / MANIFEST)
    with ExitStack() as stack:
        if (handle := take_lock(beside, out, 0, remedy)) is not None:
            stack.enter_context(handle)
        stack.callback(beside.unlink, missing_ok=True)  # called before the lock is released
        if WRITERS.is_dir() and (handle := take_lock(of_job, out, 0, remedy)) is not None:
            stack.enter_context(handle)
        yield


def visible_devices() -> list[str]:
    """The GPUs available to this process: those of CUDA_VISIBLE_DEVICES, else those that nvidia-smi lists.

    Raises:
        FileNotFoundError: neither the variable nor the program.
    """
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device for device in chosen.split(",") if device]
    if shutil.which("nvidia-smi") is None:
        raise FileNotFoundError("nvidia-smi is not on the PATH, so the GPUs of this machine are not known; set "
                                "CUDA_VISIBLE_DEVICES to those that jobs may use, such as 0,1")  # fmt: skip
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # number devices as nvidia-smi does
    return output.split()


def take_gpu() -> None:
    """Hold the lock of one GPU and hide the others; wait until one is free.

    The single device of a SLURM job is not locked. Of several, each job of a Snakemake inside of the
    allocation takes one.
    """
    if os.environ.get("RESURGENCE_DEVICE") != "cuda":
        return
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("CUDA is initialised before the job has taken a GPU; import nothing that looks for devices")
    default = Path(tempfile.gettempdir()) / f"resurgence-{os.getuid()}"
    folder, allocation = Path(os.environ.get("RESURGENCE_LOCKS", default)), os.environ.get("SLURM_JOB_ID")
    if allocation and "CUDA_VISIBLE_DEVICES" in os.environ:  # SLURM numbers the devices of each allocation from 0
        folder /= f"slurm-{allocation}"
    devices = visible_devices()
    if allocation and len(devices) == 1:
        return
    waiting = False
    while devices:
        for device in devices:
            if (handle := lock(folder / f"gpu-{re.sub('[^A-Za-z0-9-]', '_', device)}")) is not None:
                _held.append(handle)
                os.environ["CUDA_VISIBLE_DEVICES"] = device
                return
        if not waiting:
            log.warning("waiting for a GPU: %s in use, locks in %s", " ".join(devices), folder)
            waiting = True
        time.sleep(POLL)


def check_inputs(paths: Iterable[Path]) -> None:
    """Raise ValueError with one line for each damaged or missing file of the artefacts among the inputs."""
    if problems := damages(path for path in paths if path.name == MANIFEST):
        raise ValueError("\n".join(problems))
