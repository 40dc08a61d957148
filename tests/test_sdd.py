"""SDD against its formula written out sample by sample: student, teacher and base are three separate UNets."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from resurgence.erasers import EraserData
from resurgence.erasers.gradient.sdd import Sdd, erase
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import samples
from resurgence.erasers.gradient.trajectories import stops
from resurgence.erasers.gradient.trajectory_configs import SddConfig
from slow import (
    TASK,
    ddim,
    embed,
    gradients_of,
    predicted,
    relative,
    same,
    shake,
    shaken,
    snapshot,
    unet_with,
    worst,
)

pytest_plugins = ("erasure_fixtures",)

CFG = SddConfig(batch=3, ddim_steps=4, trajectories=2, guidance=2.5, template="a photo of the {}")


def trained(pipe, cfg, seed: int = 0) -> tuple[Student, Sdd]:
    """An objective in the middle of a training: student, teacher and base differ."""
    student = Student(pipe, cfg.parameters)
    objective = Sdd(student, TASK, cfg, EraserData(), seed)
    shake(student, seed=3)
    student.average = shaken(student.weights, seed=8)
    return student, objective


def slow_points(pipe, teacher, cfg, drawn) -> list[tuple[torch.Tensor, int]]:
    """z_t and t of each sample on a trajectory of the teacher."""
    points = []
    captions = {c: cfg.template.replace("{}", c) for c in TASK.erase}
    for sample in drawn:
        g = sample.generator
        noise, stop = torch.randn(4, 8, 8, generator=g), int(torch.randint(cfg.ddim_steps, (), generator=g))
        shift = int(torch.randint(1000 // cfg.ddim_steps, (), generator=g))
        caption = captions[sample.concept] if cfg.sampled_for == "concept" else ", ".join(captions.values())
        t, z = list(ddim(pipe, teacher, noise, caption, cfg.ddim_steps, cfg.guidance))[stop]
        points.append((z, min(t + shift, 999)))
    return points


def slow_loss(pipe, unet, cfg, drawn, points) -> torch.Tensor:
    """mean over the samples of || eps(z_t, c*) - sg eps(z_t, "") ||^2, both of the model in training."""
    terms = []
    for sample, (z, t) in zip(drawn, points, strict=True):
        target = predicted(pipe, unet, z, t, embed(pipe, "")).detach()
        found = predicted(pipe, unet, z, t, embed(pipe, cfg.template.replace("{}", sample.concept)))
        terms.append(((found - target) ** 2).mean())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("sampled_for", ["concept", "all"])
def test_loss_and_gradient_of_a_step_equal_the_formula(double, sampled_for):
    """The gradient shows that the target, though of the current weights, is held fixed."""
    cfg = dataclasses.replace(CFG, sampled_for=sampled_for)
    student, objective = trained(double, cfg, seed=4)
    points = slow_points(double, unet_with(double, student.average), cfg, samples(TASK.erase, 3, 4, 6))
    unet = unet_with(double, student.weights)
    expected = slow_loss(double, unet, cfg, samples(TASK.erase, 3, 4, 6), points)
    found, shown = objective.gradient(6)
    assert float(shown["loss"]) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert worst(found, gradients_of(unet, expected, list(student.weights))) < 1e-6


def test_points_are_sampled_by_the_teacher(pipe):
    cfg = dataclasses.replace(CFG, batch=6)
    student, objective = trained(pipe, cfg)
    z, t, _ = objective.noisy(samples(TASK.erase, 6, 0, 1))
    drawn = samples(TASK.erase, 6, 0, 1)
    expected = slow_points(pipe, unet_with(pipe, student.average), cfg, drawn)
    assert t.tolist() == [step for _, step in expected] and len(set(t.tolist())) > 2
    assert relative(z, torch.stack([point for point, _ in expected])) < 1e-4
    others = slow_points(pipe, unet_with(pipe, student.weights), cfg, samples(TASK.erase, 6, 0, 1))
    assert relative(z, torch.stack([point for point, _ in others])) > 1e-2
    assert not z.requires_grad


def test_points_of_the_base_do_not_follow_the_training(pipe):
    cfg = dataclasses.replace(CFG, z_t="base")
    student, objective = trained(pipe, cfg, seed=2)
    drawn = samples(TASK.erase, 3, 2, 0)
    points = [objective.pool.draw(sample.concept, sample.generator) for sample in drawn]
    unet = unet_with(pipe, student.weights)
    expected = slow_loss(pipe, unet, cfg, drawn, [(z, int(t)) for z, t in points])
    assert float(objective.loss(0).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    frozen, concept = unet_with(pipe, {}), TASK.erase[1]
    path = objective.pool.latents[concept][:, 1]  # (steps, C, h, w)
    slow = ddim(pipe, frozen, path[0], f"a photo of the {concept}", 4, 2.5)
    assert relative(path, torch.stack([z for _, z in slow])) < 1e-4


def test_all_concepts_in_one_caption_must_fit(pipe):
    names = tuple(f"the old painting number {i}" for i in range(9))
    long = dataclasses.replace(TASK, erase=names, mapping=dict.fromkeys(names, "street"), labels=())
    with pytest.raises(ValueError, match="use a shorter template"):
        Sdd(Student(pipe, "xattn"), long, dataclasses.replace(CFG, sampled_for="all"), EraserData(), 0)


def test_stops_are_uniform_and_within_the_interval():
    pairs = [
        pair
        for step in range(200)
        for pair in zip(*stops([s.generator for s in samples(["a"], 8, 0, step)], 5, 1000), strict=True)
    ]
    counts = torch.bincount(torch.tensor([step for step, _ in pairs]), minlength=5)
    assert len(counts) == 5 and counts.min() > 0.85 * 320 and counts.max() < 1.15 * 320
    shifts = torch.tensor([shift for _, shift in pairs])
    assert 0 <= shifts.min() < 5 and 194 < shifts.max() < 200
    assert abs(float(shifts.float().mean()) - 99.5) < 6


def test_t_never_exceeds_the_last_timestep(pipe, monkeypatch):
    """The first of 4 steps is at t = 751, its interval 250 wide: the highest draw would be t = 1000."""
    monkeypatch.setattr(
        "resurgence.erasers.gradient.trajectories.stops", lambda drawn, *_: ([0] * len(drawn), [249] * len(drawn))
    )
    _, objective = trained(pipe, CFG)
    assert objective.noisy(samples(TASK.erase, 3, 0, 0))[1].tolist() == [999] * 3


def test_the_teacher_is_returned(pipe):
    """After one step the average has gone 1 - m of the student's way, so two decays tell where the student is."""
    weights = {f"unet.{n}": p for n, p in pipe.unet.named_parameters() if ".attn2." in n}
    moved = {}
    for ema in (0.5, 0.9):
        cfg = dataclasses.replace(CFG, steps=1, lr=1e-2, ema=ema)
        delta = erase(pipe, TASK, cfg, EraserData(), 0)
        moved[ema] = [(delta[n] - w.detach()) / (1 - ema) for n, w in weights.items()]
    assert worst(moved[0.5], moved[0.9]) < 1e-4
    assert max(float(step.abs().max()) for step in moved[0.5]) == pytest.approx(1e-2, rel=0.02)  # Adam's first step


@pytest.mark.parametrize("z_t", ["teacher", "base"])
def test_delta_holds_the_selected_parameters_and_the_pipeline_is_unchanged(pipe, z_t):
    before = snapshot(pipe)
    cfg = dataclasses.replace(CFG, steps=2, lr=1e-3, z_t=z_t)
    delta = erase(pipe, TASK, cfg, EraserData(), 0)
    assert same(snapshot(pipe), before)
    assert delta.keys() == {f"unet.{n}" for n, _ in pipe.unet.named_parameters() if ".attn2." in n}
    assert any(not torch.equal(w, before[n]) for n, w in delta.items())
    assert same(delta, erase(pipe, TASK, cfg, EraserData(), 0))
    assert not same(delta, erase(pipe, TASK, cfg, EraserData(), 1))


def test_training_makes_the_concept_say_what_nothing_says(pipe, tmp_path):
    cfg = dataclasses.replace(CFG, steps=20, lr=5e-3, batch=4, ema=0.5, z_t="base")
    erase(pipe, TASK, cfg, EraserData(), 0, tmp_path)
    loss = json.loads((tmp_path / "curves.json").read_text())["loss"]
    assert len(loss) == 20 and sum(loss[-5:]) < 0.5 * sum(loss[:5])
