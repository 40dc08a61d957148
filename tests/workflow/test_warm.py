"""Warm starts: a fork of the server behaves as a Python of its own, and whatever dies, no job is left alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tree import ROOT, Tree

from resurgence import recovery
from resurgence.manifest import sha256

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="forks are watched by pidfd_open, which only Linux has"),
]
# a job that tells what it is, and ends in one of the ways in which jobs end
JOB = """\
import os, signal, sys, time
import torch
from fake.told import WORD
warm = "resurgence.warm" in open("/proc/self/cmdline").read()
print(WORD, "warm" if warm else "cold", os.getpid(), sys.argv[1:], __name__, os.environ.get("MARK"), os.getcwd(),
      torch.get_num_threads(), sorted(map(int, os.listdir("/proc/self/fd"))), flush=True)
how = sys.argv[-1]
if how == "kill": os.kill(os.getpid(), signal.SIGKILL)
if how == "raise": raise RuntimeError("a reason")
if how == "three": sys.exit(3)
if how == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    time.sleep(60)
"""
STARTER = "import sys; from resurgence import warm; warm.start({path!r}, 1); sys.stdin.read()"


class Place:
    """A folder with a package that stands for the stages, and a process that stands for Snakemake."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "fake").mkdir()
        (root / "fake/job.py").write_text(JOB)
        (root / "fake/told.py").write_text("WORD = 'first'\n")
        self.path = f"{root}:{ROOT / 'src'}"
        starter = [sys.executable, "-c", STARTER.format(path=self.path)]
        environment = {**os.environ, "PYTHONPATH": self.path}
        self.snakemake = subprocess.Popen(starter, cwd=root, env=environment, stdin=subprocess.PIPE)
        end = time.monotonic() + 30
        while not (root / ".snakemake/warm").exists():
            assert time.monotonic() < end
            time.sleep(0.02)

    def job(self, how: str, **more: str) -> subprocess.Popen:
        """A job's shell."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RESURGENCE_"))}
        kept |= {"PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "PYTHONPATH": self.path}
        kept |= {"RESURGENCE_WARM_CLIENT": str(ROOT / "workflow/scripts/warm.py"), "OMP_NUM_THREADS": "1", **more}
        text = f"set -euo pipefail; source '{ROOT}/workflow/scripts/job.sh'; python -m fake.job --out {how}/x {how}"
        return subprocess.Popen(
            ["bash", "-c", text], cwd=self.root, env=kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def server(self) -> int:
        """The process of the server: the one that is no fork of another."""
        found = {pid: parent_of(pid) for pid in recovery.leftovers(self.root) if "resurgence.warm" in command_of(pid)}
        (server,) = (pid for pid, parent in found.items() if parent not in found)
        return server


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def gone(pid: int, seconds: float = 20) -> bool:
    """Whether a process ends in time; a zombie has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.snakemake.kill()
    made.snakemake.wait()


def test_a_fork_is_as_a_python_of_its_own(place: Place) -> None:
    """Arguments, name, variables, folder, threads and open files are equal; so is each way to end. Sources are new."""
    told = {}
    for warm in (True, False):
        (place.root / "fake/told.py").write_text(f"WORD = 'edited {warm}'\n")
        for how, code in (("well", 0), ("three", 3), ("raise", 1), ("kill", 137)):
            job = place.job(how, MARK="a mark")
            out, error = job.communicate(timeout=60)
            assert job.returncode == code, error
            assert out.startswith(f"edited {warm} {'warm' if warm else 'cold'} "), out
            told[warm, how] = out.split(maxsplit=4)[4]
            assert ("RuntimeError: a reason" in error) == (how == "raise")
        (place.root / ".snakemake/warm").unlink(missing_ok=True)
    assert {how: told[True, how] for _, how in told} == {how: told[False, how] for _, how in told}
    assert "'--out', 'well/x', 'well'] __main__ a mark" in told[True, "well"]


def started(job: subprocess.Popen) -> int:
    """The process of a job that has begun."""
    line = job.stdout.readline()
    assert " warm " in line, line or job.stderr.read()
    return int(line.split()[2])


def client_of(job: subprocess.Popen) -> int:
    """The process that the shell of a job waits for."""
    return int(Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()[0])


def test_signals_reach_the_job_and_it_ends_with_its_client(place: Place) -> None:
    job = place.job("wait")
    fork = started(job)
    client = client_of(job)
    os.kill(client, signal.SIGTERM)
    assert job.wait(20) == 143 and gone(fork)
    job = place.job("wait")
    fork = started(job)
    client = client_of(job)
    os.kill(client, signal.SIGKILL)
    assert job.wait(20) == 137 and gone(fork)


def test_server_ends_with_snakemake_and_its_jobs_with_it(place: Place) -> None:
    job = place.job("wait")
    fork, server = started(job), place.server()
    place.snakemake.kill()
    assert gone(server) and gone(fork) and job.wait(20) != 0


def test_after_a_server_that_was_killed_jobs_start_cold(place: Place) -> None:
    job = place.job("wait")
    fork = started(job)
    os.kill(place.server(), signal.SIGKILL)
    assert job.wait(20) == 1 and "the server of warm starts has died" in job.stderr.read() and gone(fork)
    again = place.job("well")
    assert "first cold " in again.communicate(timeout=60)[0] and again.returncode == 0


def test_the_lock_of_an_output_lives_with_the_fork(place: Place) -> None:
    """A job whose shell and client were killed still holds its output until it has ended."""
    job = place.job("wait")
    fork = started(job)
    second = place.job("wait", RESURGENCE_WAIT="1")
    assert second.wait(30) == 1 and "wait/x is still being written by another process" in second.stderr.read()
    os.kill(fork, signal.SIGKILL)
    assert job.wait(20) == 137


def test_warm_and_cold_results_are_the_same_bytes(copy: Tree) -> None:
    """Images and fine-tuned weights made again, without a server and with one."""
    made = [next((copy.root / "results/finetuned").rglob("manifest.json"))]
    made.append(copy.root / "results/images/small/pets/images/manifest.json")
    targets = [str(file.relative_to(copy.root)) for file in made]
    digests = []
    for setting in ("0", "1"):
        for file in made:
            shutil.rmtree(file.parent)
        copy.snakemake("--cores", "2", *targets, environment={"RESURGENCE_WARM": setting})
        digests.append([sha256(file) for file in made])
    assert digests[0] == digests[1]
    assert not recovery.leftovers(copy.root)
