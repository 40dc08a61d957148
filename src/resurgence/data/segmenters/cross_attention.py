"""Masks from the base's cross-attention to the concept's tokens: averaged, then Otsu's threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from resurgence.diffusion.attention import attention_maps, grid_of
from resurgence.diffusion.latents import add_noise, latents_of
from resurgence.diffusion.text import Encoder, concept_positions
from resurgence.seeds import generator

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def scaled(maps: torch.Tensor) -> torch.Tensor:
    """Each map (B, h, w) scaled to [0, 1]; a constant map becomes 0."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


def otsu(values: torch.Tensor) -> torch.Tensor:
    """Mask (H, W) of the values above Otsu's threshold; all False for a constant map."""
    from skimage.filters import threshold_otsu

    return values > float(threshold_otsu(values.numpy()))


@torch.no_grad()
def heat(
    pipe: StableDiffusionPipeline, noisy: torch.Tensor, t: torch.Tensor, text: torch.Tensor, positions: list[int]
) -> torch.Tensor:
    """Attention to some tokens, averaged over heads, tokens and layers: (B, h, w) in the latents' size.

    Each layer's map is scaled to [0, 1] first, so that the number of pixels does not weight the layers.
    """
    size, maps = noisy.shape[-2:], []

    def receive(name: str, probabilities: torch.Tensor) -> None:
        mean = probabilities[..., positions].float().mean((1, 3))  # (B, Q)
        mean = mean.unflatten(1, grid_of(mean.shape[1], *size))[:, None]
        maps.append(scaled(F.interpolate(mean, size=size, mode="bilinear", align_corners=False)[:, 0]))

    attention_maps(pipe.unet, receive, noisy, t, text.expand(len(noisy), -1, -1))
    return torch.stack(maps).mean(0)


@torch.no_grad()
def cross_attention(
    pipe: StableDiffusionPipeline,
    images: torch.Tensor,
    concept: str,
    template: str,
    timesteps: Sequence[int],
    batch: int,
) -> torch.Tensor:
    """Masks of a concept in images (N, 3, H, W) in [-1, 1]: (N, 1, H, W) bool.

    Each image is noised to each timestep by separate noise, and the maps are averaged.

    Raises:
        ValueError: if a timestep lies outside the base's schedule.
    """
    schedule = pipe.scheduler.alphas_cumprod
    if max(timesteps) >= len(schedule):
        raise ValueError(f"timesteps = {list(timesteps)}: the base has {len(schedule)}; name smaller ones")
    caption = template.replace("{}", concept)
    text = Encoder(pipe)([caption]).to(pipe.unet.dtype)  # (1, L, d)
    positions = concept_positions(pipe.tokenizer, caption, concept)
    latents = latents_of(pipe, images, batch).to(pipe.unet.dtype)
    total = torch.zeros(len(latents), *latents.shape[-2:], device=latents.device)
    for t in timesteps:
        draws = (generator("mask", concept, index, t) for index in range(len(latents)))
        noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in draws]).to(latents)
        noisy = add_noise(latents, noise, schedule[t].expand(len(latents)))
        for start in range(0, len(latents), batch):
            part = slice(start, start + batch)
            times = torch.full((len(noisy[part]),), t, device=noisy.device)
            total[part] += heat(pipe, noisy[part], times, text, positions)
    heats = F.interpolate(total[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False).cpu()
    return torch.stack([otsu(h[0]) for h in heats])[:, None]
