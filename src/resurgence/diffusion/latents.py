"""Images to latents, and latents to noisy latents, as the base's own VAE and noise schedule define them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from resurgence.diffusion.pipeline import exact

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@torch.no_grad()
def latents_of(pipe: StableDiffusionPipeline, images: torch.Tensor, batch: int = 8) -> torch.Tensor:
    """Scaled latents (the mode of the encoder's distribution) of images (N, 3, H, W) in [-1, 1]: (N, C, h, w).

    Raises:
        ValueError: if the images lie outside [-1, 1].
    """
    low, high = float(images.min()), float(images.max())
    if images.ndim != 4 or low < -1.001 or high > 1.001:
        raise ValueError(f"images {tuple(images.shape)} in [{low:g}, {high:g}]: expected (N, 3, H, W) in [-1, 1]")
    parts = images.to(pipe.vae.device, pipe.vae.dtype).split(batch)
    with exact(pipe.vae.device):
        return torch.cat([pipe.vae.encode(part).latent_dist.mode() for part in parts]) * pipe.vae.config.scaling_factor


def add_noise(latents: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise; latents, noise (B, C, h, w), alpha_bar (B,)."""
    alpha_bar = alpha_bar.to(latents).view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
