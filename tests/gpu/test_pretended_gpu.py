"""Every stage that computes with a model, on a pretended device: it mixes no devices, and gives what the CPU gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import CASES, SCORED, TRAININGS, marks
from short_erasures import ERASURES
from tree import once

from resurgence.config import erasers, scorers

# largest absolute difference from the CPU, which computes the same operations: grey levels of a pixel; weights, losses,
# scores, probabilities. The sums of a step are rounded in another order where tensors are laid out differently
GREY_LEVEL, CLOSE = 1.0, 1e-4
# variants of cases that are in the fast tier
NIGHTLY = {
    "sample-channels-last", "finetune-lora-checkpointing", "masks-grounded-sam-bf16",
    "erase-erasediff-noxattn", "erase-esd-base", "erase-sdd-base",
}  # fmt: skip
# of a step of DoCo: how many samples of its batch are of concepts or anchors; of opened adapters: checks of weights
SYNCHRONISATIONS = {"erase-doco": 1, "erase-doco-resumed": 1, "sample-opened": 8}
WEIGHTS = 208  # tensors of the small UNet: EraseDiff keeps those of the present step in main memory during inner steps
COPIES = {"erase-erasediff": WEIGHTS, "erase-erasediff-noxattn": WEIGHTS}  # to main memory and back, at most
SAMPLING = 6  # uploads, none in a step: tokens of "" and of the prompts; of two batches noise and numbers of prompts
DOWNLOADS = {**COPIES, "erase-spm": 4}  # of a step; SPM: embeddings, by which it weighs the anchors
UPLOADS = 13  # of a step: image, flip, timestep, two noises and caption of two passes; one more in the first step


def parameters() -> list:
    nightly = [pytest.mark.nightly]
    return [pytest.param(name, marks=marks(name) + nightly * (name in NIGHTLY)) for name in CASES]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What each selected case gave, all run in one process of their own (cases.py says why), once for all workers."""
    items = (item for item in request.session.items if item.path == request.path and hasattr(item, "callspec"))
    selected = dict.fromkeys(item.callspec.params["case"] for item in items)

    def run(root: Path) -> str:
        root.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(Path(__file__).with_name("cases.py")), str(root / "outcomes.json"), *selected]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return (root / "outcomes.json").read_text()

    return json.loads(once(tmp_path_factory, "pretended", run)[1])


def test_every_eraser_and_scorer_has_a_case() -> None:
    """NudeNet and the stand-in of the celebrity detector run on the CPU, and `frechet` needs no network."""
    assert {"checkpoint", "update", *(name for name, _ in ERASURES.values())} == set(erasers.ERASERS)
    assert SCORED.keys() <= CASES.keys()
    assert {"nudenet", "celebrity_stand_in", "frechet"}.union(*SCORED.values()) == set(scorers.SCORERS)


@pytest.mark.parametrize("case", parameters())
def test_device_gives_what_the_cpu_gives(case: str, outcomes: dict[str, dict]) -> None:
    outcome = outcomes[case]
    assert "error" not in outcome, outcome["error"]
    assert outcome["counts"]["ops"] > 100  # it did compute on the device
    assert outcome["difference"] <= (GREY_LEVEL if case.startswith("sample") else CLOSE)


@pytest.mark.parametrize("case", parameters())
def test_steps_do_not_wait_for_the_device(case: str, outcomes: dict[str, dict]) -> None:
    """A value that Python asks for within a step empties the queue of a GPU."""
    outcome = outcomes[case]
    assert bool(outcome["steps"]) == (case in TRAININGS)
    for step in outcome["steps"]:
        assert step["sync"] <= SYNCHRONISATIONS.get(case, 0)
        assert step["download"] <= DOWNLOADS.get(case, 0)
        assert step["upload"] <= UPLOADS + COPIES.get(case, 0)
    if case.startswith("sample"):
        assert outcome["counts"].get("sync", 0) <= SYNCHRONISATIONS.get(case, 0)
        assert outcome["counts"]["upload"] <= SAMPLING or case == "sample-opened"
