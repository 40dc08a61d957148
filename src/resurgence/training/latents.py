"""Latents of a training set, encoded by the first job that trains on it and read by the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from resurgence.diffusion.device import is_deterministic
from resurgence.diffusion.latents import posterior
from resurgence.files import atomic_file
from resurgence.training.checkpoint import fingerprint

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def set_posteriors(
    vae: AutoencoderKL, images: torch.Tensor, flips: bool, folder: Path | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the scaled latents of images (N, 3, H, W), plain and mirrored: (F, N, C, h, w) each.

    Args:
        flips: whether there are mirrored ones, so that F is 2.
        folder: where the values are stored, by a digest of images, autoencoder, card and arithmetic, so that a job
            reads the bytes, in the memory layout, that it would compute; None: nowhere.
    """
    file = None
    if folder is not None:
        card = torch.cuda.get_device_name(vae.device) if vae.device.type == "cuda" else vae.device.type
        facts = (
            "latents",
            card,
            torch.__version__,
            is_deterministic(),
            vae.config.scaling_factor,
            flips,
            images.stride(),
        )
        file = folder / f"{fingerprint(facts, [images, *vae.state_dict().values()])}.pt"
        if file.exists():
            return tuple(torch.load(file, map_location=vae.device, weights_only=True))
    sides = [posterior(vae, side) for side in (images, images.flip(-1))[: 1 + flips]]
    mean, std = (torch.stack(part) for part in zip(*sides, strict=True))
    if file is not None:
        with atomic_file(file) as temporary:
            torch.save([mean.cpu(), std.cpu()], temporary)
    return mean, std
