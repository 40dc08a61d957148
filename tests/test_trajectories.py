"""What the original predicts on trajectories: known before the first step, or asked in each, the same training."""

from __future__ import annotations

import pytest
import torch

from resurgence.config.erasers import eraser_config
from resurgence.erasers import EraserData, method
from resurgence.erasers.gradient.advunlearn import Advunlearn, student_of
from resurgence.erasers.gradient.eap import Eap
from resurgence.erasers.gradient.erasure import whole_student
from resurgence.erasers.gradient.esd import Esd
from resurgence.erasers.gradient.spm import Membranes, adapted
from resurgence.erasers.gradient.trajectories import Asked, Original, Points
from slow import TASK, relative, shake

pytest_plugins = ("erasure_fixtures",)

COMMON = {"batch": 3, "ddim_steps": 3, "trajectories": 2, "guidance": 2.5}
POINTS = 6  # of a concept
CASES = {  # eraser, settings, questions of every step
    "esd": ("esd", {"x_t": "base"}, {"empty", "concept"}),
    "eap": ("eap", {"closest": 6, "search_steps": 1}, {"neutral"}),
    "eap guided": ("eap", {"closest": 6, "search_steps": 1, "target": "guided"}, {"neutral", "concept"}),
    "spm": ("spm", {"anchors": 2}, {"surrogate", "concept"}),
    "spm shared": ("spm", {"anchors": 0, "adapters": "shared", "surrogate": "mapping"}, {"surrogate", "concept"}),
    "advunlearn": ("advunlearn", {"warmup": 0, "attack_steps": 2, "retain_batch": 1}, {"empty", "concept"}),
}
OBJECTIVES = {"esd": Esd, "eap": Eap, "spm": Membranes, "advunlearn": Advunlearn}
STUDENTS = {"spm": adapted, "advunlearn": student_of}


def objective(pipe, name: str, settings: dict, steps: int):
    """An objective whose model has moved away from the base, the same way for any number of steps."""
    cfg = eraser_config(name)(**{**COMMON, **settings, "steps": steps})
    student = STUDENTS.get(name, whole_student)(pipe, TASK, cfg, 0)
    goal = OBJECTIVES[name](student, TASK, cfg, EraserData(), 0)
    if name == "spm":
        for weight in student.weights.values():
            weight.data.add_(0.1)
    else:
        shake(student)
    return goal


def originals(goal) -> list[Original]:
    return [part.original for part in goal.parts] if isinstance(goal, Membranes) else [goal.original]


@pytest.mark.parametrize("space", ["prediction", "clean"])
@pytest.mark.parametrize("case", list(CASES))
def test_answers_known_in_advance_give_the_same_step(double, case: str, space: str) -> None:
    name, settings, kinds = CASES[case]
    concepts = 1 if case == "spm" else len(TASK.erase)
    enough = concepts * POINTS // COMMON["batch"]  # the fewest steps that draw as many points as there are
    few, many = (objective(double, name, {**settings, "space": space}, steps) for steps in (enough - 1, enough))
    assert not any(original.known for original in originals(few))
    assert all(set(original.known) == kinds for original in originals(many))
    for step in range(2):
        (asked, shown), (known, also_shown) = few.gradient(step), many.gradient(step)
        for curve, value in shown.items():
            assert float(also_shown[curve]) == pytest.approx(float(value), rel=1e-9)
        whole = torch.cat([g.flatten() for g in asked])
        assert relative(torch.cat([g.flatten() for g in known]), whole) < 1e-8


def test_known_answers_are_looked_up_and_nothing_is_asked_twice(double) -> None:
    goal = objective(double, "esd", {"x_t": "base"}, 100)
    passes = []
    frozen = goal.original.frozen

    def counted(x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        passes.append(len(x))
        return frozen(x, t, text)

    goal.original.frozen = counted
    for step in range(4):
        goal.gradient(step)
    assert not passes
    points = goal.noisy(goal.samples(0))
    text, other = goal.texts_of(goal.samples(0), goal.texts), goal.empty.expand(len(points.x), -1, -1) * 0.5
    known, fresh = goal.original(Asked(points, text, "concept"), Asked(Points(points.x, points.t), other))
    assert passes == [3] and relative(known, frozen(points.x, points.t, text)) < 1e-12
    assert torch.equal(fresh, frozen(points.x, points.t, other))


def test_a_model_that_samples_in_each_step_is_never_known(plain) -> None:
    assert not objective(plain, "esd", {"x_t": "student"}, 1000).original.known


@pytest.mark.parametrize("steps", [1, 20])
def test_a_run_is_the_same_twice(plain, steps: int, tmp_path) -> None:
    """With and without answers in advance, bit by bit."""
    cfg = eraser_config("esd")(**COMMON, x_t="base", steps=steps, lr=1e-3)
    first, second = (method("esd").erase(plain, TASK, cfg, EraserData(), 0) for _ in range(2))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
