"""ScissorHands against its formulas written out image by image, its projection against quadratic programs."""

from __future__ import annotations

import json

import cvxpy as cp
import numpy as np
import pytest
import torch

from resurgence.config.fields import ConfigError
from resurgence.erasers import EraserData
from resurgence.erasers.gradient import scissorhands
from resurgence.erasers.gradient.scissorhands import ScissorHands, ScissorHandsConfig, erase, fresh, project, snip
from resurgence.erasers.gradient.student import Student
from slow import TASK, gradients_of, interrupted, pipeline, same, shake, snapshot, unet_with, worst
from slow_images import CAPTIONS, flat, forget_points, retain_points, slow_denoising, slow_pseudo

pytest_plugins = ("erasure_fixtures",)

SMALL = {"batch": 3, "saliency_steps": 2, "captions": CAPTIONS}


def make(pipe, data, seed: int = 4, **settings) -> ScissorHands:
    cfg = ScissorHandsConfig(**(SMALL | settings))
    return ScissorHands(Student(pipe, cfg.parameters), TASK, cfg, data, seed)


@pytest.mark.parametrize(("saliency", "guidance"), [("gradient", 0.0), ("absolute", 0.0), ("gradient", 7.5)])
def test_the_most_salient_weights_are_trimmed_and_no_other(double, data, saliency, guidance):
    objective = make(double, data, sparsity=0.97, saliency=saliency, saliency_guidance=guidance)
    names, base = list(objective.student.weights), snapshot(double)
    parts = []
    for step in range(2):
        unet, drawn = unet_with(double, {}), forget_points(double, data, 3, 4, step, "saliency")
        parts.append(flat(gradients_of(unet, slow_denoising(double, unet, drawn, guidance), names)))
    total = (parts[0] + parts[1]).abs() if saliency == "gradient" else parts[0].abs() + parts[1].abs()
    scores = total * flat(base[n] for n in names).abs()
    count = len(scores) - int(0.97 * len(scores))
    trimmed = torch.cat([objective.trimmed[n].flatten() for n in names])
    assert int(trimmed.sum()) == count
    expected = torch.zeros(len(scores), dtype=torch.bool)
    expected[scores.argsort(descending=True)[:count]] = True
    assert torch.equal(trimmed, expected)
    for name, w in objective.student.weights.items():
        changed = w.detach() != base[name]
        assert not changed[~objective.trimmed[name]].any()
        assert torch.equal(w.detach()[objective.trimmed[name]], fresh(name, w, "normal", 4)[objective.trimmed[name]])


@pytest.mark.parametrize(("sparsity", "part"), [(0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (0.999, 0.001)])
def test_sparsity_is_the_part_that_stays(sparsity, part):
    g = torch.Generator().manual_seed(0)
    weights, gradients = ([torch.randn(50, 20, generator=g), torch.randn(1000, generator=g)] for _ in range(2))
    masks = snip(weights, gradients, sparsity)
    assert sum(int(m.sum()) for m in masks) == round(part * 2000)
    scores = [(w * d).abs() for w, d in zip(weights, gradients, strict=True)]
    inside = [float(s[m].min()) for s, m in zip(scores, masks, strict=True) if m.any()]
    outside = [float(s[~m].max()) for s, m in zip(scores, masks, strict=True) if not m.all()]
    assert not inside or not outside or min(inside) > max(outside)


def test_new_values_are_those_of_a_new_layer():
    kernel = torch.ones(64, 32, 3, 3)
    normal, kaiming = (fresh("unet.conv.weight", kernel, initial, 0) for initial in ("normal", "kaiming"))
    assert float(normal.std()) == pytest.approx(0.02, rel=0.03) and abs(float(normal.mean())) < 1e-3
    bound = (6 / (32 * 9)) ** 0.5
    assert 0.98 * bound < float(kaiming.abs().max()) <= bound
    assert float(kaiming.std()) == pytest.approx(bound / 3**0.5, rel=0.03)
    assert torch.equal(normal, fresh("unet.conv.weight", kernel, "normal", 0))
    assert not torch.equal(normal, fresh("unet.conv.weight", kernel, "normal", 1))
    assert not torch.equal(normal, fresh("unet.other.weight", kernel, "normal", 0))
    assert fresh("unet.norm.weight", torch.rand(5), "kaiming", 0).tolist() == [1.0] * 5
    assert fresh("unet.norm.bias", torch.rand(5), "normal", 0).tolist() == [0.0] * 5


def test_official_trimming_reaches_self_attention_of_two_decoder_blocks(data, monkeypatch):
    pipe = pipeline("epsilon")
    every, official = (make(pipe, data, sparsity=0.6, trim=trim) for trim in ("all", "official"))
    inside = [n for n in every.trimmed if ".attn1." in n and ("up_blocks.1.attentions.1." in n)]
    assert inside
    for name, mask in official.trimmed.items():
        assert torch.equal(mask, every.trimmed[name] if name in inside else torch.zeros_like(mask))
    with pytest.raises(ConfigError, match=r"trim = 'official': trims self-attention.*xattn-kv has none"):
        ScissorHandsConfig(parameters="xattn-kv", trim="official")
    monkeypatch.setattr(scissorhands, "SCRIPTS", ("up_blocks.7.",))
    with pytest.raises(ValueError, match=r"trim = 'official'.*trim: all"):
        make(pipe, data, trim="official")


@pytest.mark.parametrize("forget", ["ascent", "pseudo"])
def test_gradient_of_a_step_equals_the_formula(double, data, forget):
    objective = make(double, data, forget=forget, weight=0.4, projection="none", sparsity=0.99)
    shake(objective.student)
    unet = unet_with(double, objective.student.weights)
    kept = slow_denoising(double, unet, retain_points(double, data, 3, 4, 5))
    drawn = forget_points(double, data, 3, 4, 5)
    if forget == "ascent":
        erased = slow_denoising(double, unet, drawn)
        expected = kept - 0.4 * erased
    else:
        erased = slow_pseudo(double, unet, unet_with(double, objective.student.weights), drawn)
        expected = kept + 0.4 * erased
    found, shown = objective.gradient(5)
    assert float(shown["loss"]) == pytest.approx(float(expected.detach()), rel=1e-9)
    assert float(shown["remain"]) == pytest.approx(float(kept.detach()), rel=1e-9)
    assert float(shown["forget"]) == pytest.approx(float(erased.detach()), rel=1e-9)
    assert worst(found, gradients_of(unet, expected, list(objective.student.weights))) < 1e-9


@pytest.mark.parametrize(("projection", "weight"), [("remain", 30.0), ("forget", 0.2)])
def test_projection_never_works_against_its_gradient(double, data, projection, weight):
    objective = make(double, data, projection=projection, weight=weight, sparsity=0.99)
    plain = make(double, data, projection="none", weight=weight, sparsity=0.99)
    against = 0
    for step in range(3):
        unet = unet_with(double, objective.student.weights)
        names = list(objective.student.weights)
        if projection == "remain":
            loss = slow_denoising(double, unet, retain_points(double, data, 3, 4, step))
        else:
            loss = -slow_denoising(double, unet, forget_points(double, data, 3, 4, step))
        m = flat(gradients_of(unet, loss, names))
        u, (found, shown) = flat(plain.gradient(step)[0]), objective.gradient(step)
        v = flat(found)
        assert float(v @ m) >= -1e-12 * float(v.norm() * m.norm())
        if float(u @ m) < 0:
            against += 1
            assert float(shown["projection"]) == pytest.approx(-float(u @ m) / float(m @ m), rel=1e-9)
            assert abs(float(v @ m)) < 1e-10 * float(u.norm() * m.norm())
        else:
            assert float(shown["projection"]) == 0 and torch.equal(u, v)
    assert against  # else the test shows nothing


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_projection_solves_the_quadratic_program(sign):
    g = np.random.default_rng(1)
    m = g.normal(size=12)
    u = g.normal(size=12) + sign * 2 * m
    v = cp.Variable(12)
    cp.Problem(cp.Minimize(cp.sum_squares(v - u)), [m @ v >= 0]).solve(solver="CLARABEL")
    parts = [[torch.tensor(x[:5]), torch.tensor(x[5:]).view(7, 1)] for x in (u, m)]
    found, factor = project(*parts)
    assert [x.shape for x in found] == [x.shape for x in parts[0]]
    assert np.allclose(flat(found), v.value, atol=1e-5)
    assert (float(factor) > 0) == (sign < 0)
    if sign > 0:
        assert all(torch.equal(a, b) for a, b in zip(found, parts[0], strict=True))


@pytest.mark.parametrize("margin", [0.5, 4.0])
def test_margin_is_the_lower_bound_of_the_dual(margin):
    g = np.random.default_rng(1)
    m = g.normal(size=12)
    u = g.normal(size=12) - 2 * m
    x = cp.Variable()  # min 1/2 ||u + x m||^2 subject to x >= margin
    cp.Problem(cp.Minimize(cp.sum_squares(u + x * m) / 2), [x >= margin]).solve(solver="CLARABEL")
    found, factor = project([torch.tensor(u)], [torch.tensor(m)], margin)
    assert float(factor) == pytest.approx(float(x.value), abs=1e-5)
    assert np.allclose(found[0], u + x.value * m, atol=1e-4)


def test_a_gradient_of_zero_projects_nothing():
    u, zero = [torch.tensor([1.0, -2.0])], [torch.zeros(2)]
    found, factor = project(u, zero)
    assert torch.equal(found[0], u[0]) and float(factor) == 0


def test_delta_holds_the_selected_parameters_and_the_pipeline_is_unchanged(pipe, data):
    before = snapshot(pipe)
    cfg = ScissorHandsConfig(parameters="xattn", steps=2, lr=1e-3, sparsity=0.9, **SMALL)
    delta = erase(pipe, TASK, cfg, data, 0)
    assert same(snapshot(pipe), before)
    assert delta.keys() == {f"unet.{n}" for n, _ in pipe.unet.named_parameters() if ".attn2." in n}
    assert same(delta, erase(pipe, TASK, cfg, data, 0))
    assert not same(delta, erase(pipe, TASK, cfg, data, 1))


def test_an_interrupted_run_goes_on_bit_for_bit(pipe, data, tmp_path, monkeypatch):
    cfg = ScissorHandsConfig(steps=3, lr=1e-3, sparsity=0.9, checkpoints=(1,), **SMALL)
    whole = erase(pipe, TASK, cfg, data, 0)
    assert whole.keys() == {f"unet.{n}" for n, _ in pipe.unet.named_parameters()}
    kept = EraserData(images=data.images, retained=data.retained, state=tmp_path / "state")
    resumed, steps = interrupted(monkeypatch, ScissorHands, "gradient", lambda: erase(pipe, TASK, cfg, kept, 0), 2)
    assert same(resumed, whole) and steps == [0, 1, 2, 1, 2]


def test_training_lowers_the_loss(pipe, data, tmp_path):
    cfg = ScissorHandsConfig(steps=12, lr=4e-3, sparsity=0.99, **SMALL)
    erase(pipe, TASK, cfg, data, 0, tmp_path)
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert curves.keys() == {"loss", "remain", "forget", "projection"}
    assert sum(curves["loss"][-4:]) < 0.9 * sum(curves["loss"][:4])


def test_missing_images_name_the_concept(pipe, data):
    with pytest.raises(ValueError, match="scissorhands: no images of 'ship'; make the concept images first"):
        erase(pipe, TASK, ScissorHandsConfig(**SMALL), EraserData(retained=data.retained), 0)
