"""Every stage that computes with a model, on a pretended device: it mixes no devices, and gives what the CPU gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import CASES

GREY_LEVEL, CLOSE = 1.0, 1e-4  # largest absolute difference of a pixel, and of weights, losses and scores
# seconds each, and the code of the others in another order
NIGHTLY = {
    "finetune-lora-checkpointing", "finetune-full-ema", "erase-spm", "erase-eap", "erase-advunlearn", "erase-salun",
    "erase-erasediff", "erase-erasediff-noxattn", "erase-scissorhands", "erase-esd-base", "erase-sdd-base",
}  # fmt: skip


def parameters() -> list:
    return [pytest.param(name, marks=[pytest.mark.nightly] if name in NIGHTLY else []) for name in CASES]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What each selected case gave, all run in one process of their own (cases.py says why)."""
    selected = [item.callspec.params["case"] for item in request.session.items if item.path == request.path]
    out = tmp_path_factory.mktemp("pretended") / "outcomes.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("cases.py")), str(out), *dict.fromkeys(selected)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", parameters())
def test_device_gives_what_the_cpu_gives(case: str, outcomes: dict[str, dict]) -> None:
    outcome = outcomes[case]
    assert "error" not in outcome, outcome["error"]
    assert outcome["counts"]["ops"] > 100  # it did compute on the device
    assert outcome["difference"] <= (GREY_LEVEL if case.startswith("sample") else CLOSE)


@pytest.mark.parametrize("case", ["sample", "sample-channels-last"])
def test_sampling_never_waits_for_the_device(case: str, outcomes: dict[str, dict]) -> None:
    """A value that Python asks for within the steps would empty the queue of a GPU at each of them."""
    assert outcomes[case]["counts"].get("sync", 0) == 0
