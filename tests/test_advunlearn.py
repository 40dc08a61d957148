"""AdvUnlearn against its formulas, with the adversarial prefix as new words of a separate text encoder."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from resurgence.diffusion.deltas import apply_delta, apply_folder
from resurgence.diffusion.unet import ddim_of
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.advunlearn import Advunlearn, AdvunlearnConfig, encode, erase
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Sample, samples
from resurgence.seeds import generator, seed_of
from resurgence.training import finetune
from slow import TASK, ddim, embed, interrupted, pipeline, predicted, relative, same, shake, snapshot, unet_with, worst
from tiny import SENTENCES

pytest_plugins = ("erasure_fixtures",)

CFG = AdvunlearnConfig(
    steps=4, warmup=0, batch=2, retain_batch=2, attack_steps=2, attack_lr=1e-2, ddim_steps=2, trajectories=2,
    retain_trajectories=2, prefix_tokens=2, template="a photo of the {}", retain_template="a sketch of the {}",
)  # fmt: skip


def made(pipe, cfg, seed: int = 4) -> Advunlearn:
    """An objective whose model has moved away from the base."""
    student = Student(pipe, cfg.parameters)
    objective = Advunlearn(student, TASK, cfg, EraserData(), seed)
    shake(student)
    return objective


# --- a slow version of everything


def encoder_with(pipe, weights) -> torch.nn.Module:
    """A copy of the base's text encoder that holds these weights (those of it), asking for gradients."""
    encoder = copy.deepcopy(pipe.text_encoder).requires_grad_(True)
    for name, value in weights.items():
        if name.startswith("text_encoder."):
            encoder.get_parameter(name.removeprefix("text_encoder.")).data.copy_(value.detach())
    return encoder


def behind(pipe, encoder, caption: str, prefix: torch.Tensor) -> tuple[torch.Tensor, torch.nn.Parameter]:
    """The embedding (L, d) of a caption after words that are new in the vocabulary, and the table that ends with them.

    Args:
        prefix: (k, d), the rows of the new words.
    """
    k, length = len(prefix), pipe.tokenizer.model_max_length
    table = encoder.get_input_embeddings()
    bigger = torch.nn.Embedding(len(table.weight) + k, prefix.shape[1])
    bigger.weight = torch.nn.Parameter(torch.cat([table.weight.detach(), prefix.detach()]))
    ids = list(pipe.tokenizer(caption).input_ids)
    ids = ids[:1] + [len(table.weight) + i for i in range(k)] + ids[1:]
    ids += [pipe.tokenizer.pad_token_id] * (length - len(ids))
    encoder.set_input_embeddings(bigger)
    try:
        return encoder(torch.tensor([ids]))[0][0], bigger.weight
    finally:
        encoder.set_input_embeddings(table)


def plain(pipe, encoder, caption: str) -> torch.Tensor:
    inputs = pipe.tokenizer(caption, padding="max_length", return_tensors="pt")
    return encoder(inputs.input_ids)[0][0]


def noisy(pipe, cfg, seed: int, concept: str, g: torch.Generator, count: int) -> tuple[torch.Tensor, int]:
    """x_t and t of one draw, its trajectory walked step by step."""
    step = int(torch.randint(cfg.ddim_steps, (), generator=g))
    which = int(torch.randint(count, (), generator=g))
    noise = torch.randn(4, 8, 8, generator=generator("trajectory", concept, which, seed))
    template = cfg.template if concept in TASK.erase else cfg.retain_template
    path = ddim(pipe, unet_with(pipe, {}), noise, template.replace("{}", concept), cfg.ddim_steps, cfg.guidance)
    return next((x, t) for k, (t, x) in enumerate(path) if k == step)


def slow_loss(pipe, unet, encoder, cfg, seed: int, step: int, prefixes) -> torch.Tensor:
    """The loss of a step, one sample at a time; `unet` and `encoder` are the model in training."""
    frozen, erasing, retaining = unet_with(pipe, {}), [], []
    for sample in samples(TASK.erase, cfg.batch, seed, step):
        x, t = noisy(pipe, cfg, seed, sample.concept, sample.generator, cfg.trajectories)
        caption = cfg.template.replace("{}", sample.concept)
        none, concept = (predicted(pipe, frozen, x, t, embed(pipe, words)).detach() for words in ("", caption))
        if prefixes is None:
            text = plain(pipe, encoder, caption)
        else:
            text, _ = behind(pipe, encoder, caption, prefixes[sample.concept])
        erasing.append(((predicted(pipe, unet, x, t, text) - none + cfg.eta * (concept - none)) ** 2).mean())
    for sample in samples(TASK.retain, cfg.retain_batch, seed_of("retained", seed), step):
        x, t = noisy(pipe, cfg, seed, sample.concept, sample.generator, cfg.retain_trajectories)
        caption = cfg.retain_template.replace("{}", sample.concept)
        target = predicted(pipe, frozen, x, t, embed(pipe, caption)).detach()
        retaining.append(((predicted(pipe, unet, x, t, plain(pipe, encoder, caption)) - target) ** 2).mean())
    return torch.stack(erasing).mean() + cfg.gamma * torch.stack(retaining).mean()


@pytest.mark.parametrize(
    "changes", [{}, {"warmup": 9, "steps": 12}, {"parameters": "xattn", "embeddings": "frozen"}], ids=str
)
def test_loss_and_gradient_of_a_step_equal_the_formula(double, changes):
    cfg = dataclasses.replace(
        CFG, **{"gamma": 0.7, "eta": 1.5, "attack_every": 100, "embeddings": "trained", **changes}
    )
    objective = made(double, cfg)
    g, width = torch.Generator().manual_seed(1), double.text_encoder.config.hidden_size
    prefixes = {concept: torch.randn(2, width, generator=g) for concept in TASK.erase}
    objective.load({"prefixes": prefixes, "steps": dict.fromkeys(TASK.erase, 5)})
    weights = objective.student.weights
    unet_weights = {n: w for n, w in weights.items() if n.startswith("unet.")}
    unet, encoder = unet_with(double, unet_weights), encoder_with(double, weights)
    expected = slow_loss(double, unet, encoder, cfg, 4, 6, None if cfg.warmup else prefixes)
    expected.backward()
    found, shown = objective.gradient(6)
    assert float(shown["loss"]) == pytest.approx(float(expected.detach()), rel=1e-6)
    modules, slow, fast = {"unet": unet, "text_encoder": encoder}, [], []
    for name, gradient in zip(weights, found, strict=True):
        part, _, own = name.partition(".")
        if "token_embedding" not in own:  # the slow version has a table of its own
            p = modules[part].get_parameter(own)
            slow.append(torch.zeros_like(p) if p.grad is None else p.grad)
            fast.append(gradient)
    assert worst(fast, slow) < 1e-6 and max(float(s.abs().max()) for s in slow) > 0


# --- the prefix


@pytest.mark.parametrize("k", [1, 3])
def test_prefix_is_read_like_words(pipe, k):
    """Captions of different lengths in one batch, each behind its own prefix, with weights of the student."""
    student = Student(pipe, "text-encoder")
    shake(student)
    prefixes = torch.randn(3, k, pipe.text_encoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
    captions = ["ship", "a photo of the old cat", ""]
    found = encode(student, student.weights, captions, prefixes)
    encoder = encoder_with(pipe, student.weights)
    for row, caption, prefix in zip(found, captions, prefixes, strict=True):
        assert relative(row, behind(pipe, encoder, caption, prefix)[0]) < 1e-5
    assert relative(found[0], plain(pipe, encoder, "ship")) > 0.05
    frozen = encode(student, {}, captions, prefixes)
    assert relative(frozen[1], behind(pipe, pipe.text_encoder, captions[1], prefixes[1])[0]) < 1e-5


def test_a_word_as_prefix_is_the_word(pipe):
    student = Student(pipe, "text-encoder")
    word = pipe.tokenizer("queen", add_special_tokens=False).input_ids
    rows = pipe.text_encoder.get_input_embeddings().weight[torch.tensor(word)][None]
    assert relative(encode(student, {}, ["ship"], rows)[0], embed(pipe, "queen ship")) < 1e-5


def test_gradients_reach_the_prefix_and_the_encoder_and_the_hook_is_gone(pipe):
    student = Student(pipe, "text-encoder")
    prefix = torch.zeros(1, 2, pipe.text_encoder.config.hidden_size, requires_grad=True)
    table = pipe.text_encoder.get_input_embeddings()
    value = encode(student, student.weights, ["ship"], prefix).square().mean()
    of_prefix, *others = torch.autograd.grad(value, [prefix, *student.weights.values()], allow_unused=True)
    assert float(of_prefix.abs().min()) > 0 and all(g is not None for g in others)
    assert not table._forward_hooks
    with pytest.raises(RuntimeError):
        encode(student, student.weights, ["ship"], prefix[..., 1:])
    assert not table._forward_hooks
    assert torch.equal(student.texts(["ship"])[0], embed(pipe, "ship"))


# --- the attack


def slow_attack(pipe, unet, encoder, cfg, seed: int, concept: str, step: int, start=None) -> torch.Tensor:
    """The prefix of one concept by gradient descent, each step at an x_t of its own."""
    g, frozen = generator("advunlearn attack", concept, seed, step), unet_with(pipe, {})
    table = pipe.text_encoder.get_input_embeddings().weight
    words = torch.randint(len(table), (cfg.prefix_tokens,), generator=g)
    prefix = (table[words] if start is None else start).detach().clone()
    caption = cfg.template.replace("{}", concept)
    first = second = torch.zeros_like(prefix)
    for k in range(1, cfg.attack_steps + 1):
        x, t = noisy(pipe, cfg, seed, concept, g, cfg.trajectories)
        target = predicted(pipe, frozen, x, t, embed(pipe, caption)).detach()
        text, rows = behind(pipe, encoder, caption, prefix)
        distance = ((predicted(pipe, unet, x, t, text) - target) ** 2).mean()
        gradient = torch.autograd.grad(distance, rows)[0][-len(prefix) :]
        if cfg.attack_update == "sign":
            prefix = prefix - cfg.attack_lr * gradient.sign()
        else:
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            prefix = prefix - cfg.attack_lr * first / (1 - 0.9**k) / ((second / (1 - 0.999**k)).sqrt() + 1e-8)
    return prefix


@pytest.mark.parametrize(
    "changes", [{}, {"attack_update": "adam"}, {"attack_start": "latest"}, {"parameters": "xattn"}], ids=str
)
def test_attack_is_gradient_descent_towards_the_original_prediction(double, changes):
    """Two concepts at once; each gets what it gets alone."""
    cfg = dataclasses.replace(CFG, **changes)
    objective = made(double, cfg)
    latest = torch.randn(2, double.text_encoder.config.hidden_size, generator=torch.Generator().manual_seed(1)).double()
    objective.prefixes["old cat"] = latest
    found = objective.attack(["ship", "old cat"], 6)
    weights = objective.student.weights
    unet = unet_with(double, {n: w for n, w in weights.items() if n.startswith("unet.")})
    encoder = encoder_with(double, weights)
    for concept, prefix in zip(["ship", "old cat"], found, strict=True):
        start = latest if concept == "old cat" and cfg.attack_start == "latest" else None
        expected = slow_attack(double, unet, encoder, cfg, 4, concept, 6, start)
        assert torch.allclose(prefix, expected, atol=2e-4), (prefix - expected).abs().max()
        if cfg.attack_update == "sign":
            assert float((prefix - expected).abs().max()) < 1e-6
    assert torch.allclose(objective.attack(["old cat"], 6)[0], found[1], atol=2e-4)
    assert not torch.allclose(objective.attack(["old cat"], 7)[0], found[1], atol=2e-3)


def test_attack_brings_the_original_prediction_nearer_and_changes_no_weight():
    pipe = pipeline("epsilon")
    cfg = dataclasses.replace(CFG, attack_steps=15, attack_update="adam", attack_lr=0.1)
    objective = made(pipe, cfg)
    student, weights = objective.student, {n: w.detach().clone() for n, w in objective.student.weights.items()}
    x, t, _ = objective.noisy([Sample("ship", generator("probe", i)) for i in range(12)])
    text = objective.texts["ship"].expand(12, -1, -1)

    @torch.no_grad()
    def distance(prefix: torch.Tensor) -> float:
        seen = encode(student, student.weights, ["a photo of the ship"] * 12, prefix.expand(12, -1, -1))
        return float((student(x, t, seen) - student.frozen(x, t, text)).square().mean())

    table = pipe.text_encoder.get_input_embeddings().weight
    words = torch.randint(len(table), (2,), generator=generator("advunlearn attack", "ship", 4, 0))
    assert distance(objective.attack(["ship"], 0)) < 0.95 * distance(table[words][None])
    assert same(weights, {n: w.detach() for n, w in student.weights.items()})
    assert all(w.grad is None for w in student.weights.values())


def test_prefixes_are_made_anew_when_they_are_old(pipe, monkeypatch):
    calls = []

    def attack(self, concepts, step):
        calls.append((step, tuple(concepts)))
        return torch.full((len(concepts), 1, 3), float(step))

    monkeypatch.setattr(Advunlearn, "attack", attack)
    objective = made(pipe, dataclasses.replace(CFG, attack_every=3))
    wanted = [["ship"], ["old cat", "ship"], ["ship"], ["old cat", "old cat"], ["ship", "old cat"], ["ship"]]
    values = [objective.adversarial(concepts, step)[:, 0, 0].tolist() for step, concepts in enumerate(wanted)]
    assert calls == [(0, ("ship",)), (1, ("old cat",)), (4, ("ship", "old cat"))]
    assert values == [[0], [1, 0], [0], [1, 1], [4, 4], [4]]


def test_warm_up_attacks_nothing(pipe, monkeypatch):
    plain_attack, calls = Advunlearn.attack, []

    def attack(self, concepts, step):
        calls.append(step)
        return plain_attack(self, concepts, step)

    monkeypatch.setattr(Advunlearn, "attack", attack)
    objective = made(pipe, dataclasses.replace(CFG, warmup=2, attack_steps=1))
    for step in range(3):
        objective.loss(step)
    assert calls == [2]


# --- training


def test_delta_holds_the_text_encoder_and_the_pipeline_is_unchanged(pipe):
    before, state = snapshot(pipe), torch.get_rng_state()
    cfg = dataclasses.replace(CFG, steps=2, warmup=1, lr=1e-3)
    delta = erase(pipe, TASK, cfg, EraserData(), 0)
    assert same(snapshot(pipe), before) and torch.equal(torch.get_rng_state(), state)
    everything = {f"text_encoder.{n}" for n, _ in pipe.text_encoder.named_parameters()}
    tables = {n for n in everything if "token_embedding" in n or "position_embedding" in n}
    assert delta.keys() == everything - tables and len(tables) == 2
    assert all(not torch.equal(w, before[n]) for n, w in delta.items() if "k_proj.bias" not in n)
    assert same(delta, erase(pipe, TASK, cfg, EraserData(), 0))
    assert not same(delta, erase(pipe, TASK, cfg, EraserData(), 1))
    short = dataclasses.replace(cfg, steps=1, warmup=0)
    assert erase(pipe, TASK, dataclasses.replace(short, embeddings="trained"), EraserData(), 0).keys() == everything
    cross = erase(pipe, TASK, dataclasses.replace(short, parameters="xattn"), EraserData(), 0)
    assert cross.keys() == {f"unet.{n}" for n, _ in pipe.unet.named_parameters() if ".attn2." in n}


def test_resumed_training_is_the_uninterrupted_one(tmp_path, monkeypatch):
    """The prefixes and their ages go on: each attack starts at the one before."""
    pipe = pipeline("velocity")
    options = {"attack_start": "latest", "attack_every": 2, "batch": 1, "warmup": 1, "lr": 1e-3}
    cfg = dataclasses.replace(CFG, steps=6, checkpoints=(3,), **options)
    whole = erase(pipe, TASK, cfg, EraserData(), 0)
    kept = EraserData(state=tmp_path / "state")
    resumed, steps = interrupted(monkeypatch, Advunlearn, "loss", lambda: erase(pipe, TASK, cfg, kept, 0), 4)
    assert same(resumed, whole) and steps == [0, 1, 2, 3, 4, 3, 4, 5]


def test_training_lowers_the_loss(pipe, tmp_path):
    cfg = dataclasses.replace(CFG, steps=15, batch=3, lr=5e-3, attack_every=15)
    erase(pipe, TASK, cfg, EraserData(), 0, tmp_path)
    loss = json.loads((tmp_path / "curves.json").read_text())["loss"]
    assert sum(loss[-5:]) < 0.8 * sum(loss[:5])


@pytest.mark.parametrize("algorithm", ["lora", "full"])
def test_fine_tuning_keeps_the_erased_text_encoder(algorithm, tmp_path: Path):
    """Fine-tuning reads the erased encoder and writes the UNet alone: applied after the delta it leaves the delta."""
    pipe = pipeline("epsilon")
    pipe.scheduler = ddim_of(pipe.scheduler)
    original = snapshot(pipe)
    delta = erase(pipe, TASK, dataclasses.replace(CFG, steps=2, lr=1e-2), EraserData(), 0)
    apply_delta(pipe, delta)
    erased = snapshot(pipe)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    captions = list(SENTENCES[:3])
    data = finetune.encode(pipe, images, captions, flips=False)
    assert relative(data.text[0], embed(pipe, captions[0])) < 1e-5
    assert relative(data.text[0], embed(pipeline("epsilon"), captions[0])) > 1e-3
    cfg = finetune.FinetuneConfig(algorithm=algorithm, steps=2, lr=1e-2, batch=2, accumulation=1)
    finetune.finetune(pipe, images, captions, cfg, 0, tmp_path)
    assert same(snapshot(pipe), erased)

    fresh = pipeline("epsilon")
    apply_delta(fresh, delta)
    apply_folder(fresh, tmp_path / "step-000002")
    after = snapshot(fresh)
    assert delta and all(torch.equal(after[name], value) for name, value in delta.items())
    for name, value in after.items():
        if name.startswith("text_encoder."):
            assert torch.equal(value, erased[name]), name
    assert any(not torch.equal(after[n], original[n]) for n in delta)
    assert any(not torch.equal(after[n], original[n]) for n in after if n.startswith("unet."))


# --- mistakes


def test_captions_without_room_for_the_prefix_are_refused(pipe):
    limit = pipe.tokenizer.model_max_length
    room = limit - len(pipe.tokenizer("a photo of the old cat").input_ids)
    made(pipe, dataclasses.replace(CFG, prefix_tokens=room))
    with pytest.raises(ValueError, match=r"'a photo of the old cat' leaves no room for prefix_tokens in"):
        made(pipe, dataclasses.replace(CFG, prefix_tokens=room + 1))
