"""EraseDiff against its formulas written out image by image, its multiplier against a quadratic program."""

from __future__ import annotations

import dataclasses
import json

import cvxpy as cp
import numpy as np
import pytest
import torch

from resurgence.erasers import EraserData
from resurgence.erasers.gradient.erasediff import (
    EraseDiff,
    barrier_multiplier,
    cosine_multiplier,
    erase,
)
from resurgence.erasers.gradient.image_configs import EraseDiffConfig, SalunConfig
from resurgence.erasers.gradient.salun import erase as salun
from resurgence.erasers.gradient.student import Student
from slow import TASK, gradients_of, pipeline, same, shake, snapshot, unet_with, worst
from slow_images import CAPTIONS, flat, forget_points, retain_points, slow_denoising, slow_pseudo

pytest_plugins = ("erasure_fixtures",)

SMALL = {"batch": 2, "captions": CAPTIONS}


def make(pipe, data, **settings) -> EraseDiff:
    cfg = EraseDiffConfig(**(SMALL | {"parameters": "xattn"} | settings))
    objective = EraseDiff(Student(pipe, cfg.parameters), TASK, cfg, data, 4)
    shake(objective.student)
    return objective


def slow_least(pipe, student, drawn, cfg) -> float:
    """K steps of Adam on a UNet of its own; the loss after them, or its mean during them."""
    unet = unet_with(pipe, student.weights)
    unet.requires_grad_(False)
    trained = [unet.get_parameter(n.removeprefix("unet.")).requires_grad_() for n in student.weights]
    optimiser, seen = torch.optim.Adam(trained, lr=cfg.inner_lr or cfg.lr), []

    def loss() -> torch.Tensor:
        return slow_pseudo(pipe, unet, unet if cfg.target_from == "current" else unet_with(pipe, {}), drawn)

    for _ in range(cfg.inner_steps):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        optimiser.step()
        seen.append(float(value.detach()))
    return float(loss().detach()) if cfg.inner_value == "last" else sum(seen) / len(seen)


@pytest.mark.parametrize(
    "settings",
    [
        {"multiplier": "gradient", "eta": 500.0}, {"multiplier": "value", "eta": 50.0, "inner_value": "mean"},
        {"multiplier": "value", "eta": 5.0, "target_from": "frozen"}, {"multiplier": "cosine", "eta": 0.8},
        {"multiplier": "fixed", "weight": 1.7, "inner_steps": 0},
    ],
)  # fmt: skip
def test_gradient_of_a_step_equals_the_formula(double, data, settings):
    objective = make(double, data, **({"inner_steps": 3, "inner_lr": 1e-3} | settings))
    student, cfg = objective.student, objective.cfg
    names, unet = list(student.weights), unet_with(double, student.weights)
    teacher = unet_with(double, student.weights if cfg.target_from == "current" else {})
    drawn = forget_points(double, data, 2, 4, 5)
    remain, forget = slow_denoising(double, unet, retain_points(double, data, 2, 4, 5)), None
    r = flat(gradients_of(unet, remain, names)).clone()
    forget = slow_pseudo(double, unet, teacher, drawn)
    f = flat(gradients_of(unet, forget, names)).clone()
    g = float(forget.detach()) - (slow_least(double, student, drawn, cfg) if cfg.inner_steps else 0.0)
    factor = {
        "gradient": max(0.0, (cfg.eta * float(f @ f) - float(f @ r)) / float(f @ f)),
        "value": max(0.0, (cfg.eta * g - float(f @ r)) / float(f @ f)),
        "cosine": max(0.0, cfg.eta - float(f @ r) / float(f.norm() * r.norm())),
        "fixed": cfg.weight,
    }[cfg.multiplier]
    found, shown = objective.gradient(5)
    assert factor > 0 and float(shown["lambda"]) == pytest.approx(factor, rel=1e-9)
    assert float(shown["remain"]) == pytest.approx(float(remain.detach()), rel=1e-9)
    assert float(shown["forget"]) == pytest.approx(float(forget.detach()), rel=1e-9)
    assert float(shown["constraint"]) == pytest.approx(g, rel=1e-9)
    assert float(shown["loss"]) == pytest.approx(float(remain.detach()) + factor * g, rel=1e-9)
    assert worst([flat(found)], [r + factor * f]) < 1e-9


def test_inner_steps_leave_the_weights_and_lower_the_forget_loss(pipe, data):
    objective = make(pipe, data, inner_steps=4, inner_lr=1e-3)
    before = {n: w.detach().clone() for n, w in objective.student.weights.items()}
    shown = objective.gradient(0)[1]
    assert same({n: w.detach() for n, w in objective.student.weights.items()}, before)
    assert all(w.grad is None for w in objective.student.weights.values())
    assert 0 < float(shown["constraint"]) < float(shown["forget"])


@pytest.mark.parametrize("multiplier", ["gradient", "cosine", "fixed", "value"])
def test_inner_steps_reach_the_weights_only_through_the_value(data, multiplier):
    pipe = pipeline("epsilon")
    cfg = EraseDiffConfig(steps=2, lr=1e-3, multiplier=multiplier, eta=2.0, parameters="xattn", inner_steps=2, **SMALL)
    more = dataclasses.replace(cfg, inner_steps=3)
    assert same(erase(pipe, TASK, cfg, data, 0), erase(pipe, TASK, more, data, 0)) == (multiplier != "value")


def test_no_inner_steps_and_a_fixed_weight_are_the_plain_sum(pipe, data):
    cfg = EraseDiffConfig(steps=3, lr=1e-3, multiplier="fixed", weight=1.0, inner_steps=0, parameters="xattn", **SMALL)
    delta = erase(pipe, TASK, cfg, data, 0)
    plain = SalunConfig(steps=3, lr=1e-3, alpha=1.0, fraction=1.0, parameters="xattn", mask_steps=1, **SMALL)
    other, base = salun(pipe, TASK, plain, data, 0), snapshot(pipe)
    change = [delta[n] - base[n] for n in delta]
    assert worst(change, [other[n] - base[n] for n in delta]) < 0.02  # Adam's sign decides where gradients are nearly 0


@pytest.mark.parametrize("kind", ["conflict", "agreement", "none"])
def test_multiplier_solves_the_quadratic_program(kind):
    g = np.random.default_rng(0)
    remain, forget = g.normal(size=12), g.normal(size=12)
    if kind == "agreement":
        remain += 3 * forget
    if kind == "conflict":
        remain -= 3 * forget
    if kind == "none":
        forget *= 0
    rate = 0.3 * float(forget @ forget)
    delta = cp.Variable(12)
    cp.Problem(cp.Minimize(cp.sum_squares(delta - remain) / 2), [forget @ delta >= rate]).solve(solver="CLARABEL")
    r, f = ([torch.tensor(x[:5]), torch.tensor(x[5:]).view(7, 1)] for x in (remain, forget))
    factor = float(barrier_multiplier(r, f, torch.tensor(rate)))
    assert np.allclose(remain + factor * forget, delta.value, atol=1e-5)
    assert (factor > 0) == (kind == "conflict")
    if kind == "none":
        assert float(cosine_multiplier(r, f, 0.5)) == 0


def test_the_outer_direction_lowers_the_constraint(pipe, data):
    objective = make(pipe, data, inner_steps=0, eta=0.5)
    for step in range(3):
        found = flat(objective.gradient(step)[0])
        unet, teacher = (unet_with(pipe, objective.student.weights) for _ in range(2))
        loss = slow_pseudo(pipe, unet, teacher, forget_points(pipe, data, 2, 4, step))
        f = flat(gradients_of(unet, loss, list(objective.student.weights)))
        assert float(found @ f) >= 0.5 * float(f @ f) * (1 - 1e-3)


def test_delta_holds_the_selected_parameters_and_the_pipeline_is_unchanged(pipe, data):
    before = snapshot(pipe)
    cfg = EraseDiffConfig(parameters="xattn", steps=2, lr=1e-3, inner_steps=1, **SMALL)
    delta = erase(pipe, TASK, cfg, data, 0)
    assert same(snapshot(pipe), before)
    assert delta.keys() == {f"unet.{n}" for n, _ in pipe.unet.named_parameters() if ".attn2." in n}
    assert any(not torch.equal(delta[n], before[n]) for n in delta)
    assert same(delta, erase(pipe, TASK, cfg, data, 0))
    assert not same(delta, erase(pipe, TASK, cfg, data, 1))


@pytest.mark.parametrize("part", ["remain", "forget"])
def test_training_lowers_the_part_that_has_the_weight(data, tmp_path, part):
    pipe = pipeline("velocity")
    weight = {"remain": 0.1, "forget": 1e4}[part]  # texts hardly matter to a random model: its forget loss is small
    settings = {"multiplier": "fixed", "weight": weight, "inner_steps": 0, **SMALL}
    delta = erase(pipe, TASK, EraseDiffConfig(steps=10, lr=3e-3, **settings), data, 0, tmp_path)
    assert json.loads((tmp_path / "curves.json").read_text()).keys() == {
        "loss", "remain", "forget", "lambda", "constraint",
    }  # fmt: skip
    losses = []
    for unet in (unet_with(pipe, {}), unet_with(pipe, delta)):
        with torch.no_grad():
            if part == "remain":
                parts = [slow_denoising(pipe, unet, retain_points(pipe, data, 2, 7, step)) for step in range(4)]
            else:
                parts = [slow_pseudo(pipe, unet, unet, forget_points(pipe, data, 2, 7, step)) for step in range(4)]
        losses.append(float(sum(parts)))
    assert losses[1] < 0.9 * losses[0]


def test_missing_images_name_the_concept(pipe, data):
    with pytest.raises(ValueError, match="erasediff: no images of 'queen'; make the retained images first"):
        erase(pipe, TASK, EraseDiffConfig(**SMALL), EraserData(images=data.images), 0)
