"""After a failure: damaged intermediate files, a full disk, SIGTERM, and jobs that a killed Snakemake left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tree import ROOT, Tree

from resurgence.config.fields import ConfigError
from resurgence.files import sha256
from resurgence.provenance.manifest import damages
from resurgence.workflow import resources, resume

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
IMAGES = "results/images/small/pets/images"
SCORES = "results/scores/small/pets/scores"


def sampling(tree: Tree) -> str:
    """The command of the job that makes the images of the base."""
    told = tree.snakemake("-n", "-p", "--cores", "1", f"{IMAGES}/manifest.json")
    line = next(text for text in told.splitlines() if "-m resurgence.stages.sample" in text)
    return line[line.index("python -m") :].split(" > ")[0]


def again(tree: Tree, *more: str) -> str:
    return tree.snakemake("--cores", "1", f"{SCORES}/manifest.json", *more, check=False)


def test_damaged_intermediate_file_is_an_error_then_made_again(copy: Tree) -> None:
    """One byte of a picture differs: whoever reads it next says so; without the artefact it is made again, the same."""
    file, scores = next((copy.root / IMAGES).glob("*.parquet")), copy.root / SCORES
    wanted = sha256(file), sha256(scores / "manifest.json")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    shutil.rmtree(scores)
    told = again(copy)
    assert f"{file.relative_to(copy.root)} has changed since it was written" in told and f"delete {IMAGES}" in told
    assert "Error in rule score" in told and not scores.exists()
    shutil.rmtree(copy.root / IMAGES)
    again(copy)
    assert (sha256(file), sha256(scores / "manifest.json")) == wanted


def test_each_damage_has_its_sentence(copy: Tree) -> None:
    manifests = [copy.root / IMAGES / "manifest.json", copy.root / SCORES / "manifest.json"]
    assert damages(manifests) == []
    manifests[0].write_text(manifests[0].read_text()[:-50])
    next((copy.root / SCORES).rglob("*.parquet")).unlink()
    first, second = damages(manifests)
    assert "manifest.json is damaged" in first
    assert "scores.parquet is missing; delete" in second and second.endswith("and give the command again")


def test_full_disk_leaves_nothing_that_counts(copy: Tree) -> None:
    """The space ends in the middle of the pictures (a limit on the size of files stands for it); then there is more."""
    file = next((copy.root / IMAGES).glob("*.parquet"))
    wanted = sha256(file)
    shutil.rmtree(copy.root / IMAGES)
    command = sampling(copy)
    environment = {**os.environ, "PYTHONPATH": str(copy.root / "src"), "PATH": path(), "RESURGENCE_DEVICE": "cpu"}
    limited = f"ulimit -f 4; {command}"  # KiB
    done = subprocess.run(["bash", "-c", limited], cwd=copy.root, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "File too large" in done.stderr
    assert not (copy.root / IMAGES).exists() and not list((copy.root / "results").rglob("*.partial"))
    copy.snakemake("--cores", "1", f"{IMAGES}/manifest.json")
    assert sha256(file) == wanted


def path() -> str:
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def is_told_to_end(process: int) -> bool:
    """Whether a SIGTERM waits for a stopped process."""
    masks = re.findall(r"^(?:SigPnd|ShdPnd):\s+(\S+)$", Path(f"/proc/{process}/status").read_text(), flags=re.MULTILINE)
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of signals that wait")
def test_resume_ends_what_a_killed_snakemake_left(copy: Tree) -> None:
    """The job that outlives it is ended before the next begins; the result is that of a quiet run.

    The job is stopped, or on a quick machine it has ended when `resume` has started.
    """
    wanted = sha256(copy.root / IMAGES / "manifest.json")
    shutil.rmtree(copy.root / IMAGES)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", f"{IMAGES}/manifest.json"]
    command += ["--configfile", "tests/small.yaml"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(command, cwd=copy.root, **quiet)
    end = time.monotonic() + 120
    while not (left := resume.leftovers(copy.root)):
        assert time.monotonic() < end and first.poll() is None
        time.sleep(0.01)
    (job,) = left
    os.kill(job, signal.SIGSTOP)
    with pytest.raises(BlockingIOError, match=f"a Snakemake runs in .*process {first.pid}"):
        resume.claim(copy.root)
    first.kill()
    first.wait()
    assert resume.leftovers(copy.root) == [job]
    words_ = [sys.executable, "-m", "resurgence.cli", "resume", "--", *command[3:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PATH": path()}
    printed = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words_, cwd=copy.root, env=environment, **printed) as second:
        while not is_told_to_end(job):
            assert time.monotonic() < end and second.poll() is None
            time.sleep(0.01)
        os.kill(job, signal.SIGCONT)
        told, _ = second.communicate()
    assert second.returncode == 0, told
    assert "resume: 0 SLURM jobs cancelled, 1 processes ended" in told
    assert not resume.leftovers(copy.root) and sha256(copy.root / IMAGES / "manifest.json") == wanted


def test_sigterm_to_a_job_leaves_no_artefact(copy: Tree) -> None:
    shutil.rmtree(copy.root / IMAGES)
    command = sampling(copy)
    environment = {**os.environ, "PYTHONPATH": str(copy.root / "src"), "PATH": path(), "RESURGENCE_DEVICE": "cpu"}
    log = copy.root / "term.log"
    text = f"exec {command} > term.log 2>&1"
    job = subprocess.Popen(["bash", "-c", text], cwd=copy.root, env=environment)
    end = time.monotonic() + 120
    while "inputs" not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 143
    assert not (copy.root / IMAGES).exists() and not list((copy.root / "results").rglob("*.partial"))


def test_what_a_job_asks_for() -> None:
    assert resources.memory(10**9, 0, 1) == 5500 and resources.memory(10**9, 1, 1) == 8000
    assert [resources.memory(None, 1, attempt) / resources.memory(None, 1, 1) for attempt in (1, 2, 3)] == [1, 2, 4]
    with_gpu = {"partitions": {"cpu": None, "gpu": {"max_gpu": 2}}}
    without = {"partitions": {"cpu": {"max_runtime": 10}}}
    assert (
        resources.uses_gpu("auto", with_gpu) and resources.uses_gpu("cuda", with_gpu) and resources.uses_gpu("cuda", {})
    )
    assert not resources.uses_gpu("auto", without) and not resources.uses_gpu("cpu", with_gpu)
    with pytest.raises(ConfigError, match=r"no partition of site\.yaml has max_gpu"):
        resources.uses_gpu("cuda", without)
    assert resources.gpu_request(1, {"gres": "gpu:a100:1"}) == {"gpu": 0, "gres": "gpu:a100:1"}
    assert resources.gpu_request(1, {}) == {"gpu": 1} and resources.gpu_request(0, {"gres": "gpu:1"}) == {"gpu": 0}
