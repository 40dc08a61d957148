"""Start a study again after Snakemake died, without a second process that writes what a first one still writes.

    resurgence resume [-- OPTIONS OF SNAKEMAKE]

Jobs outlive a Snakemake that is killed: processes on a workstation, and the jobs that it has submitted on a cluster.
Snakemake itself knows nothing of them when it starts again. So: refuse while a Snakemake runs in this folder, cancel
the SLURM jobs of earlier runs, end the processes that were left behind, wait until all are gone, unlock, and run
`snakemake --rerun-incomplete`. Trainings that are asked to end save their state and go on from it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import REMAINDER, ArgumentParser, Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import IO

RUNNING = Path(".snakemake/running")
RUN_ID = re.compile(r"^SLURM run ID: (\S+)", flags=re.MULTILINE)
JOB = re.compile(r"-m resurgence\.(stages\.|world\.)|-m snakemake .*--mode|/snakemake .*--mode|--target-jobs")
SLURM_JOB = re.compile(rb"\0SLURM_JOB_ID=(\d+)")
PATIENCE = 120.0  # seconds until what was cancelled must be gone
SAVING = 30.0  # seconds that a process has to save its state before it is killed

_held: list[IO[str]] = []  # the claim of this process; the kernel releases it when the process ends


def claim(root: Path = Path()) -> None:
    """Hold the folder for this Snakemake, for as long as its process lives.

    Raises:
        BlockingIOError: another Snakemake runs in the folder.
    """
    file = root / RUNNING
    file.parent.mkdir(exist_ok=True)
    handle = open(file, "a+")  # noqa: SIM115 the open file is the claim
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise BlockingIOError(
            f"a Snakemake runs in {root.resolve()}: {file.read_text().strip()}; stop it first"
        ) from None
    except OSError:  # a file system without locks; Snakemake has its own, which only outlives it
        pass
    handle.truncate(0)
    handle.write(f"host {platform.node()}, process {os.getpid()}\n")
    handle.flush()
    _held.append(handle)


def release() -> None:
    """Give the folder back."""
    while _held:
        _held.pop().close()


def run_ids(root: Path = Path()) -> set[str]:
    """The names under which the runs in this folder submitted jobs, from Snakemake's logs."""
    logs = (root / ".snakemake/log").glob("*.log")
    return {name for log in logs for name in RUN_ID.findall(log.read_text(errors="replace"))}


def cluster_jobs(names: set[str]) -> list[str]:
    """SLURM ids of the jobs with these names that wait, run or are being ended; none without SLURM.

    Raises:
        OSError: SLURM does not answer, so nobody knows what still runs.
    """
    if not names or shutil.which("squeue") is None:
        return []
    command = ["squeue", "--me", "--noheader", "--format=%j %A"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise OSError(f"squeue fails: {done.stderr.strip()}; jobs of the earlier run may still write, so wait")
    return [number for name, number in map(str.split, done.stdout.splitlines()) if name in names]


def on_cluster(job: str) -> bool:
    """Whether SLURM still knows a job as waiting, running or being ended; True where it does not answer."""
    if shutil.which("squeue") is None:
        return True
    command = ["squeue", "--me", "--noheader", "--format=%A"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return bool(done.returncode) or job in done.stdout.split()


def leftovers(root: Path = Path()) -> list[int]:
    """Processes on this machine that run a job of this folder; those of a SLURM job are SLURM's while it knows the job.

    A node daemon that is killed loses its jobs' processes: SLURM calls the job dead, and they sleep on.
    """
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if place.stat().st_uid != os.getuid() or (place / "cwd").resolve() != root.resolve():
                continue
            command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            job = SLURM_JOB.search(b"\0" + (place / "environ").read_bytes())
        except OSError:  # it has ended
            continue
        if not JOB.search(command) or int(place.name) == os.getpid():
            continue
        if job is None or not on_cluster(job[1].decode()):
            found.append(int(place.name))
    return found


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
    names = run_ids(root)
    jobs = cluster_jobs(names)
    if jobs:
        subprocess.run(["scancel", *jobs], check=True, timeout=60)
    processes = leftovers(root)
    send(processes, signal.SIGTERM)
    started = time.monotonic()
    while (left := leftovers(root)) or cluster_jobs(names):
        waited = time.monotonic() - started
        if waited > SAVING:
            send(left, signal.SIGKILL)
        if waited > PATIENCE:
            remaining = [*cluster_jobs(names), *left]
            raise TimeoutError(f"still there after {PATIENCE:.0f} s: {remaining}; end them, then resume again")
        time.sleep(0.5)
    return len(jobs), len(processes)


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
    snakemake = [sys.executable, "-m", "snakemake"]
    if any(Path(".snakemake/locks").glob("*")):
        done = subprocess.run([*snakemake, "--unlock", *options], capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"snakemake --unlock fails:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    release()
    os.execv(sys.executable, [*snakemake, "--rerun-incomplete", *options])
