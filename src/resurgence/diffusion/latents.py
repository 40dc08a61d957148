"""Images to latents, and latents to noisy latents, by the VAE and the noise schedule of the base."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from resurgence.diffusion.device import exact

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline


@torch.no_grad()
def posterior(vae: AutoencoderKL, images: torch.Tensor, batch: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the scaled latents of images (N, 3, H, W) in [-1, 1]: (N, C, h, w) each."""
    with exact(vae.device):
        parts = [vae.encode(part.to(vae.device, vae.dtype)).latent_dist for part in images.split(batch)]
    factor = vae.config.scaling_factor
    return torch.cat([part.mean for part in parts]) * factor, torch.cat([part.std for part in parts]) * factor


def latents_of(pipe: StableDiffusionPipeline, images: torch.Tensor, batch: int = 8) -> torch.Tensor:
    """Scaled latents (the mode of the encoder's distribution) of images (N, 3, H, W) in [-1, 1]: (N, C, h, w).

    Raises:
        ValueError: if the images lie outside [-1, 1].
    """
    low, high = float(images.min()), float(images.max())
    if images.ndim != 4 or low < -1.001 or high > 1.001:
        raise ValueError(f"images {tuple(images.shape)} in [{low:g}, {high:g}]: expected (N, 3, H, W) in [-1, 1]")
    return posterior(pipe.vae, images, batch)[0]


def add_noise(latents: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise; latents, noise (B, C, h, w), alpha_bar (B,)."""
    alpha_bar = alpha_bar.to(latents).view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
