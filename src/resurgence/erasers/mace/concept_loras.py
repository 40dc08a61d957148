"""Train the LoRAs of many concepts in one batch, each exactly as if it were trained alone.

Sample k of the batch goes through its own factors. Parameters are stacked, (K, r, d) and (K, out, r), so AdamW, which
is elementwise, keeps each concept's own state; the gradient is clipped per concept, and each concept draws from its own
generator. The UNet is frozen and shared; text embeddings and latents are computed once, outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from resurgence.diffusion.attention import attention_loss, projections
from resurgence.diffusion.device import exact
from resurgence.diffusion.latents import add_noise
from resurgence.erasers.lora import Lora, adapted, unstack
from resurgence.seeds import generator
from resurgence.training import loop
from resurgence.training.checkpoint import Saver, fingerprint
from resurgence.training.memory import PassLimits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from diffusers import UNet2DConditionModel

SIDES = ("down", "up")  # of a LoRA


@dataclass(frozen=True)
class ConceptData:
    """Training data of a concept."""

    name: str
    latents: torch.Tensor  # (N, C, h, w), scaled
    masks: torch.Tensor | None  # (N, 1, H, W) bool; None: the whole map
    texts: torch.Tensor  # (T, L, d), one row of captions
    tokens: torch.Tensor  # (T, L) bool, the set S of each caption


@dataclass(frozen=True)
class Training:
    """Settings of the trainer; see MaceConfig for their meaning and sources."""

    steps: int
    lr: float
    rank: int
    weight_decay: float
    max_norm: float
    timesteps: str  # window | uniform
    chunk: int


class Draw:
    """Random draws of a concept, in a fixed order from its own generator."""

    def __init__(self, concept: ConceptData, timesteps: torch.Tensor, seed: int) -> None:
        self.concept, self.timesteps = concept, timesteps
        self.generator = generator("concept LoRA, steps", concept.name, seed)

    def __call__(self) -> tuple[int, int, int, torch.Tensor]:
        """Index of an image, index of a caption, timestep, and noise (C, h, w)."""
        image = int(torch.randint(len(self.concept.latents), (1,), generator=self.generator))
        caption = int(torch.randint(len(self.concept.texts), (1,), generator=self.generator))
        t = int(torch.multinomial(self.timesteps, 1, generator=self.generator))
        return image, caption, t, torch.randn(self.concept.latents.shape[1:], generator=self.generator)


class DrawnSteps:
    """The draws of all concepts by step, which may be asked for again: the generators go on with each new step."""

    def __init__(self, draws: Sequence[Draw]) -> None:
        self.draws, self.steps = draws, 0
        self.latest: list[tuple[int, int, int, torch.Tensor]] = []

    def __call__(self, step: int) -> list[tuple[int, int, int, torch.Tensor]]:
        """One draw of each concept; those of earlier steps are replayed first where a training resumes."""
        while self.steps <= step:
            self.latest = [draw() for draw in self.draws]
            self.steps += 1
        return self.latest


def timestep_weights(kind: str, count: int = 1000) -> torch.Tensor:
    """p(t), t = 0..count-1: sigmoid(.05 (t - 200)) - sigmoid(.05 (t - 400)) (MACE, section 4.2), or uniform.

    The window is stated for 1,000 timesteps; for another count t is scaled to it.
    """
    t = torch.arange(count, dtype=torch.float64) * 1000 / count
    p = torch.sigmoid(0.05 * (t - 200)) - torch.sigmoid(0.05 * (t - 400)) if kind == "window" else torch.ones_like(t)
    return p / p.sum()


def initial_factors(unet: UNet2DConditionModel, names: Sequence[str], rank: int, seed: int) -> Lora:
    """Stacked factors of the named concepts: down ~ N(0, 1 / rank) in standard deviation, up = 0."""
    modules = projections(unet)
    dtype = torch.promote_types(unet.dtype, torch.float32)  # half-precision AdamW would lose small updates
    generators = [generator("concept LoRA, start", name, seed) for name in names]
    factors = {}
    for name, module in modules.items():
        shape = (rank, module.in_features)
        down = torch.stack([torch.randn(shape, generator=g) / rank for g in generators])
        up = torch.zeros(len(names), module.out_features, rank)
        factors[name] = tuple(f.to(unet.device, dtype).requires_grad_() for f in (down, up))
    return factors


@contextmanager
def frozen(unet: UNet2DConditionModel) -> Iterator[None]:
    """Within the block no parameter of the UNet requires a gradient, and it is in evaluation mode."""
    trainable, mode = [p for p in unet.parameters() if p.requires_grad], unet.training
    unet.requires_grad_(False).eval()
    try:
        yield
    finally:
        unet.train(mode)
        for p in trainable:
            p.requires_grad_(True)


def losses(
    unet: UNet2DConditionModel,
    alphas_bar: torch.Tensor,
    concepts: Sequence[ConceptData],
    factors: Lora,
    drawn: Sequence[tuple[int, int, int, torch.Tensor]],
) -> torch.Tensor:
    """Return the attention loss of each concept, (K,), for one draw of each.

    Args:
        alphas_bar: (T,), the base's noise schedule.
        factors: stacked, (K, ...), in the order of the concepts.
    """
    pairs = list(zip(concepts, drawn, strict=True))
    latents = torch.stack([c.latents[i] for c, (i, *_) in pairs])
    masks = None if concepts[0].masks is None else torch.stack([c.masks[i] for c, (i, *_) in pairs])
    texts = torch.stack([c.texts[j] for c, (_, j, *_) in pairs])
    tokens = torch.stack([c.tokens[j] for c, (_, j, *_) in pairs])
    t = torch.tensor([t for *_, t, _ in drawn], device=unet.device)
    noise = torch.stack([n for *_, n in drawn]).to(latents)
    noisy = add_noise(latents, noise, alphas_bar[t]).to(unet.dtype)
    with adapted(unet, factors):
        return attention_loss(unet, noisy, t, texts, masks, tokens)


def train_chunk(
    unet: UNet2DConditionModel,
    alphas_bar: torch.Tensor,
    concepts: Sequence[ConceptData],
    cfg: Training,
    seed: int,
    saver: Saver,
    saved: Mapping[str, Any] | None,
    finished: Mapping[str, Any],
    limits: PassLimits,
) -> tuple[dict[str, Lora], dict[str, list[float]]]:
    """Train some concepts in one batch; return the LoRA and the loss curve of each.

    Args:
        saved: the state of this batch from which to resume; None: start at step 0.
        finished: results of earlier batches, saved along with the state.
        limits: how many concepts pass the UNet at a time.
    """
    names = [concept.name for concept in concepts]
    factors = initial_factors(unet, names, cfg.rank, seed)
    parameters = {f"{name}.{side}": f for name, pair in factors.items() for side, f in zip(SIDES, pair, strict=True)}
    weights = timestep_weights(cfg.timesteps, len(alphas_bar))
    draws = [Draw(concept, weights, seed) for concept in concepts]
    drawn = DrawnSteps(draws)

    def gradient(step: int) -> dict[str, torch.Tensor]:
        samples, values = drawn(step), []
        for part in limits.parts(len(concepts)):
            some = {name: (down[part], up[part]) for name, (down, up) in factors.items()}
            loss = losses(unet, alphas_bar, concepts[part], some, samples[part])
            loss.sum().backward()
            values.append(loss.detach())
        for p in parameters.values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # of the last to_v: no map depends on it
        return {"loss": torch.cat(values)}

    run = loop.Run(
        f"LoRAs of {len(concepts)} concepts", cfg.steps, parameters,
        torch.optim.AdamW(parameters.values(), lr=cfg.lr, weight_decay=cfg.weight_decay),
        gradient,
        lr=lambda step: cfg.lr,
        clip=partial(loop.clip_per_concept, max_norm=cfg.max_norm),
        further=lambda: finished, limits=limits,
    )  # fmt: skip
    curves = zip(*loop.train(run, saver, saved)["loss"], strict=True)  # of one concept each
    loras = {name: unstack(factors, k) for k, name in enumerate(names)}
    return loras, {name: list(curve) for name, curve in zip(names, curves, strict=True)}


def train_concepts(
    unet: UNet2DConditionModel,
    alphas_bar: torch.Tensor,
    concepts: Sequence[ConceptData],
    cfg: Training,
    seed: int,
    state: Path | None = None,
) -> tuple[dict[str, Lora], dict[str, list[float]]]:
    """Train all concepts, `cfg.chunk` in a batch.

    Args:
        alphas_bar: (T,), the base's noise schedule.
        state: scratch folder from which an interrupted training resumes exactly; the caller removes it in the end.

    Returns:
        concept -> LoRA, and concept -> loss of each step.

    Raises:
        ValueError: latents that differ in size, masks for only some concepts, or a loss that is not finite.
        SystemExit: 143 after SIGTERM, with the state saved.
    """
    if len({c.latents.shape[1:] for c in concepts}) > 1:
        raise ValueError("the images of the concepts differ in size; make them of one size")
    if len({c.masks is None for c in concepts}) > 1:
        raise ValueError(f"no masks for {[c.name for c in concepts if c.masks is None]}; make masks for every concept")
    alphas_bar = alphas_bar.to(unet.device)
    read = [part for c in concepts for part in (c.latents, c.masks, c.texts, c.tokens) if part is not None]
    facts = ("concept LoRAs", astuple(cfg), seed, [c.name for c in concepts])
    saver = Saver(state, fingerprint(facts, [alphas_bar, *read, *unet.state_dict().values()]) if state else "")
    saved = saver.load(unet.device)
    finished, limits = saved["further"] if saved else {"loras": {}, "curves": {}}, PassLimits()
    limits.without_checkpointing()
    with exact(unet.device), frozen(unet):
        while len(finished["loras"]) < len(concepts):
            part = concepts[len(finished["loras"]) :][: cfg.chunk]
            loras, curves = train_chunk(unet, alphas_bar, part, cfg, seed, saver, saved, finished, limits)
            finished["loras"] |= loras
            finished["curves"] |= curves
            saved = None  # it was of this batch
    return finished["loras"], finished["curves"]
