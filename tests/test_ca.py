"""CA against its formulas written out sample by sample, with a separate UNet for each model."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from resurgence.erasers import EraserData
from resurgence.erasers.gradient.ca import Ca, erase, target_of
from resurgence.erasers.gradient.image_configs import CaConfig
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import samples
from slow import (
    TASK,
    embed,
    gradients_of,
    predicted,
    relative,
    same,
    shake,
    snapshot,
    truth,
    unet_with,
    worst,
)

pytest_plugins = ("erasure_fixtures",)

CAPTIONS = ("a photo of the {}", "the {} on the ground", "a sketch of the {}")
CFG = CaConfig(batch=3, captions=CAPTIONS)


@pytest.fixture(scope="module")
def data() -> EraserData:
    g = torch.Generator().manual_seed(2)
    counts = {"street": 3, "the dog": 2}
    return EraserData(anchors={name: torch.rand(n, 3, 16, 16, generator=g) * 2 - 1 for name, n in counts.items()})


def choices(pipe, data, seed: int, step: int, batch: int) -> list[tuple]:
    """(concept, anchor, caption, x_0, noise, t) of each sample, by the objective's documented order of draws."""
    found = []
    for sample in samples(TASK.erase, batch, seed, step):
        g, anchor = sample.generator, TASK.mapping[sample.concept]
        images = data.anchors[anchor]
        image = images[int(torch.randint(len(images), (), generator=g))]
        caption = CAPTIONS[int(torch.randint(3, (), generator=g))]
        t = int(torch.randint(1000, (), generator=g))
        noise = torch.randn(4, 8, 8, generator=g)
        with torch.no_grad():
            clean = pipe.vae.encode(image[None].to(pipe.vae.dtype)).latent_dist.mean[0] * pipe.vae.config.scaling_factor
        found.append((sample.concept, anchor, caption, clean, noise, t))
    return found


def slow_loss(pipe, unet, cfg, chosen) -> torch.Tensor:
    """Any of the objectives with the anchor term, one sample at a time; `unet` is the model in training."""
    frozen, terms = unet_with(pipe, {}), []
    for concept, anchor, caption, clean, noise, t in chosen:
        a = pipe.scheduler.alphas_cumprod[t]
        x = a**0.5 * clean + (1 - a) ** 0.5 * noise.to(clean)
        erased, kept = (embed(pipe, caption.replace("{}", word)) for word in (concept, anchor))
        if cfg.loss == "noise-based":
            target = truth(pipe, clean, noise, t)
        else:
            target = predicted(pipe, frozen if cfg.target_from == "frozen" else unet, x, t, kept).detach()
        term = ((predicted(pipe, unet, x, t, erased) - target) ** 2).mean()
        if cfg.anchor_weight:
            error = predicted(pipe, unet, x, t, kept) - truth(pipe, clean, noise, t)
            term = term + cfg.anchor_weight * (error**2).mean()
        terms.append(term)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize(
    "variant", [("model-based", "frozen"), ("model-based", "current"), ("noise-based", "frozen")], ids="-".join
)
def test_loss_and_gradient_of_a_step_equal_the_formula(double, data, variant, weight):
    """The gradient shows that the target is held fixed, also when it comes from the current weights."""
    cfg = dataclasses.replace(CFG, loss=variant[0], target_from=variant[1], anchor_weight=weight)
    student = Student(double, cfg.parameters)
    objective = Ca(student, TASK, cfg, data, seed=4)
    shake(student)
    unet = unet_with(double, student.weights)
    expected = slow_loss(double, unet, cfg, choices(double, data, 4, 6, 3))
    found, shown = objective.gradient(6)
    assert float(shown["loss"]) == pytest.approx(float(expected.detach()), rel=1e-9)
    assert worst(found, gradients_of(unet, expected, list(student.weights))) < 1e-9


def test_variants_differ(pipe, data):
    """Before the first step the two sources of the target agree; once the model has moved, all variants differ."""
    losses = {}
    for moved in (False, True):
        for variant in (("model-based", "frozen"), ("model-based", "current"), ("noise-based", "frozen")):
            cfg = dataclasses.replace(CFG, loss=variant[0], target_from=variant[1])
            student = Student(pipe, cfg.parameters)
            objective = Ca(student, TASK, cfg, data, seed=0)
            if moved:
                shake(student)
            losses[moved, *variant] = float(objective.loss(0).detach())
    frozen, current = (("model-based", name) for name in ("frozen", "current"))
    assert losses[False, *frozen] == pytest.approx(losses[False, *current], rel=1e-5)
    assert losses[True, *frozen] > 1.05 * losses[True, *current]
    assert losses[False, "noise-based", "frozen"] > 2 * losses[False, *frozen]


def test_target_carries_no_gradient():
    anchor, noise = torch.ones(2, 4, 8, 8, requires_grad=True), torch.zeros(2, 4, 8, 8)
    held = target_of("model-based", noise, anchor)
    assert torch.equal(held, anchor) and not held.requires_grad
    assert target_of("noise-based", noise, anchor) is noise


def test_each_sample_draws_images_of_its_own_anchor_and_one_caption_for_both_words(pipe, data):
    objective = Ca(Student(pipe, CFG.parameters, "noise"), TASK, CFG, data, seed=0)
    seen = set()
    for step in range(30):
        rows = zip(*objective.pairs(step), strict=True)
        for sample, (x, t, noise, text, anchor_text) in zip(samples(TASK.erase, CFG.batch, 0, step), rows, strict=True):
            anchor, a = TASK.mapping[sample.concept], pipe.scheduler.alphas_cumprod[t]
            noised = [a**0.5 * clean + (1 - a) ** 0.5 * noise.to(clean) for clean in objective.latents[anchor]]
            [image] = [i for i, candidate in enumerate(noised) if relative(candidate, x) < 1e-6]
            caption = next(i for i, x in enumerate(objective.texts[sample.concept]) if torch.equal(x, text))
            assert torch.equal(anchor_text, objective.texts[anchor][caption])
            seen.add((sample.concept, image, caption))
    assert len(seen) == 3 * 3 + 2 * 3  # every image of an anchor with every caption


def test_concepts_may_share_an_anchor(pipe, data):
    task = dataclasses.replace(TASK, mapping=dict.fromkeys(TASK.erase, "street"))
    objective = Ca(Student(pipe, CFG.parameters), task, CFG, EraserData(anchors={"street": data.anchors["street"]}), 0)
    assert list(objective.latents) == ["street"] and set(objective.texts) == {"ship", "old cat", "street"}
    assert float(objective.loss(0).detach()) > 0


def test_delta_holds_the_projections_and_the_pipeline_is_unchanged(pipe, data):
    before = snapshot(pipe)
    cfg = dataclasses.replace(CFG, steps=2, lr=1e-3)
    delta = erase(pipe, TASK, cfg, data, 0)
    assert same(snapshot(pipe), before)
    projections = [
        f"unet.{n}" for n, _ in pipe.unet.named_parameters() if n.endswith(("attn2.to_k.weight", "2.to_v.weight"))
    ]
    assert sorted(delta) == sorted(projections)
    assert any(not torch.equal(w, before[n]) for n, w in delta.items())
    assert same(delta, erase(pipe, TASK, cfg, data, 0)) and not same(delta, erase(pipe, TASK, cfg, data, 1))
    full = erase(pipe, TASK, dataclasses.replace(cfg, parameters="full", steps=1), data, 0)
    assert full.keys() == {f"unet.{n}" for n, _ in pipe.unet.named_parameters()}


@pytest.mark.parametrize("changes", [{}, {"target_from": "current"}], ids=str)
def test_training_gives_the_concept_the_prediction_of_its_anchor(pipe, data, changes, tmp_path):
    cfg = dataclasses.replace(CFG, steps=25, lr=1e-2, batch=4, max_norm=None, weight_decay=0.0, **changes)
    erase(pipe, TASK, cfg, data, 0, tmp_path)
    loss = json.loads((tmp_path / "curves.json").read_text())["loss"]
    assert sum(loss[-5:]) < 0.8 * sum(loss[:5])


def test_missing_anchors_are_named(pipe, data):
    for anchors in ({}, {"street": data.anchors["street"]}, data.anchors | {"the dog": torch.zeros(0, 3, 16, 16)}):
        with pytest.raises(
            ValueError, match=r"ca: no images of '.*', the anchor of '.*'; make the anchor images first"
        ):
            erase(pipe, TASK, CFG, EraserData(anchors=anchors), 0)
