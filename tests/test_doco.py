"""DoCo against its formulas written out sample by sample, with a separate UNet and a discriminator by hand."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from resurgence.diffusion.deltas import load_delta
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.doco import Doco, code_surgery, discriminator, erase, paper_surgery
from resurgence.erasers.gradient.image_configs import DocoConfig
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import samples
from slow import (
    TASK,
    embed,
    gradients_of,
    interrupted,
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
CFG = DocoConfig(batch=3, captions=CAPTIONS, steps=6, warmup=0)
CODE = {"discriminate": "clean", "generator": "non-saturating", "anchor_from": "frozen", "last_stride": 1}


@pytest.fixture(scope="module")
def data() -> EraserData:
    g = torch.Generator().manual_seed(2)
    counts = {"street": 3, "the dog": 2}
    return EraserData(anchors={name: torch.rand(n, 3, 16, 16, generator=g) * 2 - 1 for name, n in counts.items()})


def made(pipe, data, cfg, seed: int = 4) -> Doco:
    """An objective whose model has moved away from the base."""
    student = Student(pipe, cfg.parameters)
    objective = Doco(student, TASK, cfg, data, seed)
    shake(student)
    return objective


# --- a slow version of everything


def judged(net: torch.nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """The discriminator's logits by its weights, layer by layer: convolution, batch statistics, leaky ReLU."""
    convolutions = [m for m in net if isinstance(m, torch.nn.Conv2d)]
    norms = [None] + [m for m in net if isinstance(m, torch.nn.BatchNorm2d)]
    for conv, norm in zip(convolutions[:-1], norms, strict=True):
        x = F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1)
        if norm is not None:
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
            x = (x - mean) / (var + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
        x = torch.where(x > 0, x, 0.2 * x)
    last = convolutions[-1]
    return F.conv2d(x, last.weight, last.bias, stride=last.stride, padding=1)


def snapshot_of(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in net.state_dict().items()}


def predictions(pipe, unet, cfg, seed: int, step: int, task=TASK) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What D sees for c* and for c, and the anchor's diffusion loss, one sample at a time."""
    frozen, concepts, anchors, retaining = unet_with(pipe, {}), [], [], []
    for sample in samples(task.erase, cfg.batch, seed, step):
        g, anchor = sample.generator, TASK.mapping[sample.concept]
        images = DATA_ANCHORS[anchor]
        image = images[int(torch.randint(len(images), (), generator=g))]
        caption = CAPTIONS[int(torch.randint(3, (), generator=g))]
        t = int(torch.randint(1000, (), generator=g))
        noise = torch.randn(4, 8, 8, generator=g)
        with torch.no_grad():
            clean = pipe.vae.encode(image[None].to(pipe.vae.dtype)).latent_dist.mean[0] * pipe.vae.config.scaling_factor
        a = pipe.scheduler.alphas_cumprod[t]
        x = a**0.5 * clean + (1 - a) ** 0.5 * noise
        erased, kept = (embed(pipe, caption.replace("{}", word)) for word in (sample.concept, anchor))
        retaining.append(((predicted(pipe, unet, x, t, kept) - truth(pipe, clean, noise, t)) ** 2).mean())
        space = "clean" if cfg.discriminate == "clean" and cfg.unlearning == "adversarial" else "prediction"
        concept, own = (predicted(pipe, unet, x, t, text, space) for text in (erased, kept))
        if cfg.anchor_from == "frozen":
            own = predicted(pipe, frozen, x, t, kept, space).detach()
        concepts.append(concept)
        anchors.append(own)
    return torch.stack(concepts), torch.stack(anchors), torch.stack(retaining).mean()


DATA_ANCHORS: dict[str, torch.Tensor] = {}


@pytest.fixture(autouse=True, scope="module")
def anchors_at_hand(data):
    DATA_ANCHORS.update(data.anchors)


def slow_loss(net, cfg, concept: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
    """What theta minimises, from the probabilities of Eq. 8."""
    if cfg.unlearning == "l2":
        return ((concept - anchor.detach()) ** 2).mean()
    of_concept, of_anchor = torch.sigmoid(judged(net, concept)), torch.sigmoid(judged(net, anchor))
    terms = []
    if cfg.generator == "minimax":
        terms.append(torch.log(1 - of_concept).mean())
        if cfg.anchor_from == "current":
            terms.append(torch.log(of_anchor).mean())
    else:
        terms.append(-torch.log(of_concept).mean())
        if cfg.anchor_from == "current":
            terms.append(-torch.log(1 - of_anchor).mean())
    return sum(terms)


VARIANTS = [
    {}, {"anchor_from": "frozen"}, {"generator": "non-saturating"}, {"discriminate": "clean"}, CODE,
    {"unlearning": "l2"}, {"unlearning": "l2", "anchor_from": "frozen", "discriminate": "clean"},
]  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_loss_and_gradient_of_a_step_equal_the_formula(pipe, data, changes):
    cfg = dataclasses.replace(CFG, surgery="none", **changes)
    objective = made(pipe, data, cfg)
    unet = unet_with(pipe, objective.student.weights)
    concept, anchor, retaining = predictions(pipe, unet, cfg, 4, 6)
    expected = slow_loss(objective.judges[""].net, cfg, concept, anchor)
    slow = gradients_of(unet, expected, list(objective.student.weights))
    found, shown = objective.gradient(6)
    assert float(shown["loss"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(shown["retain"]) == pytest.approx(float(retaining.detach()), rel=1e-5)
    assert worst(found, slow) < 1e-4
    assert max(float(g.abs().max()) for g in slow) > 0


def test_variants_have_different_losses(pipe, data):
    losses = {}
    for changes in VARIANTS[:-1]:
        shown = made(pipe, data, dataclasses.replace(CFG, **changes)).gradient(6)[1]
        losses[str(changes)] = round(float(shown["loss"]), 6)
    assert len(set(losses.values())) == len(losses), losses


@pytest.mark.parametrize("changes", [{}, CODE], ids=str)
def test_discriminator_takes_one_step_of_adam_up_its_value(pipe, data, changes):
    """The first step of Adam moves each weight by lr g / (|g| + eps); g at the predictions before theta's step."""
    cfg = dataclasses.replace(CFG, discriminator_lr=1e-3, **changes)
    objective = made(pipe, data, cfg)
    net = objective.judges[""].net
    assert objective.judges[""].optimiser.defaults["betas"] == (0.5, 0.999)
    before = [p.detach().clone() for p in net.parameters()]
    with torch.no_grad():
        concept, anchor, _ = predictions(pipe, unet_with(pipe, objective.student.weights), cfg, 4, 6)
    value = (
        torch.log(torch.sigmoid(judged(net, anchor))).mean() + torch.log(1 - torch.sigmoid(judged(net, concept))).mean()
    )
    slow = torch.autograd.grad(-value, list(net.parameters()))
    shown = objective.gradient(6)[1]
    assert float(shown["discriminator"]) == pytest.approx(-float(value.detach()), rel=1e-5)
    for p, old, g in zip(net.parameters(), before, slow, strict=True):
        clear = g.abs() > 1e-6  # elsewhere rounding decides about the sign
        assert clear.any()
        assert torch.allclose((p.detach() - old)[clear], (-1e-3 * g / (g.abs() + 1e-8))[clear], atol=1e-6)


# --- gradient surgery


def flat(tensors) -> torch.Tensor:
    return torch.cat([x.flatten() for x in tensors]).double()


def two_gradients(seed: int = 0, opposed: bool = True) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    a, b = ([torch.randn(s, generator=g) for s in ((3, 4), (5,), (2, 2, 2))] for _ in range(2))
    sign = -1 if (float(flat(a) @ flat(b)) > 0) == opposed else 1
    return a, [sign * x for x in b]


def test_aligned_gradients_pass_unchanged():
    for seed in range(5):
        unlearn, retain = two_gradients(seed, opposed=False)
        assert all(torch.equal(a, b) for a, b in zip(paper_surgery(unlearn, retain, 1.0), unlearn, strict=True))
        own = [u.abs() for u in unlearn]
        assert all(torch.equal(a, b) for a, b in zip(code_surgery(own, own, 1.0, None), own, strict=True))


def test_opposed_gradients_become_orthogonal_to_the_retain_gradient():
    for seed in range(5):
        unlearn, retain = two_gradients(seed)
        u, r = flat(unlearn), flat(retain)
        found = flat(paper_surgery(unlearn, retain, 1.0))
        assert abs(float(found @ r)) < 1e-5 * float(found.norm() * r.norm())
        assert float(found @ u) > 0 and float(found.norm()) < float(u.norm())  # the orthogonal part of G_u
        assert torch.allclose(found, u - (u @ r) / (r @ r) * r, atol=1e-6)
        half = flat(paper_surgery(unlearn, retain, 0.5))
        assert torch.allclose(half, (u + found) / 2, atol=1e-6)


def test_lambda_zero_is_no_surgery():
    unlearn, retain = two_gradients()
    for found in (paper_surgery(unlearn, retain, 0.0), code_surgery(unlearn, retain, 0.0, None)):
        assert all(torch.equal(a, b) for a, b in zip(found, unlearn, strict=True))


@pytest.mark.parametrize("max_norm", [None, 0.1])
def test_surgery_of_the_code_goes_tensor_by_tensor_on_unit_vectors(max_norm):
    unlearn, retain = two_gradients(3)
    u_all = flat(unlearn)
    found = code_surgery(unlearn, retain, 0.7, max_norm)
    opposed = 0
    for got, u, r in zip(found, unlearn, retain, strict=True):
        u, r = u.double(), r.double()
        if max_norm is not None:
            u = u * min(1.0, max_norm / float(u_all.norm()))
        cosine = float((u * r).sum() / (u.norm() * r.norm()))
        opposed += cosine < 0
        expected = u - 0.7 * cosine * r / r.norm() if cosine < 0 else u
        assert relative(got, expected) < 1e-5
        if cosine < 0 and max_norm is not None:
            assert float((got.double() * r).sum()) > 0  # corrected past orthogonality: G_u is shorter than 1
    assert opposed > 0


def test_surgery_of_the_code_is_clipped_before_and_not_again(pipe, data):
    """G_u is clipped to almost nothing; what surgery adds is not, and moves weights by Adam's first step, lr.

    A gradient that is clipped behind the surgery stays far below Adam's epsilon of 1e-8.
    """
    before, moved = snapshot(pipe), {}
    for surgery in ("code", "paper"):
        cfg = dataclasses.replace(CFG, steps=1, surgery=surgery, max_norm=1e-12, lr=1e-2)
        delta = erase(pipe, TASK, cfg, data, 0)
        moved[surgery] = max(float((w - before[n]).abs().max()) for n, w in delta.items())
    assert moved["code"] == pytest.approx(1e-2, rel=1e-2) and moved["paper"] < 1e-4


@pytest.mark.parametrize("surgery", ["paper", "code", "sum"])
def test_gradient_of_a_step_has_been_through_surgery(pipe, data, surgery):
    """With the discriminator's verdict and with its opposite: one of the two conflicts with retaining."""
    cfg, conflicts = dataclasses.replace(CFG, surgery=surgery, lamb=0.8, anchor_from="frozen"), []
    for sign in (1, -1):
        objective = made(pipe, data, cfg)
        for p in objective.judges[""].net[-1].parameters():
            p.data.mul_(sign)
        unet, names = unet_with(pipe, objective.student.weights), list(objective.student.weights)
        concept, anchor, retaining = predictions(pipe, unet, cfg, 4, 0)
        parameters = [unet.get_parameter(name.removeprefix("unet.")) for name in names]
        unlearn = slow_loss(objective.judges[""].net, cfg, concept, anchor)
        u = torch.autograd.grad(unlearn, parameters, retain_graph=True)
        r = torch.autograd.grad(retaining, parameters)
        conflicts.append(float(flat(u) @ flat(r)) < 0)
        if surgery == "sum":
            expected = [a + 0.8 * b for a, b in zip(u, r, strict=True)]
        elif surgery == "code":
            expected = code_surgery(list(u), list(r), 0.8, cfg.max_norm)  # against a slow version above
        else:
            product = min(0.0, float(flat(u) @ flat(r))) / float(flat(r) @ flat(r))
            expected = [a - 0.8 * product * b for a, b in zip(u, r, strict=True)]
        assert worst(objective.gradient(0)[0], expected) < 1e-4
    assert sorted(conflicts) == [False, True]


# --- the discriminator


@pytest.mark.parametrize(("side", "halvings"), [(4, 1), (8, 1), (16, 2), (32, 3), (64, 4), (96, 4)])
def test_discriminator_fits_the_latents(side, halvings):
    x = torch.randn(3, 4, side, side, generator=torch.Generator().manual_seed(0))
    for last in (2, 1):
        net = discriminator(4, side, last, seed=0)
        strides = [m.stride[0] for m in net if isinstance(m, torch.nn.Conv2d)]
        assert strides == [2] * halvings + [last]
        assert [m.out_channels for m in net if isinstance(m, torch.nn.Conv2d)] == [*[64, 128, 256, 512][:halvings], 1]
        if side == 64:
            assert net(x).shape == ((3, 1, 2, 2) if last == 2 else (3, 1, 3, 3))
        if side <= 32:
            assert torch.allclose(net(x), judged(net, x), rtol=1e-4, atol=1e-5)


def test_discriminator_has_the_width_of_the_settings(pipe, data):
    net = discriminator(4, 32, 2, seed=0, width=24)
    assert [m.out_channels for m in net if isinstance(m, torch.nn.Conv2d)] == [24, 48, 96, 1]
    objective = made(pipe, data, dataclasses.replace(CFG, discriminator_width=96))
    assert objective.judges[""].net[0].out_channels == 96


def test_too_small_latents_are_refused():
    with pytest.raises(ValueError, match=r"doco: latents of 2 x 2 are too small"):
        discriminator(4, 2, 2, 0)


def test_first_weights_follow_the_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    one, again, other = (discriminator(4, 16, 2, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(one, again) and not same(one, other)
    torch.manual_seed(0)
    usual = torch.nn.Conv2d(64, 128, 4, 2, 1).weight.detach()  # what PyTorch draws: same range and deviation
    torch.set_rng_state(state)
    mine = one["2.weight"]
    assert mine.shape == usual.shape and float(mine.std() / usual.std()) == pytest.approx(1, abs=0.02)
    assert float(mine.abs().max()) <= 1.0001 * float(usual.abs().max())


# --- training


def test_warm_up_changes_the_discriminator_and_no_weight_of_the_unet(pipe, data, tmp_path):
    """Also with weight decay, and the optimiser begins after the warm-up as if there had been none."""
    decay = {"optimiser": "adamw", "weight_decay": 0.1, "lr": 1e-2}
    cfg = dataclasses.replace(CFG, steps=4, warmup=3, checkpoints=(3,), **decay)
    before = snapshot(pipe)
    delta = erase(pipe, TASK, cfg, data, 0, tmp_path)
    warm = load_delta(tmp_path / "step-000003" / "delta.safetensors")
    assert all(torch.equal(w, before[n]) for n, w in warm.items())
    assert all(not torch.equal(w, before[n]) for n, w in delta.items())
    moved = [(delta[n] - before[n] * (1 - 1e-2 * 0.1)).abs().max() for n in delta]
    assert max(map(float, moved)) == pytest.approx(1e-2, rel=1e-3)  # Adam's first step is lr
    objective = Doco(Student(pipe, cfg.parameters), TASK, cfg, data, 0)
    first = {n: p.clone() for n, p in objective.judges[""].net.state_dict().items()}
    found, _ = objective.gradient(0)
    assert found == [None] * len(found)
    assert all(not torch.equal(p, first[n]) for n, p in objective.judges[""].net.state_dict().items())


def test_without_a_discriminator_there_is_no_warm_up(pipe, data):
    cfg = dataclasses.replace(CFG, unlearning="l2", warmup=200, steps=1)
    objective = Doco(Student(pipe, cfg.parameters), TASK, cfg, data, 0)
    first = {n: p.clone() for n, p in objective.judges[""].net.state_dict().items()}
    found, shown = objective.gradient(0)
    assert all(g is not None for g in found) and set(shown) == {"loss", "retain"}
    assert same(objective.judges[""].net.state_dict(), first)


def test_delta_holds_the_projections_and_the_pipeline_is_unchanged(pipe, data):
    before, state = snapshot(pipe), torch.get_rng_state()
    cfg = dataclasses.replace(CFG, steps=2, warmup=1, lr=1e-3)
    delta = erase(pipe, TASK, cfg, data, 0)
    assert same(snapshot(pipe), before) and torch.equal(torch.get_rng_state(), state)
    ends = ("attn2.to_k.weight", "attn2.to_v.weight")
    assert sorted(delta) == sorted(f"unet.{n}" for n, _ in pipe.unet.named_parameters() if n.endswith(ends))
    assert any(not torch.equal(w, before[n]) for n, w in delta.items())
    assert same(delta, erase(pipe, TASK, cfg, data, 0)) and not same(delta, erase(pipe, TASK, cfg, data, 1))
    other = erase(pipe, TASK, dataclasses.replace(cfg, parameters="selfattn"), data, 0)
    assert other.keys() == {f"unet.{n}" for n, _ in pipe.unet.named_parameters() if ".attn1." in n}


@pytest.mark.parametrize("discriminators", ["shared", "concept"])
def test_resumed_training_is_the_uninterrupted_one(pipe, data, tmp_path, monkeypatch, discriminators):
    """The discriminators and their optimisers go on from where they were, from the warm-up as well."""
    cfg = dataclasses.replace(CFG, discriminators=discriminators, steps=6, warmup=2, lr=1e-3, checkpoints=(1, 4))
    whole = erase(pipe, TASK, cfg, data, 0)
    kept = dataclasses.replace(data, state=tmp_path / "state")
    resumed, steps = interrupted(monkeypatch, Doco, "gradient", lambda: erase(pipe, TASK, cfg, kept, 0), 1, 5)
    assert same(resumed, whole) and steps == [0, 1, 1, 2, 3, 4, 5, 4, 5]


def test_a_discriminator_for_each_concept_takes_turns(pipe, data):
    """A step is of one concept and moves the D of this concept alone; two steps are a round of both."""
    cfg = dataclasses.replace(CFG, discriminators="concept")
    objective = made(pipe, data, cfg)
    assert list(objective.judges) == list(TASK.erase)
    first = [{n: p.clone() for n, p in objective.judges[c].net.state_dict().items()} for c in TASK.erase]
    assert not same(*first)
    order = []
    for step in range(6):
        before = {c: snapshot_of(judge.net) for c, judge in objective.judges.items()}
        [concept] = {sample.concept for sample in objective.samples(step)}
        assert len(objective.samples(step)) == cfg.batch
        objective.gradient(step)
        moved = [c for c, judge in objective.judges.items() if not same(snapshot_of(judge.net), before[c])]
        assert moved == [concept]
        order.append(concept)
    assert all(set(order[i : i + 2]) == set(TASK.erase) for i in (0, 2, 4))
    alone = samples((order[1],), cfg.batch, 4, 1)
    for one, other in zip(objective.samples(1), alone, strict=True):
        assert torch.equal(torch.rand(3, generator=one.generator), torch.rand(3, generator=other.generator))


def test_the_loss_of_a_step_is_of_the_discriminator_of_its_concept(pipe, data):
    """D of each concept with weights of its own: the loss by hand, of the D whose turn it is."""
    cfg = dataclasses.replace(CFG, discriminators="concept", surgery="none")
    objective = made(pipe, data, cfg)
    unet, losses = unet_with(pipe, objective.student.weights), []
    for step in (2, 3):
        [name] = {sample.concept for sample in objective.samples(step)}
        one = dataclasses.replace(TASK, erase=(name,), mapping={name: TASK.mapping[name]})
        concept, anchor, _ = predictions(pipe, unet, cfg, 4, step, one)
        net = copy.deepcopy(objective.judges[name].net)
        losses.append(
            (float(objective.gradient(step)[1]["loss"]), float(slow_loss(net, cfg, concept, anchor).detach()))
        )
    assert all(shown == pytest.approx(slow, rel=1e-5) for shown, slow in losses)


def test_one_concept_has_one_discriminator_either_way(pipe, data):
    """Then the settings differ only in the first weights of D."""
    task = dataclasses.replace(TASK, erase=("ship",), mapping={"ship": "street"})
    objectives = []
    for discriminators in ("shared", "concept"):
        cfg = dataclasses.replace(CFG, discriminators=discriminators)
        objectives.append(Doco(Student(pipe, cfg.parameters), task, cfg, data, 4))
    (shared,), (apart,) = (list(objective.judges.values()) for objective in objectives)
    apart.net.load_state_dict(shared.net.state_dict())
    found = [objective.gradient(1) for objective in objectives]
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))
    assert found[0][1] == found[1][1]


def test_discriminator_learns_to_tell_two_kinds_apart(pipe, data):
    objective = Doco(Student(pipe, CFG.parameters), TASK, dataclasses.replace(CFG, discriminator_lr=1e-3), data, 0)
    g = torch.Generator().manual_seed(0)
    loss = []
    for _ in range(30):
        anchor, concept = (torch.randn(8, 4, 8, 8, generator=g) + shift for shift in (0.2, -0.2))
        loss.append(objective.judges[""].train(concept, anchor).item())
    assert loss[0] > 1.2 and loss[-1] < 0.5
    assert objective.judges[""].net(anchor).mean().item() > 0 > objective.judges[""].net(concept).mean().item()


@pytest.mark.parametrize("changes", [{}, CODE, {"unlearning": "l2", "anchor_from": "frozen"}], ids=str)
def test_training_lowers_the_loss_against_a_discriminator_that_stands_still(pipe, data, changes):
    """The game itself need not lower anything; on one batch and with one opponent theta wins ground."""
    objective = made(pipe, data, dataclasses.replace(CFG, surgery="none", discriminator_lr=1e-12, **changes))
    weights = list(objective.student.weights.values())
    optimiser, loss = torch.optim.Adam(weights, lr=2e-3), []
    for _ in range(8):
        found, shown = objective.gradient(0)
        loss.append(float(shown["loss"]))
        for w, g in zip(weights, found, strict=True):
            w.grad = g
        optimiser.step()
    assert loss[-1] < loss[0] - 0.001 * abs(loss[0])


def test_missing_anchors_are_named(pipe, data):
    for anchors in ({}, {"street": data.anchors["street"]}, data.anchors | {"the dog": torch.zeros(0, 3, 16, 16)}):
        with pytest.raises(ValueError, match=r"doco: no images of '.*', the anchor of '.*'; make the anchor images"):
            erase(pipe, TASK, CFG, EraserData(anchors=anchors), 0)
