"""Every eraser on the shipped miniature, as studies/methods.yaml sets it: what is left of a ship, and at what cost.

Few images; the study itself is in docs/results.md. MACE, UCE and TIME are in the fast tier, where the tests of the
other methods show that their losses are right and fall; the nightly tier shows that they erase.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from resurgence.config.fields import build
from resurgence.config.load import load_study
from resurgence.data.masks import MaskConfig, segment
from resurgence.data.moments import second_moment
from resurgence.data.prompts import expand
from resurgence.diffusion.deltas import apply_delta
from resurgence.diffusion.pipeline import load_base
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.diffusion.text import fill, load_captions
from resurgence.erasers import EraserData, eraser_config, method
from resurgence.scorers import load_scorers, metrics, score_images

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "data/miniature-2/base"
STUDY = load_study([ROOT / "params.yaml", ROOT / "studies/methods.yaml"], ROOT) if SHIPPED.is_dir() else None
CFG = SamplingConfig(steps=12, guidance=4.0, batch=64, size=64)
FAST = ("mace", "uce", "time")
ERASERS = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.nightly) for name in (STUDY.erasers if STUDY else FAST)
]
pytestmark = [pytest.mark.slow, pytest.mark.world("miniature-2")]


def prompts(concepts: list[str], number: int, role: str) -> list[dict]:
    return expand([(c, c) for c in concepts], ["a photo of the {}"], number, role, "miniature test")


def drawn(pipe, rows: pd.DataFrame) -> torch.Tensor:
    """uint8 (N, 3, 64, 64) in the order of the rows."""
    made = dict(sample(pipe, rows, CFG))
    return torch.from_numpy(np.stack([np.asarray(made[i]) for i in range(len(rows))])).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def world():
    """The base on one core, the task, the data that erasers may need, and the scorer of this world."""
    torch.set_flush_denormal(True)
    pipe, task = load_base(str(SHIPPED)), STUDY.task("ship")
    groups = {
        "images": (task.erase, 8),
        "anchors": (sorted(set(task.mapping.values())), 8),
        "retained": (task.retain, 4),
    }
    data = {}
    for kind, (concepts, number) in groups.items():
        rows = pd.DataFrame(prompts(list(concepts), number, kind))
        pictures = drawn(pipe, rows).float() / 127.5 - 1
        data[kind] = {c: pictures[torch.tensor((rows["concept"] == c).to_numpy())] for c in concepts}
    mask = MaskConfig(segmenter="foreground")
    data["masks"] = {c: segment(images, c, mask, pipe, pipe.device) for c, images in data["images"].items()}
    captions = load_captions("config/prompts/closed_form.txt", task.kind)
    data["domain"] = second_moment(pipe, [text for concept in task.retain for text in fill(captions, concept)])
    general = (ROOT / "config/prompts/miniature-2/general.txt").read_text().splitlines()
    data["prior"] = second_moment(pipe, [line for line in general if line.strip()])
    scorers = load_scorers({"recogniser": {"path": str(ROOT / "data/miniature-2/recogniser")}}, torch.device("cpu"))
    return pipe, task, data, scorers


def accuracy(pipe, task, scorers) -> dict[str, float]:
    """Percent of 16 ships and of 2 images of each retained concept that are recognised."""
    rows = pd.DataFrame(prompts(list(task.erase), 16, "erase") + prompts(list(task.retain), 2, "retain"))
    scores, _ = score_images(drawn(pipe, rows), rows, task, scorers, ["recogniser"])
    column = metrics()["recogniser_accuracy"].column
    return {role: 100 * float(scores[scores["role"] == role][column].mean()) for role in ("erase", "retain")}


@pytest.fixture(scope="module")
def before(world) -> dict[str, float]:
    pipe, task, _, scorers = world
    return accuracy(pipe, task, scorers)


def test_the_base_shows_what_is_asked_for(before: dict[str, float]) -> None:
    assert before["erase"] >= 80 and before["retain"] >= 80


@pytest.mark.parametrize("eraser", ERASERS)
def test_an_eraser_lowers_the_erased_concept(world, before, eraser: str, monkeypatch, record_property) -> None:
    pipe, task, data, scorers = world
    monkeypatch.chdir(ROOT)  # caption files are named from here
    settings = STUDY.eraser_settings("ship", eraser, "default")
    name = STUDY.erasers[eraser].name
    cfg = build(eraser_config(name), settings, eraser)
    delta = method(name).erase(pipe, task, cfg, EraserData(**data), 0)
    erased = copy.deepcopy(pipe)
    apply_delta(erased, delta)
    after = accuracy(erased, task, scorers)
    gone, cost = (before[role] - after[role] for role in ("erase", "retain"))
    record_property("erased", gone)
    record_property("cost", cost)
    print(f"{eraser}: {gone:.0f} points of the erased concept, at the cost of {cost:.0f} of the retained ones")
    assert gone >= 30, after
    assert cost < gone, after  # else it spoils everything alike
    assert after["retain"] > after["erase"], after
