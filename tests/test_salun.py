"""SalUn against its formula written out image by image, and what a mask promises: the other weights do not move."""

from __future__ import annotations

import json

import pytest
import torch

from resurgence.erasers import EraserData
from resurgence.erasers.gradient.forget_retain import ForgetRetain, kth_largest, largest
from resurgence.erasers.gradient.salun import Salun, SalunConfig, erase, saliency_mask
from resurgence.erasers.gradient.student import Student
from slow import TASK, gradients_of, interrupted, same, shake, snapshot, unet_with, worst
from slow_images import CAPTIONS, flat, forget_points, retain_points, slow_denoising, slow_pseudo

pytest_plugins = ("erasure_fixtures",)

SMALL = {"batch": 3, "mask_steps": 2, "captions": CAPTIONS}


def make(pipe, data, seed: int = 4, **settings) -> Salun:
    cfg = SalunConfig(**(SMALL | settings))
    return Salun(Student(pipe, cfg.parameters), TASK, cfg, data, seed)


def slow_saliency(pipe, data, names, steps: int, guidance: float, seed: int = 4) -> list[torch.Tensor]:
    """The magnitude of the gradient at the base, accumulated over batches."""
    total = None
    for step in range(steps):
        unet, drawn = unet_with(pipe, {}), forget_points(pipe, data, 3, seed, step, "saliency")
        found = gradients_of(unet, slow_denoising(pipe, unet, drawn, guidance), names)
        total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
    return [g.abs() for g in total]


@pytest.mark.parametrize("guidance", [0.0, 7.5])
def test_mask_is_the_top_of_the_accumulated_gradient_over_all_tensors(double, data, guidance):
    objective = make(double, data, fraction=0.3, mask_guidance=guidance)
    names = list(objective.student.weights)
    scores = flat(slow_saliency(double, data, names, 2, guidance))
    count = int(0.3 * len(scores))
    expected = torch.zeros(len(scores), dtype=torch.bool)
    expected[scores.argsort(descending=True)[:count]] = True
    found = torch.cat([m.flatten() for m in objective.mask])
    assert int(found.sum()) == count and torch.equal(found, expected)
    shares = [float(m.float().mean()) for m in objective.mask]
    assert min(shares) < 0.15 < 0.45 < max(shares)  # one threshold for all: no equal shares


@pytest.mark.parametrize("target_from", ["current", "frozen"])
def test_loss_and_masked_gradient_of_a_step_equal_the_formula(double, data, target_from):
    objective = make(double, data, alpha=0.7, target_from=target_from)
    shake(objective.student)  # current and frozen differ, and so do the tasks
    unet = unet_with(double, objective.student.weights)
    teacher = unet_with(double, objective.student.weights if target_from == "current" else {})
    forget = slow_pseudo(double, unet, teacher, forget_points(double, data, 3, 4, 5))
    expected = forget + 0.7 * slow_denoising(double, unet, retain_points(double, data, 3, 4, 5))
    found, shown = objective.gradient(5)
    assert float(shown["loss"]) == pytest.approx(float(expected.detach()), rel=1e-9)
    slow = gradients_of(unet, expected, list(objective.student.weights))
    assert worst(found, [g * m for g, m in zip(slow, objective.mask, strict=True)]) < 1e-9
    assert worst(found, slow) > 0.01  # the mask takes something away


@pytest.mark.parametrize(("selection", "fraction"), [("full", 0.5), ("xattn", 0.1)])
def test_weights_outside_the_mask_are_those_of_the_base(pipe, data, selection, fraction):
    before = snapshot(pipe)
    settings = {"parameters": selection, "fraction": fraction}
    cfg = SalunConfig(steps=3, lr=1e-3, ema=0.9, max_norm=1.0, **(SMALL | settings))
    delta = erase(pipe, TASK, cfg, data, 0)
    crossed = {f"unet.{n}" for n, _ in pipe.unet.named_parameters() if selection == "full" or ".attn2." in n}
    assert delta.keys() == crossed and same(snapshot(pipe), before)
    mask = dict(zip(delta, make(pipe, data, 0, **settings).mask, strict=True))
    masked = sum(int(m.sum()) for m in mask.values())
    assert masked == int(fraction * sum(m.numel() for m in mask.values()))
    for name, value in delta.items():
        assert torch.equal(value[~mask[name]], before[name][~mask[name]])
    moved = sum(int((value != before[name]).sum()) for name, value in delta.items())
    assert moved > 0.98 * masked


def test_a_fraction_of_one_masks_nothing(pipe, data):
    objective = make(pipe, data, fraction=1.0)
    assert all(bool(m.all()) for m in objective.mask)
    found = objective.gradient(0)[0]
    loss = objective.loss(0)
    assert worst(found, list(torch.autograd.grad(loss, list(objective.student.weights.values())))) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["random", "ties", "subnormal", "signed zeros"])
def test_threshold_equals_kthvalue(dtype, kind):
    g = torch.Generator().manual_seed(1)
    values = torch.randn(97, generator=g, dtype=torch.float64)
    if kind == "ties":
        values = torch.randint(-2, 3, (97,), generator=g).double()
    if kind == "subnormal":
        values *= torch.finfo(dtype).tiny / 8
    if kind == "signed zeros":
        values *= torch.randint(2, (97,), generator=g)
    values[0] = torch.inf
    values = values.to(dtype)
    parts = [values[:1].view(()), values[1:31].view(5, 6).T, values[31:]]  # one of them not contiguous
    for count in (1, 2, 30, 48, 49, 96, 97):
        assert kth_largest(parts, count) == float(values.kthvalue(len(values) - count + 1).values)


def test_largest_takes_exactly_as_many_also_among_equals():
    g = torch.Generator().manual_seed(0)
    scores = [torch.randint(5, (7, 3), generator=g).float(), torch.randint(5, (40,), generator=g).float()]
    every = torch.cat([s.flatten() for s in scores])
    for count in range(len(every) + 1):
        found = largest(scores, count)
        assert [m.shape for m in found] == [s.shape for s in scores]
        chosen = torch.cat([m.flatten() for m in found])
        assert int(chosen.sum()) == count
        assert torch.equal(every[chosen].sort().values, every.sort().values[len(every) - count :])
    assert saliency_mask([torch.tensor([-3.0, 1.0]), torch.tensor([2.0, 0.5])], 0.5)[0].tolist() == [True, False]


def test_forget_and_retained_draws_are_not_the_same(pipe, data):
    pairs = ForgetRetain(Student(pipe, "xattn"), TASK, SalunConfig(batch=3, captions=CAPTIONS), data, 0)
    forget, retain, first = pairs.forget(0), pairs.retain(0), pairs.forget(0, "saliency")
    assert not torch.equal(forget.truth, retain.truth) and not torch.equal(forget.truth, first.truth)
    assert forget.t.tolist() != retain.t.tolist()
    assert torch.equal(retain.text, retain.other) and not torch.equal(forget.text, forget.other)


def test_delta_holds_the_selected_parameters_and_the_pipeline_is_unchanged(pipe, data):
    before = snapshot(pipe)
    cfg = SalunConfig(parameters="xattn", steps=2, lr=1e-3, **SMALL)
    delta = erase(pipe, TASK, cfg, data, 0)
    assert same(snapshot(pipe), before)
    assert delta.keys() == {f"unet.{n}" for n, _ in pipe.unet.named_parameters() if ".attn2." in n}
    assert same(delta, erase(pipe, TASK, cfg, data, 0))
    assert not same(delta, erase(pipe, TASK, cfg, data, 1))


def test_an_interrupted_run_goes_on_with_the_same_mask(pipe, data, tmp_path, monkeypatch):
    cfg = SalunConfig(steps=3, lr=1e-3, checkpoints=(1,), **SMALL)
    whole = erase(pipe, TASK, cfg, data, 0)
    kept = EraserData(images=data.images, retained=data.retained, state=tmp_path / "state")
    resumed, steps = interrupted(monkeypatch, Salun, "gradient", lambda: erase(pipe, TASK, cfg, kept, 0), 2)
    assert same(resumed, whole) and steps == [0, 1, 2, 1, 2]


def test_training_lowers_the_loss(pipe, data, tmp_path):
    cfg = SalunConfig(steps=16, lr=4e-3, alpha=0.1, **(SMALL | {"batch": 4}))
    erase(pipe, TASK, cfg, data, 0, tmp_path)
    loss = json.loads((tmp_path / "curves.json").read_text())["loss"]
    assert len(loss) == 16 and sum(loss[-6:]) < 0.8 * sum(loss[:6])


@pytest.mark.parametrize(("part", "concept"), [("images", "old cat"), ("retained", "bird")])
def test_missing_images_name_the_concept(pipe, data, part, concept):
    parts = {"images": dict(data.images), "retained": dict(data.retained)}
    del parts[part][concept]
    with pytest.raises(ValueError, match=f"salun.*{concept}.*images first"):
        erase(pipe, TASK, SalunConfig(**SMALL), EraserData(**parts), 0)
