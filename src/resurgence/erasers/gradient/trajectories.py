"""Latents x_t on the way from noise to images of a prompt: what the erasers that need no images train on.

DDIM with guidance, by the frozen base once for all steps of the training (`Trajectories`, cheap), or anew at each step
by the model in training (`walked`, as the first scripts of ESD and SDD).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import torch

from resurgence.diffusion.device import exact
from resurgence.diffusion.unet import Predict, ddim, predict
from resurgence.seeds import generator
from resurgence.training.memory import PassLimits

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

CHUNK = 64  # trajectories sampled at a time


def stops(draws: Sequence[torch.Generator], steps: int, timesteps: int) -> tuple[list[int], list[int]]:
    """Where each sample leaves its trajectory: after how many DDIM steps, and how far t lies above the t of that step.

    t is uniform over the interval between this DDIM step and the one before it, timesteps / steps wide, as in the
    first scripts of ESD and SDD.
    """
    ends = [int(torch.randint(steps, (), generator=g)) for g in draws]
    return ends, [int(torch.randint(timesteps // steps, (), generator=g)) for g in draws]


def walked(
    pipe: StableDiffusionPipeline,
    predict: Predict,
    draws: Sequence[torch.Generator],
    text: torch.Tensor,
    empty: torch.Tensor,
    steps: int,
    guidance: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t (B, C, h, w) and t (B,) after a random number of DDIM steps, a number for each sample, from its generator.

    Args:
        text: (B, L, d). empty: (1, L, d). The others as in `ddim`.
    """
    side, timesteps = pipe.unet.config.sample_size, len(pipe.scheduler.alphas_cumprod)
    shape = (pipe.unet.config.in_channels, side, side)
    noise = torch.stack([torch.randn(shape, generator=g) for g in draws]).to(text.device)
    ends, shifts = stops(draws, steps, timesteps)
    x, t = noise.clone(), torch.zeros(len(draws), dtype=torch.long, device=text.device)
    for step, (now, latents) in enumerate(ddim(pipe.scheduler, predict, noise, text, empty, steps, guidance)):
        for b in [b for b, end in enumerate(ends) if end == step]:
            x[b], t[b] = latents[b], now + shifts[b]
        if step == max(ends):
            break
    return x, t.clamp(max=timesteps - 1)


class Trajectories:
    """x_t of `count` trajectories of each prompt at every DDIM step, made by the frozen base.

    Costs count * (steps - 1) UNet passes a prompt once (twice that with guidance), and count * steps latents of memory.

    Args:
        texts: name -> embedding (L, d) of its prompt. limits: of the UNet's passes.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        texts: Mapping[str, torch.Tensor],
        empty: torch.Tensor,
        count: int,
        steps: int,
        guidance: float,
        seed: int,
        limits: PassLimits | None = None,
    ) -> None:
        unet, limits = pipe.unet, limits or PassLimits()
        side = unet.config.sample_size
        shape = (unet.config.in_channels, side, side)
        rows = [(name, k) for name in texts for k in range(count)]
        parts = []
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            noise = torch.stack([torch.randn(shape, generator=generator("trajectory", n, k, seed)) for n, k in chunk])
            text = torch.stack([texts[name] for name, _ in chunk])

            def sampled(noise: torch.Tensor = noise, text: torch.Tensor = text) -> list[tuple[int, torch.Tensor]]:
                split = partial(limits.split, partial(predict, unet))
                run = ddim(pipe.scheduler, split, noise.to(unet.device), text, empty, steps, guidance)
                return list(islice(run, steps))  # without x_0, whose pass is not run

            with exact(unet.device):  # a run that goes on makes the same again
                seen = limits.fitting(sampled)
            parts.append(torch.stack([x for _, x in seen]))  # (steps, B, C, h, w)
            self.timesteps = [t for t, _ in seen]
        every = torch.cat(parts, 1)
        self.latents = {name: every[:, i * count : (i + 1) * count] for i, name in enumerate(texts)}

    def draws(self, names: Sequence[str], draws: Sequence[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        """x_t (B, C, h, w) and t (B,) of several prompts, each from its generator."""
        pairs = [self.draw(name, g) for name, g in zip(names, draws, strict=True)]
        x = torch.stack([x for x, _ in pairs])
        return x, torch.tensor([t for _, t in pairs], device=x.device)

    def draw(self, name: str, draws: torch.Generator) -> tuple[torch.Tensor, int]:
        """One x_t (C, h, w) of a prompt and its t, uniform over the steps and the trajectories."""
        latents = self.latents[name]
        step = int(torch.randint(latents.shape[0], (), generator=draws))
        which = int(torch.randint(latents.shape[1], (), generator=draws))
        return latents[step, which], self.timesteps[step]
