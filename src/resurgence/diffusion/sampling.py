"""Sample a prompt set: DDIM with classifier-free guidance (Ho & Salimans 2021), one generator for each image.

The noise of an image depends on its row's seed only, so images of batches of 1, 7 or 64, in any order, agree to float
rounding (at most one grey level). Text is encoded once per unique prompt; PNG encoding runs in threads while the next
batch is sampled.

An image whose latents or pixels are not finite in half precision is sampled again in fp32, from the same weights, which
were rounded to half precision when they were loaded; in fp32 it ends the job. Converted to pixels it would be black.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from PIL import Image

from resurgence.config.fields import ConfigError
from resurgence.config.stages import SamplingConfig
from resurgence.diffusion.device import DTYPES, check_precision, exact, is_out_of_memory
from resurgence.diffusion.image_sets import RESAMPLED
from resurgence.diffusion.speed import apply_speed, chosen, is_compiled
from resurgence.diffusion.text import check_lengths, encode_prompts
from resurgence.diffusion.unet import ddim, predict, text_projected_once
from resurgence.progress import Progress

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

log = logging.getLogger(__name__)
WINDOW = 256  # unique prompts whose embeddings are held at a time
DECODE_PIXELS = 8 * 512 * 512  # pixels that the VAE decodes at once
CPU_DECODE_PIXELS = 16 * 64 * 64  # at least, on a CPU, whose caches hold their activations: three quarters of the time


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

    def __init__(self, pipe: StableDiffusionPipeline, prompts: Sequence[str], truncate: bool = False) -> None:
        self.pipe, self.prompts, self.truncate = pipe, list(prompts), truncate
        self.start, self.held = 0, encode_prompts(pipe, self.prompts[:WINDOW], truncate=truncate)  # (W, L, d)

    def __getitem__(self, codes: Sequence[int]) -> torch.Tensor:
        """Embeddings (B, L, d) of the prompts with these ascending numbers; earlier ones are dropped."""
        end = self.start + len(self.held)
        if codes[-1] >= end:
            more = self.prompts[end : max(end + WINDOW, codes[-1] + 1)]
            ahead = encode_prompts(self.pipe, more, truncate=self.truncate)
            self.held = torch.cat([self.held[codes[0] - self.start :], ahead])
            self.start = min(codes[0], end)
        return self.held[torch.tensor(codes, device=self.held.device) - self.start]


def configure_speed(pipe: StableDiffusionPipeline, cfg: SamplingConfig) -> None:
    """Run UNet and autoencoder as `base.speed` and the settings ask for."""
    speed = chosen(pipe.device) | (cfg.channels_last, cfg.compile, False)
    apply_speed(pipe.unet, speed, pipe.vae)


def padded(values: torch.Tensor, count: int) -> torch.Tensor:
    """The samples (B, ...), the last one repeated until there are `count`."""
    return torch.cat([values, values[-1:].expand(max(0, count - len(values)), *values.shape[1:])])


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
    text, empty = text.to(pipe.unet.dtype), empty.to(pipe.unet.dtype)  # once, not in each step
    states = ddim(pipe.scheduler, partial(predict, pipe.unet), noise, text, empty, cfg.steps, cfg.guidance)
    with text_projected_once(pipe.unet):
        return deque(states, maxlen=1)[0][1]  # x_0, the last of them


def finite_samples(values: torch.Tensor) -> torch.Tensor:
    """Which samples of a batch (B, ...) have no NaN or infinite value: (B,) bool."""
    return values.isfinite().flatten(1).all(1)


@torch.no_grad()
def decode(pipe: StableDiffusionPipeline, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode latents (B, C, h, w): uint8 images (B, 3, H, W), and which have finite latents and pixels, (B,) bool.

    Both are on the CPU; images that are not finite have arbitrary pixels.
    """
    size = latents[0, 0].numel() * pipe.vae_scale_factor**2
    scaled = (latents / pipe.vae.config.scaling_factor).to(pipe.vae.dtype)
    if scaled.device.type == "cpu":  # kernels for fewer images than that round differently: a rest joins the others
        parts = scaled.tensor_split(max(1, len(scaled) * size // max(CPU_DECODE_PIXELS, size)))
    else:
        parts = scaled.split(max(1, DECODE_PIXELS // size))
    images = torch.cat([pipe.vae.decode(part, return_dict=False)[0].float() for part in parts])
    finite = finite_samples(latents) & finite_samples(images)
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu(), finite.cpu()


@contextmanager
def single_precision(pipe: StableDiffusionPipeline) -> Iterator[None]:
    """Within the block the pipeline computes in fp32; afterwards its weights are as they were, bit for bit.

    A compiled UNet runs eager: compiling it for this type and these few images would take minutes.
    """
    dtypes = {part: part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)}
    compiled = pipe.unet._compiled_call_impl
    pipe.unet._compiled_call_impl = None
    try:
        for part in dtypes:
            torch.nn.Module.to(part, torch.float32)  # diffusers' own `to` warns of a change of the type
        yield
    finally:
        pipe.unet._compiled_call_impl = compiled
        for part, dtype in dtypes.items():
            torch.nn.Module.to(part, dtype)


def first_fault(
    pipe: StableDiffusionPipeline, noise: torch.Tensor, text: torch.Tensor, empty: torch.Tensor, cfg: SamplingConfig
) -> str:
    """Where the numbers of a batch cease to be finite, for messages; arguments as in `denoise`."""
    if not (text.isfinite().all() and empty.isfinite().all()):
        return "in the text encoder"
    noise = noise.to(pipe.unet.device, torch.float32)
    states = ddim(pipe.scheduler, partial(predict, pipe.unet), noise, text, empty, cfg.steps, cfg.guidance)
    faulty = (number for number, (_, x) in enumerate(states) if not x.isfinite().all())
    step = next(faulty, None)
    return "in the decoder" if step is None else f"in step {step} of {cfg.steps}"


def sample_in_fp32(
    pipe: StableDiffusionPipeline, rows: pd.DataFrame, shape: tuple[int, int, int], cfg: SamplingConfig
) -> torch.Tensor:
    """Sample in fp32 the images that were not finite in the precision of the pipeline: uint8 (n, 3, H, W) on the CPU.

    Args:
        rows: n rows of the prompt set. shape: of the latents.

    Raises:
        ValueError: they are not finite in fp32 either; names the step and the first prompt.
    """
    noise, precision = initial_noise(rows["seed"], shape), precision_of(pipe)
    with single_precision(pipe), exact(pipe.device):
        cut = cfg.long_prompts == "truncate"
        text, empty = encode_prompts(pipe, list(rows["prompt"]), truncate=cut), encode_prompts(pipe, [""])
        if precision != "fp32":
            images, finite = decode(pipe, denoise(pipe, noise, text, empty, cfg))
            if finite.all():
                log.warning("%d images are not finite in %s: sampled again in fp32", len(rows), precision)
                return images
        fault = first_fault(pipe, noise, text, empty, cfg)
    prompt, seed = rows["prompt"].iloc[0], rows["seed"].iloc[0]
    raise ValueError(f"sampling: NaN or infinite numbers {fault} in fp32 (prompt {prompt!r}, seed {seed}); the weights "
                     "have diverged: train them again with a lower lr, or lower guidance")  # fmt: skip


def precision_of(pipe: StableDiffusionPipeline) -> str:
    """The precision of the UNet: fp32, fp16 or bf16."""
    return next(name for name, dtype in DTYPES.items() if dtype == pipe.unet.dtype)


def generate(
    pipe: StableDiffusionPipeline,
    rows: pd.DataFrame,
    text: torch.Tensor,
    empty: torch.Tensor,
    cfg: SamplingConfig,
    precision: str = "fp32",
) -> list[Image.Image]:
    """Sample one batch; images that were sampled again in fp32 say so in their `info`.

    Args:
        rows: B rows of the prompt set. text: (B, L, d), of their prompts. empty: (1, L, d), the embedding of "".
        precision: tf32: products of a pipeline in fp32 run in TF32.

    Raises:
        ValueError: an image that is not finite in fp32.
    """
    shape = latent_shape(pipe, cfg.size)
    count = cfg.batch if is_compiled(pipe.unet) else len(rows)  # the last batch in the shape that is compiled
    with exact(pipe.device, precision):
        noise = initial_noise(rows["seed"], shape)
        latents = denoise(pipe, padded(noise, count), padded(text, count), empty, cfg)[: len(rows)]
        images, finite = decode(pipe, latents)
    if not finite.all():
        images[~finite] = sample_in_fp32(pipe, rows[~finite.numpy()], shape, cfg)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    for number in (~finite).nonzero().flatten().tolist():
        pictures[number].info[RESAMPLED] = True
    return pictures


def sample(
    pipe: StableDiffusionPipeline, prompts: pd.DataFrame, cfg: SamplingConfig, precision: str = "fp32"
) -> Iterator[tuple[int, Image.Image]]:
    """Yield (position of the row, image) for each row; rows of one prompt come together.

    Args:
        prompts: columns prompt and seed.
        precision: tf32: products of a pipeline in fp32 run in TF32; another one is that of the pipeline.

    Raises:
        ConfigError: tf32 on a device without TF32.
        ValueError: a prompt is longer than the model reads, unless `long_prompts` is truncate.
        MemoryError: not even one image fits on the device. Before that the batch is halved.
        ValueError: an image that is not finite in fp32.
    """
    check_precision("precision", precision, pipe.device)
    configure_speed(pipe, cfg)
    codes, unique = pd.factorize(prompts["prompt"])
    if cfg.long_prompts == "error":
        check_lengths(pipe.tokenizer, unique)  # of all, before the first image
    order, empty = np.argsort(codes, kind="stable"), encode_prompts(pipe, [""])
    shape = latent_shape(pipe, cfg.size)
    embeddings = PromptWindow(pipe, unique, cfg.long_prompts == "truncate") if len(unique) else {}
    progress = Progress("sampling", len(order), "images")
    start = 0
    while start < len(order):
        rows = order[start : start + cfg.batch]
        images = None
        try:
            images = generate(pipe, prompts.iloc[rows], embeddings[codes[rows].tolist()], empty, cfg, precision)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if cfg.batch == 1:
                raise MemoryError(f"one image of {shape} latents does not fit on {pipe.device}: {error}") from error
        if images is None:  # outside of the except block, which keeps the failed batch alive
            cfg = replace(cfg, batch=max(1, (cfg.batch if is_compiled(pipe.unet) else len(rows)) // 2))
            log.warning("out of memory on %s; continuing with batches of %d", pipe.device, cfg.batch)
            torch.cuda.empty_cache()
            continue
        for row, image in zip(rows, images, strict=True):
            yield int(row), image
        start += len(rows)
        progress.add(len(rows))
