"""`make setup`: which torch it installs, and what it says about the driver of the GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def make(environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What make would do in an environment of another folder."""
    command = ["make", "-n", "setup", f"VENV={environment}", *arguments]
    kept = {key: value for key, value in os.environ.items() if key not in ("TORCH", "MAKEFLAGS")}
    return subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)


def test_the_variant_of_torch(tmp_path: Path) -> None:
    """Pinned at first; the given one with its own libraries; later the installed one until another is given."""
    first = make(tmp_path).stdout
    assert "-r envs/requirements.txt -r envs/cuda.txt " in first and "--torch-backend" not in first
    assert "tools/gpu_driver.py" in first
    older = make(tmp_path, "TORCH=cu126").stdout
    assert "-r envs/requirements.txt --torch-backend cu126 " in older and "cuda.txt" not in older
    assert "--reinstall-package" not in first + older
    (tmp_path / ".installed-cu126").touch()
    assert "uv pip install" not in make(tmp_path).stdout
    assert "-r envs/cuda.txt " in make(tmp_path, "TORCH=pinned").stdout
    assert "--torch-backend cpu " in make(tmp_path, "TORCH=cpu").stdout
    for other in ("pinned", "cpu"):  # the installed torch has the pinned version, so nothing would be installed
        assert "--reinstall-package torch --reinstall-package torchvision" in make(tmp_path, f"TORCH={other}").stdout
    wrong = make(tmp_path, "TORCH=cu99")
    assert wrong.returncode != 0 and "TORCH = cu99 is unknown; write cu126, cu128, cpu or pinned" in wrong.stderr


def test_the_pins_of_cuda_are_apart() -> None:
    """All packages of NVIDIA, and no other, so that torch for another CUDA or the CPU can be installed."""
    pins, apart = ((ROOT / f"envs/{name}.txt").read_text() for name in ("requirements", "cuda"))
    of_cuda = re.compile(r"^(nvidia-|cuda-|triton)", re.MULTILINE)
    assert not of_cuda.search(pins) and re.search(r"^torch==", pins, re.MULTILINE)
    assert len(of_cuda.findall(apart)) == len([line for line in apart.splitlines() if line[0] != "#"]) > 10


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, ["GPU: none found by nvidia-smi"]),
        ("", ["GPU: none found by nvidia-smi"]),
        ("NVIDIA A100-SXM4-40GB, 580.65.06\n" * 2, ["GPU: NVIDIA A100-SXM4-40GB with driver 580.65.06"]),
        ("Tesla T4, 550.54.14\n", ["GPU: Tesla T4 with driver 550.54.14", "TORCH=cu128 or cu126"]),
        ("Tesla K80, 470.82.01\n", ["GPU: Tesla K80 with driver 470.82.01", "TORCH=cpu"]),
    ],
)
def test_driver_and_need(listed: str | None, expected: list[str], tmp_path: Path) -> None:
    """Of a pretended nvidia-smi, and of the torch of this environment."""
    if listed is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{listed}'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    command = [sys.executable, str(ROOT / "tools/gpu_driver.py")]
    lines = subprocess.check_output(command, env={"PATH": str(tmp_path) + ":/bin"}, text=True).splitlines()
    assert lines[0] == expected[0]
    if torch.version.cuda is None:
        assert lines[1] == f"torch {torch.__version__.split('+')[0]} is built for the CPU"
    elif torch.version.cuda.startswith("13."):
        assert f"is built for CUDA {torch.version.cuda} and needs driver 580 or newer" in lines[1]
        assert len(lines) == len(expected) + 1 and lines[-1].endswith(expected[-1] if len(expected) > 1 else "newer")
