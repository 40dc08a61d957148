"""Print the driver of the GPU and the driver that the installed torch needs; `make setup` runs it.

    python tools/gpu_driver.py

Exit status 0 in any case: without a GPU the study runs on the CPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

# First driver of each major version of CUDA, on Linux: release notes of the CUDA toolkit, "minor version compatibility"
DRIVERS = {11: "450.80", 12: "525.60", 13: "580"}


def cuda_of_torch() -> str | None:
    """The version of CUDA that the installed torch is built for, read without importing it; None: for the CPU only."""
    place = find_spec("torch")
    text = (Path(place.origin).parent / "version.py").read_text(encoding="utf-8") if place and place.origin else ""
    found = re.search(r"^cuda\b.*= '([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else None


def gpus() -> list[tuple[str, str]]:
    """Name and driver of each GPU that nvidia-smi lists; empty without it, or where it fails."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return [(name.strip(), driver.strip()) for name, _, driver in (line.partition(",") for line in lines)]


def report(found: list[tuple[str, str]], torch: str, cuda: str | None) -> list[str]:
    """The lines that are printed.

    Args:
        found: name and driver of each GPU. torch: its version. cuda: what it is built for.
    """
    present = (
        ", ".join(f"{name} with driver {driver}" for name, driver in dict.fromkeys(found)) or "none found by nvidia-smi"
    )
    lines = [f"GPU: {present}"]
    if cuda is None:
        lines.append(f"torch {torch} is built for the CPU")
        return lines + (["to use the GPU: make setup TORCH=pinned, cu128 or cu126"] if found else [])
    needed = DRIVERS.get(int(cuda.split(".")[0]))
    lines.append(f"torch {torch} is built for CUDA {cuda} and needs driver {needed or 'of that version'} or newer")
    old = sorted({driver for _, driver in found if needed and numbers(driver) < numbers(needed)})
    if old:
        others = "cu128 or cu126" if numbers(old[0]) >= numbers(DRIVERS[12]) else "cpu"
        lines.append(f"driver {old[0]} is too old: update it, or run make setup TORCH={others}")
    return lines


def numbers(text: str) -> tuple[int, ...]:
    """A version as numbers."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


if __name__ == "__main__":
    print(*report(gpus(), version("torch"), cuda_of_torch()), sep="\n")
