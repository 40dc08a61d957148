"""ESD against its formula written out sample by sample, with a separate UNet for each model."""

from __future__ import annotations

import json

import pytest
import torch

from resurgence.erasers import EraserData
from resurgence.erasers.gradient.esd import Esd, erase, esd_target
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import samples
from resurgence.erasers.gradient.trajectory_configs import EsdConfig
from slow import (
    TASK,
    ddim,
    embed,
    gradients_of,
    pipeline,
    predicted,
    relative,
    same,
    shake,
    snapshot,
    unet_with,
    worst,
)

pytest_plugins = ("erasure_fixtures",)

SMALL = {"ddim_steps": 4, "trajectories": 2, "template": "a photo of the {}"}


def slow_loss(pipe, unet, cfg, drawn, points) -> torch.Tensor:
    """Eq. 7, or the script of 2025, for samples that were noised to `points`."""
    frozen, terms = unet_with(pipe, {}), []
    for sample, (x, t) in zip(drawn, points, strict=True):
        text = embed(pipe, cfg.template.replace("{}", sample.concept))
        with torch.no_grad():
            empty = predicted(pipe, frozen, x, t, embed(pipe, ""))
            concept = predicted(pipe, frozen, x, t, text)
        if cfg.eta_from == "empty":
            target = (1 + cfg.eta) * empty - cfg.eta * concept
        else:
            target = (1 - cfg.eta) * concept + cfg.eta * empty
        terms.append(((predicted(pipe, unet, x, t, text) - target) ** 2).mean())
    return torch.stack(terms).mean()


def slow_points(pipe, unet, cfg, drawn) -> list[tuple[torch.Tensor, int]]:
    """x_t of each sample as the model in training reaches it, and t within the DDIM step's interval."""
    points = []
    for sample in drawn:
        g = sample.generator
        noise, stop = torch.randn(4, 8, 8, generator=g), int(torch.randint(cfg.ddim_steps, (), generator=g))
        shift = int(torch.randint(1000 // cfg.ddim_steps, (), generator=g))
        caption = cfg.template.replace("{}", sample.concept)
        t, x = list(ddim(pipe, unet, noise, caption, cfg.ddim_steps, cfg.guidance))[stop]
        points.append((x, min(t + shift, 999)))
    return points


@pytest.mark.parametrize("eta_from", ["empty", "concept"])
@pytest.mark.parametrize("x_t", ["student", "base"])
def test_loss_and_gradient_of_a_step_equal_the_formula(double, x_t, eta_from):
    cfg = EsdConfig(batch=3, eta=1.7, eta_from=eta_from, x_t=x_t, guidance=2.5, **SMALL)
    student = Student(double, cfg.parameters)
    objective = Esd(student, TASK, cfg, EraserData(), seed=4)
    shake(student)  # the student is no longer the base: who samples, and who is the target, shows
    unet, drawn = unet_with(double, student.weights), samples(TASK.erase, 3, 4, 6)
    if x_t == "student":
        points = slow_points(double, unet, cfg, drawn)
    else:
        pairs = [objective.pool.draw(sample.concept, sample.generator) for sample in drawn]
        points = [(x, int(t)) for x, t in pairs]
    expected = slow_loss(double, unet, cfg, drawn, points)
    found, shown = objective.gradient(6)
    assert float(shown["loss"]) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert worst(found, gradients_of(unet, expected, list(student.weights))) < 1e-6


def test_points_of_the_student_equal_ddim_written_out(pipe):
    cfg = EsdConfig(batch=6, guidance=2.5, **SMALL)
    student = Student(pipe, cfg.parameters)
    objective = Esd(student, TASK, cfg, EraserData(), seed=0)
    shake(student)
    drawn = samples(TASK.erase, 6, 0, 2)
    x, t, _ = objective.noisy(drawn)
    expected = slow_points(pipe, unet_with(pipe, student.weights), cfg, samples(TASK.erase, 6, 0, 2))
    assert t.tolist() == [step for _, step in expected] and len(set(t.tolist())) > 2
    assert relative(x, torch.stack([point for point, _ in expected])) < 1e-4


def test_points_of_the_base_lie_on_its_trajectories(pipe):
    cfg = EsdConfig(batch=8, x_t="base", guidance=2.5, **SMALL)
    student = Student(pipe, cfg.parameters)
    objective = Esd(student, TASK, cfg, EraserData(), seed=0)
    shake(student)
    frozen = unet_with(pipe, {})
    drawn = samples(TASK.erase, 8, 0, 0)
    x, t, _ = objective.noisy(drawn)
    assert set(t.tolist()) <= {751, 501, 251, 1}
    for sample, point, step in zip(drawn, x, t.tolist(), strict=True):
        paths = objective.pool.latents[sample.concept]  # (steps, trajectories, C, h, w)
        start = next(k for k in range(2) if any(torch.equal(point, paths[i, k]) for i in range(4)))
        path = dict(ddim(pipe, frozen, paths[0, start], f"a photo of the {sample.concept}", 4, 2.5))
        assert relative(point, path[step]) < 1e-4


@pytest.mark.parametrize("steps", [50, 7])
def test_t_lies_in_the_interval_of_its_ddim_step(steps):
    cfg = EsdConfig(batch=16, ddim_steps=steps, guidance=1.0)
    student = Student(pipeline("epsilon"), cfg.parameters)
    student.raw = lambda weights, x, t, text: torch.zeros_like(x)  # only t counts here
    objective = Esd(student, TASK, cfg, EraserData(), seed=0)
    seen = []
    for step in range(40):
        drawn = samples(TASK.erase, 16, 0, step)
        seen += objective.noisy(drawn)[1].tolist()
    width, draws = 1000 // steps, [s for step in range(40) for s in samples(TASK.erase, 16, 0, step)]
    for t, sample in zip(seen, draws, strict=True):
        torch.randn(4, 8, 8, generator=sample.generator)
        low = (steps - 1 - int(torch.randint(steps, (), generator=sample.generator))) * width + 1
        assert low <= t < low + width
    assert 0 < min(seen) <= 2 * width and 1000 - 3 * width < max(seen) <= 999
    offsets = {(t - 1) % width for t in seen}
    assert len(offsets) > 0.8 * min(width, 40)  # anywhere in the interval, not at its ends


def test_t_never_exceeds_the_last_timestep():
    """The first of 50 steps is at t = 981, its interval 20 wide: the highest draw would be t = 1000."""
    for step in range(20_000):
        g = samples(TASK.erase, 1, 0, step)[0].generator
        torch.randn(4, 8, 8, generator=g)
        if int(torch.randint(50, (), generator=g)) == 0 and int(torch.randint(20, (), generator=g)) == 19:
            break
    objective = Esd(Student(pipeline("epsilon"), "xattn"), TASK, EsdConfig(), EraserData(), seed=0)
    drawn = samples(TASK.erase, 1, 0, step)
    assert objective.noisy(drawn)[1].tolist() == [999]


def test_eta_two_from_the_concept_is_eta_one_from_empty(pipe):
    g = torch.Generator().manual_seed(0)
    empty, concept = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 4, 8, 8, generator=g)
    first, script = esd_target(empty, concept, 1.0, "empty"), esd_target(empty, concept, 2.0, "concept")
    assert torch.allclose(first, script, atol=1e-6)
    assert torch.allclose(first, 2 * empty - concept, atol=1e-6)
    assert not torch.allclose(first, esd_target(empty, concept, 1.0, "concept"), atol=0.1)
    losses = []
    for eta, start in ((1.0, "empty"), (2.0, "concept"), (2.0, "empty")):
        cfg = EsdConfig(batch=2, eta=eta, eta_from=start, x_t="base", **SMALL)
        losses.append(float(Esd(Student(pipe, "xattn"), TASK, cfg, EraserData(), 0).loss(0).detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[2] > 2 * losses[0]


def test_eta_zero_from_the_concept_asks_for_nothing(pipe):
    cfg = EsdConfig(batch=4, eta=0.0, eta_from="concept", x_t="base", **SMALL)
    assert float(Esd(Student(pipe, "xattn"), TASK, cfg, EraserData(), 0).loss(0).detach()) < 1e-10


@pytest.mark.parametrize("selection", ["xattn", "noxattn"])
def test_delta_holds_the_selected_parameters_and_the_pipeline_is_unchanged(pipe, selection):
    before = snapshot(pipe)
    cfg = EsdConfig(parameters=selection, steps=2, lr=1e-3, batch=2, **SMALL)
    delta = erase(pipe, TASK, cfg, EraserData(), 0)
    assert same(snapshot(pipe), before)
    crossed = {f"unet.{n}" for n, _ in pipe.unet.named_parameters() if ".attn2." in n}
    everything = {f"unet.{n}" for n, _ in pipe.unet.named_parameters()}
    assert delta.keys() == (crossed if selection == "xattn" else everything - crossed)
    assert any(not torch.equal(delta[n], before[n]) for n in delta)
    assert same(delta, erase(pipe, TASK, cfg, EraserData(), 0))
    assert not same(delta, erase(pipe, TASK, cfg, EraserData(), 1))


def test_training_moves_the_prediction_to_the_target(pipe, tmp_path):
    cfg = EsdConfig(steps=20, lr=5e-3, batch=4, x_t="base", **SMALL)
    erase(pipe, TASK, cfg, EraserData(), 0, tmp_path)
    loss = json.loads((tmp_path / "curves.json").read_text())["loss"]
    assert len(loss) == 20 and sum(loss[-5:]) < 0.6 * sum(loss[:5])
