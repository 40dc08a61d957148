"""SPM against its formula, with adapters that run beside each layer as forward hooks instead of merged weights."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resurgence.diffusion.deltas import DELTA_FILE, apply_delta, load_delta, lora_delta
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.spm import Adapted, Membranes, Spm, SpmConfig, anchor, erase, retained_anchors
from resurgence.erasers.gradient.trainer import samples
from resurgence.erasers.lora import WEIGHTS, load_loras
from resurgence.seeds import seed_of
from slow import TASK, ddim, embed, pipeline, predicted, relative, same, snapshot, unet_with, worst

pytest_plugins = ("erasure_fixtures",)

CFG = SpmConfig(
    batch=2, ddim_steps=4, trajectories=2, guidance=2.5, template="a photo of the {}", anchors=3, anchor_weight=20.0
)
LIGHT = dataclasses.replace(CFG, parameters="xattn", ddim_steps=2, trajectories=1, anchors=1)
SHIP = dataclasses.replace(TASK, erase=("ship",), mapping={"ship": "street"})


def shake(student: Adapted) -> None:
    """Give the adapters an effect: B is zero at first."""
    g = torch.Generator().manual_seed(5)
    for name, w in student.weights.items():
        if name.endswith("up"):
            w.data.copy_(0.3 * torch.randn(w.shape, generator=g))


def parts_of(student: Adapted, adapter: str) -> dict[str, list[torch.Tensor]]:
    """module -> its factors [down, up] as leaves of their own, for one adapter."""
    found: dict[str, list[torch.Tensor]] = {}
    for name, w in student.weights.items():
        owner, parameter, side = name.split("|")
        if owner == adapter:
            module = parameter.removeprefix("unet.").removesuffix(".weight")
            found.setdefault(module, [None, None])[side == "up"] = w.detach().clone().requires_grad_()
    return found


def hooked(pipe, adapters: list[dict[str, list[torch.Tensor]]], scale: float):
    """A copy of the base's UNet in which every adapted layer adds scale * B(A(its input))."""
    unet = unet_with(pipe, {})
    for adapter in adapters:
        for name, (down, up) in adapter.items():
            module = unet.get_submodule(name)

            def add(module, inputs, output, down=down, up=up):
                if isinstance(module, nn.Linear):
                    return output + scale * F.linear(F.linear(inputs[0], down), up)
                low = F.conv2d(inputs[0], down, stride=module.stride, padding=module.padding)
                return output + scale * F.conv2d(low, up)

            module.register_forward_hook(add)
    return unet


def slow_anchor(text: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """A direction drawn until it is accepted, with its length."""
    while True:
        direction = torch.randn(text.shape, generator=g)
        near = (text * direction).sum() / (text.norm() * direction.norm())
        if float(torch.rand((), generator=g)) < 1 - float(near):
            length = 0.8 + 0.4 * float(torch.rand((), generator=g))
            return length * text.norm() * direction / direction.norm()


def slow_loss(pipe, unet, cfg, task, pool, seed: int, step: int) -> torch.Tensor:
    """The two terms, one sample and one anchor at a time."""

    def captions(g: torch.Generator, text: torch.Tensor) -> list[torch.Tensor]:
        every = [embed(pipe, cfg.template.replace("{}", concept)) for concept in task.retain]
        far = [min(1.0, 1 - float((text * e).sum() / (text.norm() * e.norm()))) for e in every]
        return [
            every[k] for k in torch.multinomial(torch.tensor(far, dtype=text.dtype), cfg.anchors, True, generator=g)
        ]

    frozen, erasing, anchoring = unet_with(pipe, {}), [], []
    stream = seed_of("spm adapter", *task.erase, seed) if cfg.adapters == "concept" else seed
    for sample in samples(task.erase, cfg.batch, stream, step):
        g, caption = sample.generator, cfg.template.replace("{}", sample.concept)
        if pool is not None:
            x, t = pool.draw(sample.concept, g)
        else:
            noise, stop = torch.randn(4, 8, 8, generator=g), int(torch.randint(cfg.ddim_steps, (), generator=g))
            t, x = list(ddim(pipe, unet, noise, caption, cfg.ddim_steps, cfg.guidance))[stop]
            t = min(t + int(torch.randint(1000 // cfg.ddim_steps, (), generator=g)), 999)
        text = embed(pipe, caption)
        word = cfg.template.replace("{}", task.mapping[sample.concept]) if cfg.surrogate == "mapping" else ""
        with torch.no_grad():
            start = predicted(pipe, frozen, x, t, embed(pipe, word))
            target = start - cfg.eta * (predicted(pipe, frozen, x, t, text) - start)
        erasing.append(((predicted(pipe, unet, x, t, text) - target) ** 2).mean())
        for a in [slow_anchor(text, g) for _ in range(cfg.anchors)] if cfg.anchoring == "latent" else captions(g, text):
            kept = predicted(pipe, frozen, x, t, a).detach()
            anchoring.append(((predicted(pipe, unet, x, t, a) - kept) ** 2).mean())
    return torch.stack(erasing).mean() + cfg.anchor_weight * torch.stack(anchoring).mean()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"x_t": "student", "surrogate": "mapping", "eta": 0.6, "scale": 0.7, "adapters": "shared"},
        {"anchoring": "retained"},
    ],
    ids=str,
)
def test_loss_and_gradient_of_a_step_equal_the_formula(double, changes):
    """Linear layers and convolutions, also those with stride, of the whole UNet."""
    cfg = dataclasses.replace(CFG, rank=2, **changes)
    student = Adapted(double, cfg, ["all"], 4)
    objective = Spm(student, TASK, cfg, EraserData(), 4)
    shake(student)
    factors = parts_of(student, "all")
    unet = hooked(double, [factors], cfg.scale)
    expected = slow_loss(double, unet, cfg, TASK, objective.pool, 4, 6)
    expected.backward()
    found, shown = objective.gradient(6)
    assert float(shown["loss"]) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(shown["loss"]) == pytest.approx(float(shown["erasing"] + cfg.anchor_weight * shown["anchoring"]))
    assert float(shown["anchoring"]) > 1e-3  # the second term counts
    assert worst(found, [w.grad for pair in factors.values() for w in pair]) < 1e-6


@pytest.mark.parametrize("parameters", ["full", "xattn"])
def test_merged_equals_applied(pipe, parameters):
    """W + scale sum B A gives what the adapters of two concepts give beside the layers, B after A."""
    cfg = dataclasses.replace(CFG, parameters=parameters, rank=2, scale=0.7)
    student = Adapted(pipe, cfg, ["ship", "old cat"], 0)
    shake(student)
    applied = hooked(pipe, [parts_of(student, "ship"), parts_of(student, "old cat")], 0.7)
    merged = unet_with(pipe, student.merged(student.weights))
    g = torch.Generator().manual_seed(0)
    x, text = torch.randn(4, 8, 8, generator=g), embed(pipe, "a sketch of the queen")
    with torch.no_grad():
        base, a, b = (predicted(pipe, unet, x, 500, text) for unet in (unet_with(pipe, {}), applied, merged))
    assert relative(b, a) < 1e-5 and relative(base, a) > 0.01
    student.scale = 1.4
    assert relative(student(x[None], torch.tensor([500]), text[None])[0], a) > 0.005


def test_adapters_start_at_the_base_and_the_frozen_model_is_the_base(pipe):
    student = Adapted(pipe, CFG, ["ship"], 0)
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(1, 4, 8, 8, generator=g), torch.tensor([300])
    text = embed(pipe, "a photo of the ship")[None]
    before = student.frozen(x, t, text)
    assert relative(student(x, t, text), before) < 1e-6
    for name, w in student.weights.items():
        if name.endswith("down"):
            bound = 1 / math.sqrt(w[0].numel())
            assert 0.3 * bound < float(w.detach().abs().mean()) < 0.7 * bound and float(w.detach().abs().max()) <= bound
    shake(student)
    assert torch.equal(student.frozen(x, t, text), before) and relative(student(x, t, text), before) > 0.05


def test_each_adapter_is_trained_as_if_alone(plain, tmp_path):
    cfg = dataclasses.replace(CFG, steps=2, lr=1e-2, x_t="student", ddim_steps=2)
    for name, task in (("both", TASK), ("alone", SHIP)):
        (tmp_path / name).mkdir()
        erase(plain, task, cfg, EraserData(), 0, tmp_path / name)
    both, alone = (load_loras(tmp_path / name / "adapters", ["ship"])["ship"] for name in ("both", "alone"))
    assert both.keys() == alone.keys() and len(both) > 50
    assert all(torch.equal(a, b) for n in both for a, b in zip(both[n], alone[n], strict=True))


def test_delta_is_the_sum_of_the_saved_adapters(pipe, tmp_path):
    """Each file is a LoRA as diffusers writes it; also a convolution's."""
    before = snapshot(pipe)
    cfg = dataclasses.replace(CFG, steps=3, lr=1e-2, scale=0.5)
    delta = erase(pipe, TASK, cfg, EraserData(), 0, tmp_path)
    assert same(snapshot(pipe), before)
    parts = [lora_delta(pipe, tmp_path / "adapters" / name / WEIGHTS) for name in ("ship", "old-cat")]
    kinds = (nn.Linear, nn.Conv2d)
    assert delta.keys() == {f"unet.{n}.weight" for n, m in pipe.unet.named_modules() if isinstance(m, kinds)}
    for name, w in delta.items():
        changes = [part[name] - before[name] for part in parts]
        assert torch.allclose(w - before[name], changes[0] + changes[1], atol=1e-6)
        assert all(float(change.norm()) > 0 for change in changes)
    assert json.loads((tmp_path / "curves.json").read_text()).keys() == {"loss", "erasing", "anchoring"}


def test_diffusers_reads_an_adapter(tmp_path):
    pipe = pipeline("epsilon")
    delta = erase(pipe, SHIP, dataclasses.replace(CFG, steps=2, lr=1e-2, scale=0.5), EraserData(), 0, tmp_path)
    x, t, text = torch.ones(1, 4, 8, 8), torch.tensor([300]), embed(pipe, "a photo of the ship")[None]
    with torch.no_grad():
        base = pipe.unet(x, t, text).sample
        pipe.load_lora_weights(tmp_path / "adapters" / "ship", weight_name=WEIGHTS)
        loaded = pipe.unet(x, t, text).sample
    merged = pipeline("epsilon")
    apply_delta(merged, delta)
    with torch.no_grad():
        expected = merged.unet(x, t, text).sample
    assert relative(loaded, expected) < 1e-5 and relative(base, expected) > 1e-3


@pytest.mark.parametrize(
    ("parameters", "layers", "holds"),
    [
        ("xattn", "all", lambda n: ".attn2." in n), ("full", "transformers", lambda n: ".attentions." in n),
        ("noxattn", "all", lambda n: ".attn2." not in n), ("selfattn", "transformers", lambda n: ".attn1." in n),
    ],
)  # fmt: skip
def test_delta_holds_the_selected_layers(plain, parameters, layers, holds):
    cfg = dataclasses.replace(CFG, parameters=parameters, layers=layers, steps=1, lr=1e-2)
    delta = erase(plain, SHIP, cfg, EraserData(), 0)
    kinds, before = (nn.Linear, nn.Conv2d), snapshot(plain)
    names = {f"unet.{n}.weight" for n, m in plain.unet.named_modules() if isinstance(m, kinds)}
    assert delta.keys() == {n for n in names if holds(n)}
    assert any(not torch.equal(w, before[n]) for n, w in delta.items())


def test_same_seed_same_delta(plain):
    cfg = dataclasses.replace(LIGHT, steps=2, lr=1e-2)
    first = erase(plain, TASK, cfg, EraserData(), 0)
    assert same(first, erase(plain, TASK, cfg, EraserData(), 0))
    assert not same(first, erase(plain, TASK, cfg, EraserData(), 1))


def test_shared_adapter_learns_all_concepts(plain, tmp_path):
    cfg = dataclasses.replace(CFG, adapters="shared", steps=2, lr=1e-2)
    delta = erase(plain, TASK, cfg, EraserData(), 0, tmp_path)
    assert [p.name for p in (tmp_path / "adapters").iterdir()] == ["shared"]
    change = delta["unet.conv_in.weight"] - plain.unet.conv_in.weight.detach()
    assert torch.linalg.matrix_rank(change.flatten(1), rtol=1e-3) == 1  # of two it would be 2
    apart = erase(plain, TASK, dataclasses.replace(cfg, adapters="concept"), EraserData(), 0)
    change = apart["unet.conv_in.weight"] - plain.unet.conv_in.weight.detach()
    assert torch.linalg.matrix_rank(change.flatten(1), rtol=1e-3) == 2


@pytest.mark.parametrize("with_state", [False, True])
def test_a_checkpoint_is_the_delta_of_a_shorter_run(plain, tmp_path, with_state):
    cfg = dataclasses.replace(LIGHT, steps=2, lr=1e-2, checkpoints=(1, 2), ema=0.5)
    data = EraserData(state=tmp_path / "state" if with_state else None)
    (tmp_path / "out").mkdir()
    delta = erase(plain, SHIP, cfg, data, 0, tmp_path / "out")
    shorter = erase(plain, SHIP, dataclasses.replace(cfg, steps=1, checkpoints=()), EraserData(), 0)
    assert same(load_delta(tmp_path / "out" / "step-000002" / DELTA_FILE), delta)
    assert same(load_delta(tmp_path / "out" / "step-000001" / DELTA_FILE), shorter)


def test_anchors_are_drawn_with_probability_one_minus_cosine():
    """In the plane the accepted angles have a density proportional to min(1, 1 - cos), with the means below."""
    text, g = torch.tensor([[3.0, 4.0]]), torch.Generator().manual_seed(0)
    state = torch.get_rng_state()
    found = torch.stack([anchor(text, g) for _ in range(4000)])  # (N, 1, 2)
    assert torch.equal(torch.get_rng_state(), state)
    length = found.flatten(1).norm(dim=1) / 5
    assert 0.8 <= float(length.min()) < 0.81 and 1.19 < float(length.max()) <= 1.2
    assert float(length.mean()) == pytest.approx(1.0, abs=0.01)
    near = (found.flatten(1) @ text.flatten()) / (5 * 5 * length)
    assert float(near.mean()) == pytest.approx(-math.pi / 2 / (2 * math.pi - 2), abs=0.03)  # -0.37
    assert float((near**2).mean()) == pytest.approx((math.pi - 4 / 3) / (2 * math.pi - 2), abs=0.03)  # 0.42


def test_each_adapter_draws_noise_and_anchors_of_its_own(plain):
    """Latents on the way from noise, timesteps and the directions of anchors, of every pair of adapters."""
    cfg = dataclasses.replace(CFG, x_t="student", batch=4, ddim_steps=2)
    objective = Membranes(Adapted(plain, cfg, list(TASK.erase), 0), TASK, cfg, EraserData(), 0)
    text, drawn = torch.ones(4, 3, 8), [part.samples(2) for part in objective.parts]
    assert [{s.concept for s in part} for part in drawn] == [{"ship"}, {"old cat"}]
    noise = [torch.stack([torch.randn(4, 8, 8, generator=s.generator) for s in part]) for part in drawn]
    anchors = [part.anchors(text, samples) for part, samples in zip(objective.parts, drawn, strict=True)]
    for one, other in (noise, anchors):
        near = F.cosine_similarity(one.flatten(1)[:, None], other.flatten(1)[None], dim=2)
        assert float(near.abs().max()) < 0.9
    again = Membranes(Adapted(plain, cfg, ["ship"], 0), SHIP, cfg, EraserData(), 0).parts[0].samples(2)
    assert torch.equal(noise[0], torch.stack([torch.randn(4, 8, 8, generator=s.generator) for s in again]))


def test_captions_of_the_retained_are_drawn_in_proportion_to_their_distance():
    """Cosines 1, 0.5, 0 and -1 to the caption: shares 0, 1/5, 2/5, 2/5."""
    text = torch.tensor([[1.0, 0.0]])
    retained = torch.tensor([[[2.0, 0.0]], [[1.0, 3**0.5]], [[0.0, 1.0]], [[-4.0, 0.0]]])
    drawn = retained_anchors(text, retained, 4000, torch.Generator().manual_seed(0))
    shares = [float((drawn == e).flatten(1).all(1).float().mean()) for e in retained]
    assert shares == pytest.approx([0, 0.2, 0.4, 0.4], abs=0.03) and sum(shares) == pytest.approx(1)


def test_captions_of_the_retained_are_protected_by_anchoring_them(plain):
    """After the same training a retained caption has changed less than with random anchors."""
    changes = {}
    text, g = torch.stack([embed(plain, f"a photo of the {c}") for c in SHIP.retain]), torch.Generator().manual_seed(3)
    x, t = torch.randn(2, 4, 8, 8, generator=g), torch.tensor([500, 500])
    for anchoring in ("latent", "retained"):
        cfg = dataclasses.replace(LIGHT, anchoring=anchoring, lr=1e-2, anchor_weight=1000.0, batch=2, steps=8)
        student = Adapted(plain, cfg, ["ship"], 0)
        optimiser = torch.optim.Adam(student.weights.values(), lr=1e-2)
        objective = Membranes(student, SHIP, cfg, EraserData(), 0)
        for step in range(8):
            for w, grad in zip(student.weights.values(), objective.gradient(step)[0], strict=True):
                w.grad = grad
            optimiser.step()
        with torch.no_grad():
            changes[anchoring] = relative(student(x, t, text), student.frozen(x, t, text))
    assert changes["retained"] < 0.8 * changes["latent"]


def test_no_anchors(plain):
    cfg = dataclasses.replace(CFG, anchors=0)
    student = Adapted(plain, cfg, ["all"], 0)
    found, shown = Spm(student, TASK, cfg, EraserData(), 0).gradient(0)
    assert float(shown["anchoring"]) == 0 and float(shown["loss"]) == float(shown["erasing"]) > 0
    assert any(float(g.abs().max()) > 0 for g in found)


def test_training_lowers_both_terms_together(plain, tmp_path):
    cfg = dataclasses.replace(LIGHT, steps=15, lr=5e-2, batch=2, anchor_weight=1.0)
    erase(plain, SHIP, cfg, EraserData(), 0, tmp_path)
    loss = json.loads((tmp_path / "curves.json").read_text())["loss"]
    assert len(loss) == 15 and sum(loss[-5:]) < 0.8 * sum(loss[:5])


def test_anchoring_holds_the_anchors(plain):
    """With its weight the change for random embeddings is smaller, after the same training."""
    ends = []
    for weight in (0.0, 1000.0):
        cfg = dataclasses.replace(LIGHT, lr=1e-2, anchor_weight=weight)
        student = Adapted(plain, cfg, ["ship"], 0)
        objective = Membranes(student, SHIP, cfg, EraserData(), 0)
        optimiser = torch.optim.Adam(student.weights.values(), lr=1e-2)
        for step in range(8):
            found, shown = objective.gradient(step)
            for w, g in zip(student.weights.values(), found, strict=True):
                w.grad = g
            optimiser.step()
        ends.append(float(shown["anchoring"]))
    assert ends[1] < 0.3 * ends[0]
