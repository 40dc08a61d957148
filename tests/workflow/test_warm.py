"""Warm starts: a fork of the server behaves as a Python of its own, and whatever dies, no job is left alone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
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
if how == "files":
    import gc
    gc.collect()
    made = [open("files/%d" % n, "w") for n in range(40)]
    gc.collect()
    for n, file in enumerate(made): file.write(str(n))
    for file in made: file.close()
if how == "hold": signal.signal(signal.SIGTERM, signal.SIG_IGN)
if how == "wait": signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
if how in ("wait", "hold"): time.sleep(60)
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

    def job(self, how: str, out: str = "", before: str = "", **more: str) -> subprocess.Popen:
        """A job's shell, with what it runs before the job."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RESURGENCE_"))}
        kept |= {"PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "PYTHONPATH": self.path}
        kept |= {"RESURGENCE_WARM_CLIENT": str(ROOT / "workflow/scripts/warm.py"), "OMP_NUM_THREADS": "1", **more}
        run = f"python -m fake.job --out {out or how}/x {how}"
        text = f"set -euo pipefail; {before or ':'}; source '{ROOT}/workflow/scripts/job.sh'; {run}"
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
    assert not (place.root / ".snakemake/warm").exists()


def test_after_a_server_that_was_killed_jobs_start_cold(place: Place) -> None:
    job = place.job("wait")
    fork = started(job)
    os.kill(place.server(), signal.SIGKILL)
    assert job.wait(20) == 1 and "the server of warm starts has died" in job.stderr.read() and gone(fork)
    again = place.job("well")
    assert "first cold " in again.communicate(timeout=60)[0] and again.returncode == 0


def test_the_lock_of_an_output_lives_with_the_fork(place: Place) -> None:
    """A job whose shell and client were killed still holds its output until it has ended; each of eight does."""
    jobs = [place.job("hold", out=f"out{number}") for number in range(8)]
    forks = [started(job) for job in jobs]
    for number, fork in enumerate(forks):
        held = [os.readlink(file) for file in Path(f"/proc/{fork}/fd").iterdir()]
        assert str(place.root / f".snakemake/writers/out{number}%x") in held
    client = client_of(jobs[4])
    jobs[4].kill()
    os.kill(client, signal.SIGKILL)
    assert gone(client)
    second = place.job("wait", out="out4", RESURGENCE_WAIT="1")
    assert second.wait(30) == 1 and "out4/x is still being written by another process" in second.stderr.read()
    for fork in forks:
        os.kill(fork, signal.SIGKILL)
    assert {job.wait(20) for number, job in enumerate(jobs) if number != 4} == {137}
    assert place.job("well", out="out4").wait(60) == 0


def test_files_of_a_job_are_its_own(place: Place) -> None:
    """Nothing that the fork inherits from the server closes what the job opens under the same number."""
    (place.root / "files").mkdir()
    waiting = [place.job("wait", out=f"out{number}") for number in range(3)]
    for job in waiting:
        started(job)
    job = place.job("files")
    assert job.wait(60) == 0, job.stderr.read()
    assert [(place.root / f"files/{n}").read_text() for n in range(40)] == [str(n) for n in range(40)]


def test_ignored_signals_stay_ignored(place: Place) -> None:
    """Under nohup a job outlives its terminal, as without a server."""
    job = place.job("wait", before="trap '' HUP")
    fork = started(job)
    os.kill(client_of(job), signal.SIGHUP)
    os.kill(fork, signal.SIGHUP)
    assert not gone(fork, 1)
    os.kill(fork, signal.SIGTERM)
    assert job.wait(20) == 143


def test_a_paused_job_computes_nothing(place: Place) -> None:
    job = place.job("wait")
    fork, client = started(job), client_of(job)
    os.kill(client, signal.SIGTSTP)
    assert state_becomes(fork, "T") and state_becomes(client, "T")
    os.kill(client, signal.SIGCONT)
    assert state_becomes(fork, "S")
    os.kill(client, signal.SIGTERM)
    assert job.wait(20) == 143


def test_a_client_that_stalls_or_lies_stops_nobody(place: Place) -> None:
    """The server goes on after a client that breaks off, and after one that sends nonsense."""
    for sent in (b"", (10).to_bytes(8, "big"), (2).to_bytes(8, "big") + b"[]"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(place.root / ".snakemake/warm"))
            if sent:
                socket.send_fds(client, [sent], [0])
    job = place.job("well")
    assert "first warm " in job.communicate(timeout=60)[0]
    server = place.server()
    assert len(os.listdir(f"/proc/{server}/fd")) < 10  # it has closed what the clients had sent


def state_becomes(pid: int, state: str, seconds: float = 10) -> bool:
    """Whether a process comes into a state."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == state:
            return True
        time.sleep(0.05)
    return False


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
        assert not recovery.leftovers(copy.root) and not (copy.root / ".snakemake/warm").exists()
        digests.append([sha256(file) for file in made])
    assert digests[0] == digests[1]
