"""Train the LoRAs of many concepts in one batch, each exactly as if it were trained alone.

Sample k of the batch goes through its own factors. Parameters are stacked, (K, r, d) and (K, out, r), so AdamW, which
is elementwise, keeps each concept's own state; the gradient is clipped per concept, and each concept draws from its own
generator. The UNet is frozen and shared; text embeddings and latents are computed once, outside. A training that was
interrupted goes on where it was, exactly.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from resurgence.diffusion.attention import attention_loss, projections
from resurgence.diffusion.latents import add_noise
from resurgence.diffusion.pipeline import exact
from resurgence.erasers.lora import Lora, adapted, unstack
from resurgence.seeds import generator
from resurgence.training.checkpoint import Saver, fingerprint, stop_on_sigterm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from diffusers import UNet2DConditionModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConceptData:
    """What one concept is trained on."""

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
    """One concept's random draws, in a fixed order from its own generators."""

    def __init__(self, concept: ConceptData, timesteps: torch.Tensor, seed: int) -> None:
        self.concept, self.timesteps = concept, timesteps
        self.generator = generator("concept LoRA, steps", concept.name, seed)

    def __call__(self) -> tuple[int, int, int, torch.Tensor]:
        """Index of an image, index of a caption, timestep, and noise (C, h, w)."""
        image = int(torch.randint(len(self.concept.latents), (1,), generator=self.generator))
        caption = int(torch.randint(len(self.concept.texts), (1,), generator=self.generator))
        t = int(torch.multinomial(self.timesteps, 1, generator=self.generator))
        return image, caption, t, torch.randn(self.concept.latents.shape[1:], generator=self.generator)


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


def clip_per_concept(gradients: Sequence[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale each concept's gradient, over all tensors (K, ...), to norm at most max_norm, in place; the norms (K,)."""
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
    norms = torch.linalg.vector_norm(norms, dim=0)
    scale = (max_norm / (norms + 1e-6)).clamp(max=1)
    for g in gradients:
        g.mul_(scale.view(-1, *[1] * (g.ndim - 1)))
    return norms


@contextmanager
def frozen(unet: UNet2DConditionModel) -> Iterator[None]:
    """Within the block no parameter of the UNet asks for a gradient, and it is in evaluation mode."""
    asked, mode = [p for p in unet.parameters() if p.requires_grad], unet.training
    unet.requires_grad_(False).eval()
    try:
        yield
    finally:
        unet.train(mode)
        for p in asked:
            p.requires_grad_(True)


def train_chunk(
    unet: UNet2DConditionModel,
    alphas_bar: torch.Tensor,
    concepts: Sequence[ConceptData],
    cfg: Training,
    seed: int,
    keep: Callable[[dict[str, Any]], None],
    saved: dict[str, Any] | None = None,
) -> tuple[dict[str, Lora], dict[str, list[float]]]:
    """Train some concepts in one batch; the LoRA and the loss curve of each.

    Args:
        alphas_bar: (T,), the base's noise schedule.
        keep: is given the state after each step. saved: such a state, to go on from.
    """
    factors = initial_factors(unet, [c.name for c in concepts], cfg.rank, seed)
    parameters = [factor for pair in factors.values() for factor in pair]
    optimiser = torch.optim.AdamW(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay)
    weights = timestep_weights(cfg.timesteps, len(alphas_bar))
    draws = [Draw(concept, weights, seed) for concept in concepts]
    whole = concepts[0].masks is None
    first, losses = 0, []
    if saved is not None:
        first, losses = saved["step"], list(saved["losses"])
        for own, kept in zip(parameters, saved["factors"], strict=True):
            own.data.copy_(kept)
        for own in saved["optimiser"]["state"].values():
            own["step"] = own["step"].cpu()  # where AdamW has it; reading the file put it on the device
        optimiser.load_state_dict(saved["optimiser"])
        for draw in draws * first:  # the generators are where they were
            draw()
    start, told = time.monotonic(), time.monotonic()
    for step in range(first, cfg.steps):
        drawn = [draw() for draw in draws]
        latents = torch.stack([c.latents[i] for c, (i, *_) in zip(concepts, drawn, strict=True)])
        masks = None if whole else torch.stack([c.masks[i] for c, (i, *_) in zip(concepts, drawn, strict=True)])
        texts = torch.stack([c.texts[j] for c, (_, j, *_) in zip(concepts, drawn, strict=True)])
        tokens = torch.stack([c.tokens[j] for c, (_, j, *_) in zip(concepts, drawn, strict=True)])
        t = torch.tensor([t for *_, t, _ in drawn], device=unet.device)
        noise = torch.stack([n for *_, n in drawn]).to(latents)
        noisy = add_noise(latents, noise, alphas_bar[t]).to(unet.dtype)
        with adapted(unet, factors):
            loss = attention_loss(unet, noisy, t, texts, masks, tokens)  # (K,)
        gradients = torch.autograd.grad(loss.sum(), parameters, allow_unused=True)
        for p, g in zip(parameters, gradients, strict=True):  # the last to_v has none: no map depends on it
            p.grad = torch.zeros_like(p) if g is None else g
        clip_per_concept([p.grad for p in parameters], cfg.max_norm)
        optimiser.step()
        losses.append(loss.detach())
        state = {"step": step + 1, "factors": [p.detach() for p in parameters], "losses": losses}
        keep({**state, "optimiser": optimiser.state_dict()})
        if time.monotonic() - told > 10:
            told, rate = time.monotonic(), (step + 1 - first) / (time.monotonic() - start)
            log.info("LoRAs of %d concepts: step %d of %d, %.2f a second, %.0f s left",
                     len(concepts), step + 1, cfg.steps, rate, (cfg.steps - step - 1) / rate)  # fmt: skip
    curves = torch.stack(losses, 1).tolist()
    names = [concept.name for concept in concepts]
    return {n: unstack(factors, k) for k, n in enumerate(names)}, dict(zip(names, curves, strict=True))


def train_concepts(
    unet: UNet2DConditionModel,
    alphas_bar: torch.Tensor,
    concepts: Sequence[ConceptData],
    cfg: Training,
    seed: int,
    state: Path | None = None,
) -> tuple[dict[str, Lora], dict[str, list[float]]]:
    """Train all concepts, `cfg.chunk` in a batch; half as many when the GPU's memory does not hold them.

    Args:
        state: scratch folder from which an interrupted run goes on, exactly; the caller removes it in the end.

    Raises:
        ValueError: if latents differ in size, or only some concepts have masks.
        SystemExit: 143 after SIGTERM, with the state saved.
    """
    if len({c.latents.shape[1:] for c in concepts}) > 1:
        raise ValueError("the images of the concepts differ in size; make them of one size")
    if len({c.masks is None for c in concepts}) > 1:
        raise ValueError(f"no masks for {[c.name for c in concepts if c.masks is None]}; make masks for every concept")
    loras, curves, chunk = {}, {}, cfg.chunk
    alphas_bar = alphas_bar.to(unet.device)
    read = [part for c in concepts for part in (c.latents, c.masks, c.texts, c.tokens) if part is not None]
    facts = ("concept LoRAs", astuple(cfg), seed, [c.name for c in concepts])
    saver = Saver(state, fingerprint(facts, [alphas_bar, *read, *unet.state_dict().values()]) if state else "")
    if (saved := saver.load(unet.device)) is not None:
        loras, curves, chunk = saved["loras"], saved["curves"], saved["chunk"]
    with exact(unet.device), frozen(unet), stop_on_sigterm() as stop:

        def keep(own: dict[str, Any]) -> None:
            """Save the state when it is time, or leave with it after SIGTERM."""
            ending = stop.is_set()
            saver.save({**own, "chunk": chunk, "loras": loras, "curves": curves}, force=ending)
            if ending:
                log.warning("SIGTERM: stopped after step %d of %d of %d concepts", own["step"], cfg.steps, chunk)
                raise SystemExit(143)

        while len(loras) < len(concepts):
            part = concepts[len(loras) : len(loras) + chunk]
            try:
                new, curve = train_chunk(unet, alphas_bar, part, cfg, seed, keep, saved)
            except torch.cuda.OutOfMemoryError:
                if chunk == 1:
                    raise
                chunk //= 2
                log.warning("the GPU's memory is too small for that many concepts in a batch: now %d", chunk)
                torch.cuda.empty_cache()
                saved = None  # of a batch of another shape
                continue
            loras, curves, saved = loras | new, curves | curve, None
    return loras, curves
