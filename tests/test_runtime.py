"""Before a job's work: a GPU for each GPU job, one writer for each output; released however the job ends."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from resurgence.provenance.manifest import write_artefact
from resurgence.stages import runtime

SOURCES = Path(runtime.__file__).parents[2]
# a job: take what it needs, say when it began on which device, work, and end in one of the ways in which jobs end
JOB = """\
import ctypes, logging, os, signal, sys, time
from pathlib import Path
from resurgence.stages.runtime import become_only_writer, take_gpu
logging.basicConfig()
out, gpu, seconds, how = sys.argv[1:]
def write(word):
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
    with open("log", "a") as log:
        log.write(f"{word} {os.getpid()} {device or '-'} {time.monotonic()}\\n")
become_only_writer(Path(out))
if gpu == "gpu": take_gpu()
write("begin")
time.sleep(float(seconds))
write("end")
if how == "kill": os.kill(os.getpid(), signal.SIGKILL)
if how == "segfault": ctypes.string_at(0)
if how == "raise": raise RuntimeError
"""


class Jobs:
    """Jobs in a folder of their own, with what they wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, list[subprocess.Popen]()

    def start(self, out: str = "a", gpu: bool = True, seconds: float = 0, how: str = "well", **more: str):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA_", "SLURM_"))}
        named = {
            "RESURGENCE_LOCKS": str(self.folder / "locks"),
            "PYTHONPATH": str(SOURCES),
            "RESURGENCE_DEVICE": "cuda",
        }
        words = [sys.executable, "-c", JOB, out, "gpu" if gpu else "cpu", str(seconds), how]
        job = subprocess.Popen(words, cwd=self.folder, env={**kept, **named, **more}, stderr=subprocess.PIPE)
        self.running.append(job)
        return job

    def lines(self) -> list[list[str]]:
        log = self.folder / "log"
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    def wait_for(self, number: int) -> None:
        end = time.monotonic() + 60
        while len(self.lines()) < number:
            assert time.monotonic() < end, self.lines()
            time.sleep(0.02)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    started = Jobs(tmp_path)
    yield started
    for job in started.running:
        job.kill()
        job.communicate()


def test_devices_and_jobs_that_crash(jobs: Jobs) -> None:
    """Never two jobs on one device, and all are used, whatever happens to the jobs before."""
    hows = ["well", "raise", "kill", "segfault"] * 2
    started = [
        jobs.start(str(number), seconds=0.2, how=how, CUDA_VISIBLE_DEVICES="0,GPU-8f2a")
        for number, how in enumerate(hows)
    ]
    codes = [job.wait(60) for job in started]
    assert codes == [{"well": 0, "raise": 1, "kill": -signal.SIGKILL, "segfault": -signal.SIGSEGV}[h] for h in hows]
    lines = jobs.lines()
    assert len(lines) == 2 * len(hows) and {line[2] for line in lines} == {"0", "GPU-8f2a"}
    for _, group in itertools.groupby(sorted(lines, key=lambda line: line[2]), key=lambda line: line[2]):
        ordered = sorted(group, key=lambda line: float(line[3]))
        assert [line[0] for line in ordered] == ["begin", "end"] * (len(ordered) // 2)
        assert all(ordered[n][1] == ordered[n + 1][1] for n in range(0, len(ordered), 2))


def test_second_job_waits_for_the_device(jobs: Jobs) -> None:
    first = jobs.start("a", seconds=60, CUDA_VISIBLE_DEVICES="0")
    jobs.wait_for(1)
    second = jobs.start("b", CUDA_VISIBLE_DEVICES="0")
    assert b"waiting for a GPU: 0 in use" in second.stderr.readline()
    assert len(jobs.lines()) == 1
    first.kill()
    assert second.wait(60) == 0


@pytest.mark.parametrize(
    ("gpu", "more", "device"),
    [
        (True, {"CUDA_VISIBLE_DEVICES": "2,3"}, "2"),
        (True, {"CUDA_VISIBLE_DEVICES": ""}, "-"),
        (True, {"CUDA_VISIBLE_DEVICES": "2,3", "SLURM_JOB_ID": "7"}, "2"),
        (True, {"CUDA_VISIBLE_DEVICES": "2,3", "RESURGENCE_DEVICE": "cpu"}, "2,3"),
        (False, {"CUDA_VISIBLE_DEVICES": "2,3"}, "2,3"),
        (False, {}, "none"),
    ],
)
def test_variables_that_are_set_are_respected(jobs: Jobs, gpu: bool, more: dict[str, str], device: str) -> None:
    """Of CUDA_VISIBLE_DEVICES one is taken; an empty one hides all; jobs without a GPU are left."""
    assert jobs.start(gpu=gpu, **more).wait(60) == 0
    assert jobs.lines()[0][2] == device


def test_several_devices_of_one_slurm_allocation_are_shared_out(jobs: Jobs) -> None:
    """By locks of the allocation: in another one the same numbers are other devices."""
    inside = {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_JOB_ID": "7"}
    for number, name in enumerate("ab"):
        jobs.start(name, seconds=60, **inside)
        jobs.wait_for(number + 1)
    third = jobs.start("c", **inside)
    assert b"waiting for a GPU: 0 1 in use" in third.stderr.readline()
    assert jobs.start("d", **inside | {"SLURM_JOB_ID": "8"}).wait(60) == 0
    assert [line[2] for line in jobs.lines()] == ["0", "1", "0", "0"]  # a, b; begin and end of d
    jobs.running[1].kill()
    assert third.wait(60) == 0 and jobs.lines()[-1][2] == "1"


def test_the_single_device_of_a_slurm_job_is_not_locked(jobs: Jobs) -> None:
    inside = {"CUDA_VISIBLE_DEVICES": "0", "SLURM_JOB_ID": "7"}
    jobs.start("a", seconds=60, **inside)
    jobs.wait_for(1)
    assert jobs.start("b", **inside).wait(60) == 0
    assert [line[2] for line in jobs.lines()] == ["0", "0", "0"]


def test_devices_of_the_machine_come_from_nvidia_smi(jobs: Jobs) -> None:
    (jobs.folder / "bin").mkdir()
    (jobs.folder / "bin/nvidia-smi").write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    (jobs.folder / "bin/nvidia-smi").chmod(0o755)
    path = f"{jobs.folder / 'bin'}:{os.environ['PATH']}"
    # on a cluster whose SLURM assigns no devices all allocations see the same ones, so they share the locks
    started = [
        jobs.start(name, seconds=60, PATH=path, **{"SLURM_JOB_ID": name} if name == "b" else {}) for name in "ab"
    ]
    jobs.wait_for(2)
    assert {line[2] for line in jobs.lines()} == {"0", "1"} and all(job.poll() is None for job in started)


def test_without_variable_and_nvidia_smi_the_remedy_is_named(jobs: Jobs) -> None:
    job = jobs.start(PATH=str(jobs.folder))
    text = job.communicate(timeout=60)[1].decode()
    assert job.returncode == 1 and "set CUDA_VISIBLE_DEVICES to those that jobs may use, such as 0,1" in text


def test_second_writer_waits_then_gives_up(jobs: Jobs) -> None:
    """It writes when the first has ended, however that ended."""
    out = "results/a/manifest.json"
    first = jobs.start(out, gpu=False, seconds=60)
    jobs.wait_for(1)
    second = jobs.start(out, gpu=False, RESURGENCE_WAIT="0.5")
    text = second.communicate(timeout=60)[1].decode()
    assert second.returncode == 1 and f"{out} is still being written by another process (host" in text
    assert f"process {first.pid}" in text and "run: resurgence resume" in text
    assert jobs.start("results/b/manifest.json", gpu=False, RESURGENCE_WAIT="0.5").wait(60) == 0
    third = jobs.start(out, gpu=False, RESURGENCE_WAIT="60")
    first.kill()
    assert third.wait(60) == 0


def test_damaged_inputs_are_refused(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        with write_artefact(folder, "thing", {}, {}, {}, {}) as inside:
            (inside / "x").write_text("1")
    manifests = [folder / "manifest.json" for folder in folders]
    runtime.check_inputs([*manifests, tmp_path / "absent.txt"])  # files that are no artefacts are not its business
    (folders[0] / "x").write_text("2")
    (folders[1] / "x").unlink()
    with pytest.raises(ValueError) as error:
        runtime.check_inputs(manifests)
    first, second = str(error.value).splitlines()
    assert f"{folders[0] / 'x'} has changed since it was written" in first and f"delete {folders[0]} and" in first
    assert f"{folders[1] / 'x'} is missing" in second


def test_a_job_does_not_end_with_the_messages_of_libraries() -> None:
    """At the end of a process nanobind prints a list of objects that garbage collection was kept from."""
    code = (
        "import atexit, logging, os, sys; from resurgence.stages.runtime import end_imports;"
        "atexit.register(os.write, 2, b'a library'); end_imports(); logging.warning('the last line')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == "WARNING:root:the last line\n"


def test_sigterm_in_the_middle_of_a_class_ends_a_job_as_elsewhere(tmp_path: Path) -> None:
    """Python 3.11 makes a RuntimeError of what is raised in `__set_name__`, which imports call for each data class."""
    code = """\
import os, signal, sys
from resurgence.stages.job import main
class Field:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000): pass
def make(job, folder):
    type("TensorInfo", (), {"parameter_count": Field()})
main("interrupted", make)
"""
    job = [sys.executable, "-c", code, "--settings", "{}", "--out", "part/manifest.json"]
    ended = subprocess.run(job, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SOURCES)}, capture_output=True)
    assert ended.returncode == 143 and b"RuntimeError" not in ended.stderr
    assert not (tmp_path / "part").exists() and not list(tmp_path.rglob("*.partial"))


def test_a_module_is_imported_when_it_is_used_and_then_whole() -> None:
    """`import scipy.stats`, as diffusers writes it, does not run the module; `from scipy.stats import x` does."""
    code = """\
import sys
from resurgence.stages.runtime import importing
with importing():
    {imports}
late = "scipy.stats._continuous_distns" not in sys.modules
import scipy.stats
print(late, round(scipy.stats.norm.cdf(1.96), 3), "scipy.stats._continuous_distns" in sys.modules)
"""

    def printed(imports: str) -> str:
        command = [sys.executable, "-c", code.format(imports=imports)]
        environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()

    assert printed("import scipy.stats") == "True 0.975 True"
    assert printed("from scipy.stats import norm") == "False 0.975 True"
    assert runtime.Postponing not in sys.meta_path


def test_stages_that_read_no_image_start_without_torch() -> None:
    """Importing torch takes longer than all their work on the default study."""
    stages = ("prompts", "results", "tables", "figures", "cost", "index", "report", "audit", "experiment")
    code = "import importlib, sys\n" + "".join(
        f"importlib.import_module('resurgence.stages.{stage}')\nassert 'torch' not in sys.modules, '{stage}'\n"
        for stage in stages
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
