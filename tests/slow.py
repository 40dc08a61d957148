"""What the tests of the erasers compare against: a UNet of its own for each model, called one sample at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from resurgence.config.task import Task
from resurgence.erasers.gradient.student import Student
from tiny import make_pipeline

KINDS = {
    "epsilon": {"cross_attention_dim": 32, "heads": 2, "block_out_channels": (16, 32), "max_length": 24},
    "velocity": {
        "cross_attention_dim": 40, "heads": [2, 4], "block_out_channels": (16, 32), "pad": "zero",
        "prediction_type": "v_prediction", "max_length": 32,
    },
}  # fmt: skip
TASK = Task(
    name="two", kind="object", erase=("ship", "old cat"), retain=("queen", "bird"),
    mapping={"ship": "street", "old cat": "the dog"}, templates=("a photo of the {}",),
    seeds={"erase": 1, "retain": 1},
)  # fmt: skip


def pipeline(kind: str, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """A tiny pipeline with a noise schedule like that of Stable Diffusion: epsilon or velocity prediction."""
    pipe = make_pipeline(**KINDS[kind]).to(dtype)
    pipe.scheduler.alphas_cumprod = pipe.scheduler.alphas_cumprod.to(dtype)
    return pipe


def snapshot(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """Copies of all weights of UNet and text encoder."""
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder, "vae": pipe.vae}
    return {f"{part}.{n}": p.clone() for part, module in parts.items() for n, p in module.state_dict().items()}


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors have the same names and are equal bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def shaken(weights: Mapping[str, torch.Tensor], seed: int = 3, size: float = 0.2) -> dict[str, torch.Tensor]:
    """The weights moved by noise of `size` times their own deviation: a model that was trained for a while."""
    g = torch.Generator().manual_seed(seed)
    spread = {n: w.std() if w.numel() > 1 else w.abs() for n, w in weights.items()}
    return {n: w.detach() + size * spread[n] * torch.randn(w.shape, generator=g) for n, w in weights.items()}


def shake(student: Student, seed: int = 3) -> None:
    """Move the weights in training away from the base's."""
    for name, value in shaken(student.weights, seed).items():
        student.weights[name].data.copy_(value)


def unet_with(pipe: StableDiffusionPipeline, weights: Mapping[str, torch.Tensor]) -> UNet2DConditionModel:
    """A copy of the base's UNet that holds these weights, its parameters asking for gradients."""
    unet = copy.deepcopy(pipe.unet).requires_grad_(True)
    for name, value in weights.items():
        unet.get_parameter(name.removeprefix("unet.")).data.copy_(value.detach())
    return unet


def gradients_of(unet: UNet2DConditionModel, loss: torch.Tensor, names: list[str]) -> list[torch.Tensor]:
    """d loss / d parameter by backward(); zeros where the loss does not depend on it."""
    unet.zero_grad()
    loss.backward()
    found = [unet.get_parameter(name.removeprefix("unet.")) for name in names]
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in found]


@torch.no_grad()
def embed(pipe: StableDiffusionPipeline, caption: str) -> torch.Tensor:
    """The embedding (L, d) of a caption."""
    inputs = pipe.tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt")
    return pipe.text_encoder(inputs.input_ids)[0][0]


def embed_word(pipe: StableDiffusionPipeline, template: str, word: str) -> tuple[torch.Tensor, int]:
    """The embedding (L, d) of a caption, and the position of the last token of the word in it."""
    caption = template.replace("{}", word)
    tail = len(pipe.tokenizer(template.split("{}")[1], add_special_tokens=False).input_ids)
    return embed(pipe, caption), len(pipe.tokenizer(caption).input_ids) - 2 - tail


def predicted(
    pipe: StableDiffusionPipeline,
    unet: UNet2DConditionModel,
    x: torch.Tensor,
    t: int,
    text: torch.Tensor,
    space: str = "prediction",
) -> torch.Tensor:
    """What a UNet predicts for one x_t (C, h, w): its output, the noise in x_t, or the clean latents."""
    x, text = x.to(unet.dtype), text.to(unet.dtype)
    out = unet(x[None], torch.tensor([t]), text[None]).sample[0]
    if space == "prediction":
        return out
    a = pipe.scheduler.alphas_cumprod[t]
    noise = out if pipe.scheduler.config.prediction_type == "epsilon" else a**0.5 * out + (1 - a) ** 0.5 * x
    return noise if space == "noise" else (x - (1 - a) ** 0.5 * noise) / a**0.5


def truth(
    pipe: StableDiffusionPipeline, clean: torch.Tensor, noise: torch.Tensor, t: int, space: str = "prediction"
) -> torch.Tensor:
    """What an ideal UNet predicts for clean latents (C, h, w) with noise."""
    noise = noise.to(clean)
    if space == "clean":
        return clean
    if space == "noise" or pipe.scheduler.config.prediction_type == "epsilon":
        return noise
    a = pipe.scheduler.alphas_cumprod[t]
    return a**0.5 * noise - (1 - a) ** 0.5 * clean


@torch.no_grad()
def ddim(
    pipe: StableDiffusionPipeline,
    unet: UNet2DConditionModel,
    x: torch.Tensor,
    caption: str,
    steps: int,
    guidance: float,
) -> Iterator[tuple[int, torch.Tensor]]:
    """(t, x_t) of one trajectory, DDIM written out: steps evenly spaced from 1 on, as in Stable Diffusion."""
    alphas, width = pipe.scheduler.alphas_cumprod, 1000 // steps
    text, empty = embed(pipe, caption), embed(pipe, "")
    for k in reversed(range(steps)):
        t = k * width + 1
        yield t, x
        plain = predicted(pipe, unet, x, t, empty, "noise")
        noise = plain + guidance * (predicted(pipe, unet, x, t, text, "noise") - plain)
        a, before = alphas[t], alphas[t - width] if t >= width else alphas[0]
        clean = (x - (1 - a) ** 0.5 * noise) / a**0.5
        x = before**0.5 * clean + (1 - before) ** 0.5 * noise


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b|| / ||b||."""
    return float((a - b).detach().double().norm() / b.detach().double().norm())


def worst(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """||a - b|| / ||b|| over two lists of tensors."""
    assert [x.shape for x in a] == [x.shape for x in b]
    return relative(torch.cat([x.flatten() for x in a]), torch.cat([x.flatten() for x in b]))


def interrupted(
    monkeypatch: pytest.MonkeyPatch, kind: type, method: str, run: Callable[[], dict[str, torch.Tensor]], *stops: int
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """What a training gives that dies in each of these steps and is run again, and all steps that it began.

    Args:
        kind: the objective. method: of it, what is called once a step, with the step.
    """
    own, left, begun = getattr(kind, method), [*stops], []

    def dying(self: object, step: int) -> object:
        begun.append(step)
        if left and step == left[0]:
            left.pop(0)
            raise KeyboardInterrupt
        return own(self, step)

    monkeypatch.setattr(kind, method, dying)
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            run()
    return run(), begun
