"""FMN against attention written out head by head, from the inputs that each cross-attention of a plain UNet sees."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from resurgence.erasers import EraserData
from resurgence.erasers.gradient.fmn import Fmn, FmnConfig, attention_norm, erase
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import samples
from slow import TASK, embed, gradients_of, same, shake, snapshot, unet_with, worst

pytest_plugins = ("erasure_fixtures",)

CAPTIONS = ("a photo of the {}", "the {} on the ground")
CFG = FmnConfig(batch=3, captions=CAPTIONS)


@pytest.fixture(scope="module")
def data() -> EraserData:
    g = torch.Generator().manual_seed(2)
    return EraserData(images={name: torch.rand(2, 3, 16, 16, generator=g) * 2 - 1 for name in TASK.erase})


def positions(pipe, caption: str, concept: str, end: str) -> list[int]:
    """The concept's tokens by the words before it, then the end token and what pads."""
    before = len(pipe.tokenizer(caption.split("{}")[0].strip()).input_ids) - 1
    own = len(pipe.tokenizer(concept).input_ids) - 2
    last = len(pipe.tokenizer(caption.replace("{}", concept)).input_ids) - 1
    found = list(range(before, before + own))
    length = pipe.tokenizer.model_max_length
    return found + {"none": [], "end": [last], "end-and-padding": list(range(last, length))}[end]


def slow_maps(unet, x: torch.Tensor, t: int, text: torch.Tensor) -> list[torch.Tensor]:
    """softmax(q k^T / sqrt(d)) of every head of every cross-attention, (pixels, tokens) each."""
    seen, maps = [], []

    def keep(module, arguments, keywords) -> None:
        seen.append((module, arguments[0], keywords["encoder_hidden_states"]))

    hooks = [
        m.register_forward_pre_hook(keep, with_kwargs=True) for n, m in unet.named_modules() if n.endswith("attn2")
    ]
    unet(x[None], torch.tensor([t]), text[None])
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(hooks) > 1
    for module, pixels, words in seen:
        q, k = pixels[0] @ module.to_q.weight.T, words[0] @ module.to_k.weight.T
        width = q.shape[1] // module.heads
        for h in range(module.heads):
            own = slice(h * width, (h + 1) * width)
            maps.append((q[:, own] @ k[:, own].T / width**0.5).softmax(1))
    return maps


def slow_loss(pipe, unet, data, seed: int, step: int, batch: int, end: str) -> torch.Tensor:
    """Frobenius norm of all maps of all samples, side by side, at the concept's tokens."""
    entries = []
    for sample in samples(TASK.erase, batch, seed, step):
        g, images = sample.generator, data.images[sample.concept]
        image = images[int(torch.randint(len(images), (), generator=g))]
        caption = CAPTIONS[int(torch.randint(2, (), generator=g))]
        t = int(torch.randint(1000, (), generator=g))
        noise = torch.randn(4, 8, 8, generator=g)
        with torch.no_grad():
            clean = pipe.vae.encode(image[None].to(pipe.vae.dtype)).latent_dist.mean[0] * pipe.vae.config.scaling_factor
        a = pipe.scheduler.alphas_cumprod[t]
        x = a**0.5 * clean + (1 - a) ** 0.5 * noise.to(clean)
        own = positions(pipe, caption, sample.concept, end)
        maps = slow_maps(unet, x, t, embed(pipe, caption.replace("{}", sample.concept)))
        entries += [a_h[:, own].flatten() for a_h in maps]
    return torch.cat(entries).square().sum().sqrt()


@pytest.mark.parametrize("selection", ["full", "xattn"])
@pytest.mark.parametrize("end", ["none", "end", "end-and-padding"])
def test_loss_and_gradient_of_a_step_equal_the_formula(double, data, end, selection):
    """With moved weights: the maps are those of the model in training, not of the pipeline's UNet."""
    pooler = {"use_pooler": end != "none"} | ({"pooler_tokens": end} if end != "none" else {})
    cfg = dataclasses.replace(CFG, parameters=selection, **pooler)
    student = Student(double, cfg.parameters)
    objective = Fmn(student, TASK, cfg, data, seed=4)
    still = float(objective.loss(6).detach())
    shake(student)
    unet = unet_with(double, student.weights)
    expected = slow_loss(double, unet, data, 4, 6, 3, end)
    found, shown = objective.gradient(6)
    assert float(shown["loss"]) == pytest.approx(float(expected.detach()), rel=1e-9)
    assert float(shown["loss"]) != pytest.approx(still, rel=1e-4)
    assert worst(found, gradients_of(unet, expected, list(student.weights))) < 1e-9


def test_what_lies_behind_the_last_map_gets_no_gradient(pipe, data):
    student = Student(pipe, "full")
    found, _ = Fmn(student, TASK, CFG, data, 0).gradient(0)
    idle = {n for n, g in zip(student.weights, found, strict=True) if not g.any()}
    assert {"unet.conv_out.weight", "unet.conv_norm_out.weight"} <= idle
    crossed = [n for n in idle if "attn2.to_q" in n or "attn2.to_k" in n]
    assert not crossed and len(idle) < len(found) / 4


def test_norm_without_tokens_is_zero_with_gradient_zero(pipe):
    student = Student(pipe, "xattn")
    x, t = torch.ones(2, 4, 8, 8), torch.tensor([3, 700])
    texts = student.texts(["the ship", "a cat"])
    tokens = torch.zeros(texts.shape[:2], dtype=torch.bool)
    norm = attention_norm(student, x, t, texts, tokens)
    norm.backward()
    assert float(norm.detach()) == 0
    assert all(w.grad is None or (torch.isfinite(w.grad).all() and not w.grad.any()) for w in student.weights.values())


def test_all_tokens_of_all_pixels_bound_the_norm(pipe):
    """Rows of a softmax add up to 1: between uniform attention and attention to one token."""
    student = Student(pipe, "xattn")
    texts = student.texts(["the ship", "a cat"])
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    tokens = torch.ones(texts.shape[:2], dtype=torch.bool)
    norm = float(attention_norm(student, x, t, texts, tokens).detach())
    rows = 0
    for name, module in pipe.unet.named_modules():
        if name.endswith("attn2"):
            pixels = 64 if "mid_block" not in name else 16
            rows += 2 * module.heads * pixels
    assert (rows / texts.shape[1]) ** 0.5 <= norm <= rows**0.5


def test_processors_and_pipeline_are_unchanged(pipe, data):
    before, processors = snapshot(pipe), dict(pipe.unet.attn_processors)
    cfg = dataclasses.replace(CFG, steps=2, lr=1e-3)
    delta = erase(pipe, TASK, cfg, data, 0)
    assert same(snapshot(pipe), before)
    assert all(pipe.unet.attn_processors[name] is processor for name, processor in processors.items())
    assert delta.keys() == {f"unet.{n}" for n, _ in pipe.unet.named_parameters()}
    assert any(not torch.equal(w, before[n]) for n, w in delta.items())
    assert same(delta, erase(pipe, TASK, cfg, data, 0)) and not same(delta, erase(pipe, TASK, cfg, data, 1))
    crossed = erase(pipe, TASK, dataclasses.replace(cfg, parameters="xattn"), data, 0)
    assert crossed.keys() == {f"unet.{n}" for n, _ in pipe.unet.named_parameters() if ".attn2." in n}


@pytest.mark.parametrize("selection", ["full", "xattn-kv"])
def test_training_lowers_the_attention(pipe, data, selection, tmp_path):
    cfg = dataclasses.replace(CFG, parameters=selection, steps=25, lr=5e-3, batch=4, use_pooler=False)
    erase(pipe, TASK, cfg, data, 0, tmp_path)
    loss = json.loads((tmp_path / "curves.json").read_text())["loss"]
    assert len(loss) == 25 and sum(loss[-5:]) < 0.6 * sum(loss[:5])


def test_missing_images_are_named(pipe, data):
    for images in ({}, {"ship": data.images["ship"]}, data.images | {"old cat": torch.zeros(0, 3, 16, 16)}):
        with pytest.raises(ValueError, match=r"fmn: no images of '.*'; make the concept images first"):
            erase(pipe, TASK, CFG, EraserData(images=images), 0)


def test_caption_in_which_the_concept_is_lost_is_named(pipe, data):
    cfg = dataclasses.replace(CFG, captions=("a photo of the {}s",))
    with pytest.raises(ValueError, match=r"'ship' do not occur in caption 'a photo of the ships'"):
        erase(pipe, TASK, cfg, data, 0)
