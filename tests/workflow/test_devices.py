"""workflow/scripts/job.sh: a GPU for each GPU job, one writer for each output; released however the job ends."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tree import ROOT

SCRIPT = ROOT / "workflow/scripts/job.sh"
# what a job does: say when it began on which device, work, and end in one of the ways in which jobs end
JOB = """\
import ctypes, os, signal, sys, time
argument = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open(os.environ["TOLD"], "a") as told:
    told.write(f"begin {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES', 'none')} {time.monotonic()}\\n")
time.sleep(float(argument.get("--seconds", "0")))
with open(os.environ["TOLD"], "a") as told:
    told.write(f"end {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES', 'none')} {time.monotonic()}\\n")
how = argument.get("--how", "well")
if how == "kill": os.kill(os.getpid(), signal.SIGKILL)
if how == "segfault": ctypes.string_at(0)
if how == "raise": raise RuntimeError
if how == "shell": os.kill(os.getppid(), signal.SIGKILL)
"""
SNAKEFILE = """\
shell.prefix("set -euo pipefail; source {script}; ")
rule all:
    input: expand("out/{{n}}", n=range({jobs}))
rule job:
    output: "out/{{n}}"
    resources: gpu=1
    params: how=lambda w: {hows}[int(w.n)]
    shell: "python -m fake.gpu --out {{output}} --seconds 0.2 --how {{params.how}} && echo > {{output}}"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a package that stands for the stages."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake/gpu.py").write_text(JOB)
    (tmp_path / "fake/cpu.py").write_text(JOB)
    return tmp_path


def environment(place: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA_", "SLURM_", "SNAKEMAKE_"))}
    kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
    named = {"TOLD": str(place / "told"), "RESURGENCE_LOCKS": str(place / "locks"), "PYTHONPATH": str(place)}
    return {**kept, **named, "RESURGENCE_GPU_STAGES": "-m fake.gpu", **more}


def run(place: Path, command: str, **more: str) -> subprocess.Popen:
    text = f"set -euo pipefail; source '{SCRIPT}'; {command}"
    return subprocess.Popen(["bash", "-c", text], cwd=place, env=environment(place, **more), stderr=subprocess.PIPE)


def told(place: Path) -> list[list[str]]:
    return [line.split() for line in (place / "told").read_text().splitlines()] if (place / "told").exists() else []


def wait_for_lines(place: Path, number: int) -> None:
    end = time.monotonic() + 20
    while len(told(place)) < number:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.timeout(300)
def test_four_devices_and_jobs_that_crash(place: Path) -> None:
    """Under Snakemake: never two jobs on one device, and all four are used, whatever happens to the jobs before."""
    hows = ["well", "raise", "kill", "segfault", "shell"] * 4
    random.Random(4).shuffle(hows)
    (place / "Snakefile").write_text(SNAKEFILE.format(script=SCRIPT, jobs=len(hows), hows=hows))
    command = [sys.executable, "-m", "snakemake", "--cores", "8", "--resources", "gpu=4", "--keep-going"]
    devices = environment(place, CUDA_VISIBLE_DEVICES="0,1,GPU-8f2a,3")
    done = subprocess.run(command, cwd=place, env=devices, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    lines = told(place)
    assert len(lines) == 2 * len(hows) and {line[2] for line in lines} == {"0", "1", "GPU-8f2a", "3"}
    for _, group in itertools.groupby(sorted(lines, key=lambda line: line[2]), key=lambda line: line[2]):
        ordered = sorted(group, key=lambda line: float(line[3]))
        assert [line[0] for line in ordered] == ["begin", "end"] * (len(ordered) // 2)
        assert all(ordered[n][1] == ordered[n + 1][1] for n in range(0, len(ordered), 2))
    assert len(list((place / "out").iterdir())) == hows.count("well")


def test_device_stays_taken_while_the_python_of_a_killed_shell_lives(place: Path) -> None:
    first = run(place, "python -m fake.gpu --seconds 60 & wait", CUDA_VISIBLE_DEVICES="0")
    wait_for_lines(place, 1)
    first.kill()
    first.wait()
    second = run(place, "python -m fake.gpu", CUDA_VISIBLE_DEVICES="0")
    time.sleep(1.5)
    assert len(told(place)) == 1
    os.kill(int(told(place)[0][1]), signal.SIGKILL)
    assert second.wait(20) == 0 and b"waiting for a GPU: 0 in use" in second.stderr.read()


def test_variables_that_are_set_are_respected(place: Path) -> None:
    """Of CUDA_VISIBLE_DEVICES one is taken; an empty one hides all; SLURM's choice and jobs without a GPU are left."""
    cases = [
        ("gpu", {"CUDA_VISIBLE_DEVICES": "2,3"}, "2"),
        ("gpu", {"CUDA_VISIBLE_DEVICES": ""}, ""),
        ("gpu", {"CUDA_VISIBLE_DEVICES": "2,3", "SLURM_JOB_ID": "7"}, "2,3"),
        ("cpu", {"CUDA_VISIBLE_DEVICES": "2,3"}, "2,3"),
        ("cpu", {}, "none"),
    ]
    for stage, more, device in cases:
        (place / "told").unlink(missing_ok=True)
        assert run(place, f"python -m fake.{stage}", **more).wait(20) == 0
        seen = (place / "told").read_text().split(" ")[2]
        assert seen == device, (stage, more)


def test_devices_of_the_machine_come_from_nvidia_smi(place: Path) -> None:
    (place / "bin").mkdir()
    (place / "bin/nvidia-smi").write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    (place / "bin/nvidia-smi").chmod(0o755)
    path = f"{place / 'bin'}:{environment(place)['PATH']}"
    jobs = [run(place, "python -m fake.gpu --seconds 1", PATH=path) for _ in range(2)]
    assert [job.wait(20) for job in jobs] == [0, 0]
    assert {line[2] for line in told(place)} == {"0", "1"}


def test_second_writer_waits_then_gives_up(place: Path) -> None:
    """Also when the shell of the first was killed; and it writes when the first has ended."""
    command = "python -m fake.cpu --out results/a/manifest.json --seconds"
    first = run(place, f"{command} 60 & wait")
    wait_for_lines(place, 1)
    first.kill()
    first.wait()
    second = run(place, f"{command} 0", RESURGENCE_WAIT="1")
    assert second.wait(20) == 1 and b"still being written by another process (host" in second.stderr.read()
    other = run(place, "python -m fake.cpu --out results/b/manifest.json", RESURGENCE_WAIT="1")
    assert other.wait(20) == 0
    third = run(place, f"{command} 0", RESURGENCE_WAIT="20")
    time.sleep(0.5)
    os.kill(int(told(place)[0][1]), signal.SIGKILL)
    assert third.wait(20) == 0
