"""Sample a prompt set: DDIM with classifier-free guidance (Ho & Salimans 2021), one generator for each image.

The noise of an image depends on its row's seed only, so images of batches of 1, 7 or 64, in any order, agree to float
rounding (at most one grey level). Text is encoded once per unique prompt; PNG encoding runs in threads while the next
batch is sampled.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from PIL import Image

from resurgence.config.fields import ConfigError
from resurgence.config.stages import SamplingConfig
from resurgence.diffusion.device import exact
from resurgence.diffusion.text import check_lengths, encode_prompts
from resurgence.diffusion.unet import ddim, predict
from resurgence.progress import Progress

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

log = logging.getLogger(__name__)
WINDOW = 256  # unique prompts whose embeddings are held at a time
DECODE_PIXELS = 8 * 512 * 512  # pixels that the VAE decodes at once


def latent_shape(pipe: StableDiffusionPipeline, size: int | None) -> tuple[int, int, int]:
    """Return (C, h, w) of the latents of square images of `size` pixels.

    Raises:
        ConfigError: a size that is not a multiple of the autoencoder's factor.
    """
    factor = pipe.vae_scale_factor
    if size is not None and size % factor:
        raise ConfigError("size", size, f"must be a multiple of {factor}, the autoencoder's factor")
    side = pipe.unet.config.sample_size if size is None else size // factor
    return (pipe.unet.config.in_channels, side, side)


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> torch.Tensor:
    """Draw the starting noise (B, C, h, w) of each image from its own CPU generator."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])


class PromptWindow:
    """Embeddings of unique prompts read in order: each is encoded once, and dropped after its last use."""

    def __init__(self, pipe: StableDiffusionPipeline, prompts: Sequence[str]) -> None:
        self.pipe, self.prompts = pipe, list(prompts)
        self.start, self.held = 0, encode_prompts(pipe, self.prompts[:WINDOW])  # (W, L, d)

    def __getitem__(self, codes: Sequence[int]) -> torch.Tensor:
        """Embeddings (B, L, d) of the prompts with these ascending numbers; earlier ones are dropped."""
        end = self.start + len(self.held)
        if codes[-1] >= end:
            ahead = encode_prompts(self.pipe, self.prompts[end : max(end + WINDOW, codes[-1] + 1)])
            self.held = torch.cat([self.held[codes[0] - self.start :], ahead])
            self.start = min(codes[0], end)
        return self.held[torch.tensor(codes, device=self.held.device) - self.start]


def configure_speed(pipe: StableDiffusionPipeline, cfg: SamplingConfig) -> None:
    """Convert the pipeline to the memory format of the settings, and compile its UNet (once) if they ask for it."""
    if cfg.channels_last:
        for part in (pipe.unet, pipe.vae):
            part.to(memory_format=torch.channels_last)
    if cfg.compile and pipe.unet._compiled_call_impl is None:
        pipe.unet.compile()


@torch.no_grad()
def denoise(
    pipe: StableDiffusionPipeline, noise: torch.Tensor, text: torch.Tensor, empty: torch.Tensor, cfg: SamplingConfig
) -> torch.Tensor:
    """Run DDIM from noise to latents.

    Args:
        noise: (B, C, h, w). text: (B, L, d). empty: (1, L, d), the embedding of "".

    Returns:
        (B, C, h, w) float32.
    """
    noise = noise.to(pipe.unet.device, torch.float32)
    states = ddim(pipe.scheduler, partial(predict, pipe.unet), noise, text, empty, cfg.steps, cfg.guidance)
    return deque(states, maxlen=1)[0][1]  # x_0, the last of them


@torch.no_grad()
def decode(pipe: StableDiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents (B, C, h, w) to uint8 images (B, 3, H, W) on the CPU."""
    chunk = max(1, DECODE_PIXELS // (latents[0, 0].numel() * pipe.vae_scale_factor**2))
    scaled = (latents / pipe.vae.config.scaling_factor).to(pipe.vae.dtype)
    images = torch.cat([pipe.vae.decode(part, return_dict=False)[0].float() for part in scaled.split(chunk)])
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def sample(
    pipe: StableDiffusionPipeline, prompts: pd.DataFrame, cfg: SamplingConfig
) -> Iterator[tuple[int, Image.Image]]:
    """Yield (position of the row, image) for each row; rows of one prompt come together.

    Args:
        prompts: columns prompt and seed.

    Raises:
        ValueError: a prompt is longer than the model reads.
        MemoryError: not even one image fits on the device. Before that the batch is halved.
    """
    configure_speed(pipe, cfg)
    codes, unique = pd.factorize(prompts["prompt"])
    check_lengths(pipe.tokenizer, unique)  # of all, before the first image
    order, seeds = np.argsort(codes, kind="stable"), prompts["seed"].to_numpy()
    shape, empty = latent_shape(pipe, cfg.size), encode_prompts(pipe, [""])
    embeddings = PromptWindow(pipe, unique) if len(unique) else {}
    progress = Progress("sampling", len(order), "images")
    start, batch = 0, cfg.batch
    while start < len(order):
        rows = order[start : start + batch]
        images = None
        try:
            text = embeddings[codes[rows].tolist()]
            with exact(pipe.device):
                images = decode(pipe, denoise(pipe, initial_noise(seeds[rows], shape), text, empty, cfg))
        except torch.OutOfMemoryError as error:
            if batch == 1:
                raise MemoryError(f"one image of {shape} latents does not fit on {pipe.device}: {error}") from error
        if images is None:  # outside of the except block, which keeps the failed batch alive
            batch = max(1, len(rows) // 2)
            log.warning("out of memory on %s; continuing with batches of %d", pipe.device, batch)
            torch.cuda.empty_cache()
            continue
        for row, image in zip(rows, images, strict=True):
            yield int(row), Image.fromarray(image.permute(1, 2, 0).numpy())
        start += len(rows)
        progress.add(len(rows))
