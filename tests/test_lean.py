"""studies/sd14-lean.yaml: what it leaves out, and that its intervals are those that its head states."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from resurgence.analysis.intervals import share_limits
from resurgence.analysis.random_effects import Part
from resurgence.config.fields import ConfigError, read_yaml
from resurgence.config.load import load_study, make_study
from resurgence.config.task import Task
from resurgence.data.prompts import prompt_set
from resurgence.workflow import job_settings

ROOT = Path(__file__).parents[1]
LAYERS = [ROOT / "params.yaml", ROOT / "studies/sd14.yaml"]
WHOLE = load_study(LAYERS, ROOT)
LEAN = load_study([*LAYERS, ROOT / "studies/sd14-lean.yaml"], ROOT)
ROWS = {"100 people": "celebrities-10", "nine objects": "ship", "five objects": "objects-5"}


def half_width(task: Task) -> float:
    """Of an accuracy of 90 % of the retained concepts, in points.

    The observed accuracies of the concepts have mean 0.9 and the variance of their true ones, 0.1^2, plus that of the
    images of a concept.
    """
    concepts, images, mean, between = len(task.retain), task.seeds["retain"] * len(task.templates), 0.9, 0.1
    deviation = np.sqrt(between**2 + (mean * (1 - mean) - between**2) / images)
    places = norm.ppf((np.arange(concepts) + 0.5) / concepts)
    accuracies = mean + deviation * (places - places.mean()) / places.std(ddof=1)
    low, high = share_limits(Part("set", "concepts", accuracies[:, None], concepts * images, 1.0, 1.0), 0.95)
    return 100 * (high - low) / 2


@pytest.mark.parametrize("row", ROWS)
def test_the_head_states_the_intervals(row: str) -> None:
    head = (ROOT / "studies/sd14-lean.yaml").read_text()
    lean, whole = map(float, re.search(rf"#     {row} +([\d.]+) instead of ([\d.]+)", head).groups())
    assert half_width(LEAN.task(ROWS[row])) == pytest.approx(lean, abs=0.06)
    assert half_width(WHOLE.task(ROWS[row])) == pytest.approx(whole, abs=0.06)


def test_only_retained_concepts_have_fewer_images_and_those_are_of_the_whole_study() -> None:
    for name in WHOLE.tasks.names:
        whole, lean = (prompt_set(study.task(name)) for study in (WHOLE, LEAN))
        assert len(lean) < len(whole)
        merged = lean.merge(whole, how="left", on=list(lean), indicator=True)
        assert (merged["_merge"] == "both").all()
        others = [rows[rows["role"] != "retain"].reset_index(drop=True) for rows in (whole, lean)]
        assert others[0].equals(others[1])
    assert [len(prompt_set(LEAN.task(name)).query("role == 'retain'")) for name in ROWS.values()] == [1000, 360, 200]


def test_weights_are_those_of_the_whole_study() -> None:
    """Settings of the jobs that erase and fine-tune, so that nothing of them is computed again."""
    for jobs in (job_settings.erase, job_settings.loras):
        for first, second in zip(WHOLE.erasures(), LEAN.erasures(), strict=True):
            if WHOLE.erasers[first.eraser].config is not None and (
                jobs is job_settings.erase or job_settings.has_loras(WHOLE, first.eraser)
            ):
                assert jobs(WHOLE, first) == jobs(LEAN, second)
    cells = zip(WHOLE.cells(), LEAN.cells(), strict=True)
    assert all(job_settings.finetune(WHOLE, a) == job_settings.finetune(LEAN, b) for a, b in cells)


@pytest.mark.parametrize("seeds", [{"people": {"retain": 2}}, {"person": {"retained": 2}}, {"person": {"retain": 0}}])
def test_a_wrong_kind_role_or_number_is_named(seeds: dict) -> None:
    values = read_yaml(ROOT / "params.yaml")
    with pytest.raises(ConfigError, match=r"tasks\.seeds"):
        make_study(values | {"tasks": values["tasks"] | {"seeds": seeds}}, ROOT)


def test_without_the_setting_tasks_are_as_in_their_files() -> None:
    assert WHOLE.tasks.seeds == {}
    changed = {
        f.name
        for f in dataclasses.fields(Task)
        if getattr(WHOLE.task("ship"), f.name) != getattr(LEAN.task("ship"), f.name)
    }
    assert changed == {"seeds"}
