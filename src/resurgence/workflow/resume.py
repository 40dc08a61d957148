"""Start a study again after Snakemake died, without a second process that writes what a first one still writes.

    resurgence resume [-- OPTIONS OF SNAKEMAKE]

Jobs outlive a Snakemake that is killed: processes on a workstation, and the jobs that it has submitted on a cluster.
Snakemake itself knows nothing of them when it starts again. So: refuse while a Snakemake runs in this folder, cancel
the SLURM jobs of earlier runs, end the processes that hold the lock of an output (stages/runtime.py), wait until all
are gone, unlock, and run `snakemake --rerun-incomplete`. Trainings that are asked to end save their state.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import REMAINDER, ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from resurgence.files import lock, sign

RUNNING, WRITERS = Path(".snakemake/running"), Path(".snakemake/writers")
RUN_ID = re.compile(r"^SLURM run ID: (\S+)", flags=re.MULTILINE)
WRITER = re.compile(r"host (\S+), process (\d+), SLURM job (\S+)")
PATIENCE = 120.0  # seconds until what was cancelled must be gone
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h
SAVING = 30.0  # seconds that a process has to save its state before it is killed

_held: list[IO[str]] = []  # the claim of this process; the kernel releases it when the process ends


def claim(root: Path = Path()) -> None:
    """Hold the folder for this Snakemake, for as long as its process lives.

    Raises:
        BlockingIOError: another Snakemake runs in the folder.
    """
    try:
        handle = lock(root / RUNNING)
    except OSError:  # a file system without locks; Snakemake has its own, which only outlives it
        return
    if handle is None:
        holder = (root / RUNNING).read_text().strip()
        raise BlockingIOError(f"a Snakemake runs in {root.resolve()}: {holder}; stop it first")
    sign(handle)
    _held.append(handle)


def release() -> None:
    """Give the folder back."""
    while _held:
        _held.pop().close()


def run_ids(root: Path = Path()) -> set[str]:
    """The names under which the runs in this folder submitted jobs, from Snakemake's logs."""
    logs = (root / ".snakemake/log").glob("*.log")
    return {name for log in logs for name in RUN_ID.findall(log.read_text(errors="replace"))}


def queued() -> list[tuple[str, str]]:
    """Name and id of each of the user's SLURM jobs that waits, runs or is being ended; none without SLURM.

    Raises:
        OSError: SLURM does not answer, so nobody knows what still runs.
    """
    if shutil.which("squeue") is None:
        return []
    command = ["squeue", "--me", "--noheader", "--format=%j %A"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise OSError(f"squeue fails: {done.stderr.strip()}; jobs of the earlier run may still write, so wait")
    return [(name, number) for name, number in map(str.split, done.stdout.splitlines())]


def cluster_jobs(root: Path = Path()) -> list[str]:
    """SLURM ids of the jobs of the runs in this folder."""
    names = run_ids(root)
    return [number for name, number in queued() if name in names] if names else []


def leftovers(root: Path = Path()) -> list[int]:
    """Processes on this machine that still write an output; one of a SLURM job is SLURM's while it knows the job.

    A node daemon that is killed loses its jobs' processes: SLURM calls the job dead, and they sleep on.
    """
    processes = []
    for file in sorted((root / WRITERS).glob("*")):
        writer = WRITER.match(file.read_text(errors="replace"))
        if writer is None or writer[1] != platform.node():
            continue
        if (handle := lock(file)) is not None:  # it has ended
            handle.close()
        elif writer[3] == "none" or writer[3] not in [number for _, number in queued()]:
            processes.append(int(writer[2]))
    return processes


def send(processes: Iterable[int], number: int) -> None:
    """Send a signal to those that still exist."""
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


def end_all(root: Path = Path()) -> tuple[int, int]:
    """End what earlier runs left behind and wait until it is gone.

    Returns:
        number of SLURM jobs cancelled, number of processes ended.

    Raises:
        TimeoutError: something does not end within two minutes.
    """
    jobs = cluster_jobs(root)
    if jobs:
        subprocess.run(["scancel", *jobs], check=True, timeout=60)
    processes = leftovers(root)
    send(processes, signal.SIGTERM)
    started = time.monotonic()
    while (left := leftovers(root)) or cluster_jobs(root):
        waited = time.monotonic() - started
        if waited > SAVING:
            send(left, signal.SIGKILL)
        if waited > PATIENCE:
            remaining = [*cluster_jobs(root), *left]
            raise TimeoutError(f"still there after {PATIENCE:.0f} s: {remaining}; end them, then resume again")
        time.sleep(0.5)
    return len(jobs), len(processes)


def unlock(options: Sequence[str], root: Path = Path()) -> None:
    """Remove the locks that a Snakemake left that was killed.

    Args:
        options: of its command line.

    Raises:
        OSError: Snakemake cannot.
    """
    if any((root / ".snakemake/locks").glob("*")):
        command = [sys.executable, "-m", "snakemake", "--unlock", *options]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"snakemake --unlock fails; it says\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


def end_with_parent() -> None:
    """Let the kernel send this process SIGTERM when its parent dies, also by a kill; `preexec_fn` of a subprocess.

    SIGTERM ends Snakemake after its running jobs, and lets a training save its state. Only Linux has it.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)


def resume_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `resurgence resume`."""
    parser.add_argument("snakemake", nargs=REMAINDER, metavar="-- OPTIONS", help="options of Snakemake, as in the run")


def resume(args: Namespace) -> None:
    """Clean up after a dead run and start Snakemake again; the process becomes that Snakemake."""
    if not Path("Snakefile").is_file():
        raise FileNotFoundError("no Snakefile here; run it in the folder of the study")
    options = args.snakemake[1:] if args.snakemake[:1] == ["--"] else args.snakemake
    if not any(option.startswith(("--cores", "-c", "--jobs", "-j", "--workflow-profile")) for option in options):
        options = ["--cores", "all", *options]
    claim()
    jobs, processes = end_all()
    print(f"resume: {jobs} SLURM jobs cancelled, {processes} processes ended", flush=True)
    unlock(options)
    release()
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", "--rerun-incomplete", *options])
