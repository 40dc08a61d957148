"""Fine-tune an erased model on benign images by LoRA or in full: the step after which concepts may return.

The loss is the plain mean squared error of the predicted noise (Ho et al. 2020, Eq. 14) or velocity (Salimans & Ho
2022), timesteps uniform. Latents and text embeddings are computed once. Every draw of a training sample is seeded by
(seed, step, number in the step), so batches of another size draw the same, and a resumed run is bit-identical to an
uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from resurgence.config.fields import ConfigError
from resurgence.config.stages import FinetuneConfig
from resurgence.diffusion.device import DTYPES, check_precision, exact
from resurgence.diffusion.speed import fast_training
from resurgence.diffusion.text import encode_prompts
from resurgence.diffusion.text_checks import check_long
from resurgence.diffusion.unet import predict
from resurgence.seeds import generator
from resurgence.training import loop
from resurgence.training.checkpoint import Saver, check_disk, checkpoint_name, copy_checkpoints, fingerprint
from resurgence.training.latents import set_posteriors
from resurgence.training.lora import prepare, restore, save_checkpoint
from resurgence.training.memory import PassLimits

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

Tensors = dict[str, torch.Tensor]


class Data(NamedTuple):
    """Training data: posteriors of the latents, plain and mirrored, and text embeddings."""

    mean: torch.Tensor  # (F, N, C, h, w) scaled; F = 2 with mirrored images
    std: torch.Tensor  # (F, N, C, h, w) scaled
    text: torch.Tensor  # (U, L, d), one for each unique caption
    caption: list[int]  # N numbers of captions


class Draw(NamedTuple):
    """The random part of one training sample."""

    image: int
    flip: int
    t: int
    posterior: torch.Tensor  # (C, h, w)
    noise: torch.Tensor  # (C, h, w)


def lr_factor(cfg: FinetuneConfig, step: int) -> float:
    """Return the factor of lr at a step counted from 0: linear warm-up from 0, then constant or a half cosine to 0."""
    if step < cfg.warmup:
        return step / cfg.warmup
    if cfg.lr_scheduler == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - cfg.warmup) / (cfg.steps - cfg.warmup)))


def ema_decay(step: int) -> float:
    """Return the decay of update number `step`, counted from 1, as diffusers' EMAModel does."""
    n = step - 1
    return min((1 + n) / (10 + n), 0.9999) if n > 0 else 0.0


def draw(seed: int, step: int, number: int, per_step: int, data: Data, timesteps: int, flips: bool) -> Draw:
    """Draw sample `number` of a step; images come in a new random order each epoch."""
    images, shape = data.mean.shape[1], data.mean.shape[2:]
    epoch, position = divmod(step * per_step + number, images)
    order = torch.randperm(images, generator=generator("finetune order", seed, epoch))
    g = generator("finetune draw", seed, step, number)
    flip = int(torch.randint(2, (), generator=g)) * flips
    t = int(torch.randint(timesteps, (), generator=g))
    return Draw(int(order[position]), flip, t, torch.randn(shape, generator=g), torch.randn(shape, generator=g))


def diffusion_loss(
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    data: Data,
    draws: Sequence[Draw],
    checkpointing: bool = False,
) -> torch.Tensor:
    """Return the mean squared error of the predicted noise or velocity over the draws of one forward pass."""
    device = data.mean.device
    image, flip, t = (torch.tensor([d[i] for d in draws], device=device) for i in range(3))
    deviation, noise = (torch.stack([d[i] for d in draws]).to(device) for i in (3, 4))  # (B, C, h, w)
    x0 = data.mean[flip, image] + data.std[flip, image] * deviation
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(x0, noise, t) if velocity else noise
    text = data.text[torch.tensor([data.caption[d.image] for d in draws], device=device)]  # (B, L, d)
    return F.mse_loss(predict(unet, scheduler.add_noise(x0, noise, t), t, text, None, checkpointing), target)


@torch.no_grad()
def encode(
    pipe: StableDiffusionPipeline,
    images: torch.Tensor,
    captions: Sequence[str],
    flips: bool,
    latents: Path | None = None,
) -> Data:
    """Encode images (N, 3, H, W) in [-1, 1] and captions once; `latents`: see `finetune`."""
    mean, std = set_posteriors(pipe.vae, images, flips, latents)
    unique = list(dict.fromkeys(captions))
    text = encode_prompts(pipe, unique, truncate=True)
    return Data(mean, std, text, [unique.index(caption) for caption in captions])


def shuffled(captions: Sequence[str], seed: int) -> list[str]:
    """Return the captions in a random order: the control in which texts do not describe their images."""
    order = torch.randperm(len(captions), generator=generator("shuffle captions", seed))
    return [captions[i] for i in order.tolist()]


def check_inputs(pipe: StableDiffusionPipeline, images: torch.Tensor, captions: Sequence[str], precision: str) -> None:
    """Raise ValueError for inputs that training cannot use."""
    if images.ndim != 4 or len(images) != len(captions) or not len(captions):
        raise ValueError(f"images {tuple(images.shape)}, {len(captions)} captions: give one caption for each image")
    if not (images.abs() <= 1.001).all():
        raise ValueError(f"images lie in [{images.min():g}, {images.max():g}]; scale them to [-1, 1]")
    for name in ("unet", "vae", "text_encoder"):
        if getattr(pipe, name).dtype != torch.float32:
            raise ValueError(f"the {name} is {getattr(pipe, name).dtype}; load the base in fp32 and set precision")
    check_precision("precision", precision, pipe.device)
    if precision == "fp16" and pipe.device.type != "cuda":
        raise ConfigError("precision", precision, f"needs a GPU, the base is on {pipe.device}; write fp32 or bf16")
    if (kind := pipe.scheduler.config.prediction_type) not in ("epsilon", "v_prediction"):
        raise ValueError(f"the base predicts {kind!r}; this loss is defined for epsilon and v_prediction")


def finetune(
    pipe: StableDiffusionPipeline,
    images: torch.Tensor,
    captions: Sequence[str],
    cfg: FinetuneConfig,
    seed: int,
    folder: Path,
    state: Path | None = None,
    latents: Path | None = None,
) -> list[dict[str, float]]:
    """Fine-tune the UNet and write folder/step-000100/... at each checkpoint; the pipeline is restored afterwards.

    Args:
        images: (N, 3, H, W) in [-1, 1]. captions: one for each image.
        state: scratch folder from which an interrupted run resumes exactly; the caller removes it at the end.
        latents: folder in which trainings on the same images share their latents; None: each encodes them.

    Returns:
        One row a step: step, loss, lr, gradient_norm (before clipping).

    Raises:
        ValueError: inputs that do not fit, captions that the settings refuse for their length, or a loss that is not
            finite, naming step and lr.
        OSError: no space for the checkpoints.
        SystemExit: 143 after SIGTERM, with the state saved.
    """
    check_inputs(pipe, images, captions, cfg.precision)
    check_long(pipe.tokenizer, captions, cfg.long_captions)
    unet = pipe.unet
    # without private entries: diffusers lists its defaults in another order in each process
    noise = sorted((key, value) for key, value in pipe.scheduler.config.items() if not key.startswith("_"))
    facts = (astuple(cfg), seed, list(captions), noise)
    weights = (p for part in (unet, pipe.vae, pipe.text_encoder) for p in part.state_dict().values())
    saver = Saver(state, fingerprint(facts, [images, *weights]) if state else "")
    texts = shuffled(captions, seed) if cfg.shuffle_captions else captions
    data = encode(pipe, images, texts, cfg.horizontal_flip, latents)
    full = cfg.algorithm == "full"
    before = {name: p.detach().to("cpu", copy=True) for name, p in unet.state_dict().items()} if full else {}
    try:
        trainable = prepare(unet, None if full else cfg.rank, seed)
        check_disk(state or folder, cfg.checkpoints, trainable.values())
        with exact(pipe.device, cfg.precision), fast_training(unet):
            curve = train(pipe, data, trainable, before, cfg, seed, state or folder, saver)
    finally:
        restore(unet, before)
    copy_checkpoints(cfg.checkpoints, state, folder)
    return curve


def limits_of(cfg: FinetuneConfig, device: torch.device) -> PassLimits:
    """The passes of a step: of `batch` images, or what base.micro_batch of the study says, or on a GPU all that fit."""
    limits = PassLimits()
    if limits.micro_batch is None and device.type == "cpu":
        limits.micro_batch = cfg.batch
    limits.checkpointing = limits.checkpointing or cfg.gradient_checkpointing
    return limits


def train(
    pipe: StableDiffusionPipeline,
    data: Data,
    trainable: Tensors,
    before: Tensors,
    cfg: FinetuneConfig,
    seed: int,
    folder: Path,
    saver: Saver,
) -> list[dict[str, float]]:
    """Train, write checkpoints into `folder`, and return the curve."""
    device, scheduler, per_step = pipe.unet.device, pipe.scheduler, cfg.batch * cfg.accumulation
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.precision == "fp16")
    average = {name: p.detach().clone() for name, p in trainable.items()} if cfg.ema else {}
    dtype = DTYPES[cfg.precision]
    options = (per_step, data, scheduler.config.num_train_timesteps, cfg.horizontal_flip)
    limits = limits_of(cfg, device)

    def gradient(step: int) -> Tensors:
        """Accumulate the gradient of a step over its forward passes."""
        loss = torch.zeros((), device=device)
        draws = [draw(seed, step, number, *options) for number in range(per_step)]
        for some in (draws[part] for part in limits.parts(per_step)):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                mean = diffusion_loss(pipe.unet, scheduler, data, some, limits.checkpointing)
            part = mean / (per_step / len(some))
            scaler.scale(part).backward()
            loss += part.detach()
        return {"loss": loss}

    def write(step: int) -> None:
        save_checkpoint(pipe.unet, average or trainable, before, folder / checkpoint_name(step))

    run = loop.Run(
        "fine-tuning", cfg.steps, trainable,
        torch.optim.AdamW(trainable.values(), cfg.lr, weight_decay=cfg.weight_decay, fused=True),
        gradient,
        lr=lambda step: cfg.lr * lr_factor(cfg, step),
        clip=partial(torch.nn.utils.clip_grad_norm_, max_norm=cfg.max_norm),
        average=average, decay=ema_decay, scaler=scaler, checkpoints=cfg.checkpoints, write=write,
        limits=limits,
    )  # fmt: skip
    curve = loop.train(run, saver, saver.load(device))
    rows = zip(curve["loss"], curve[loop.GRADIENT_NORM], strict=True)
    return [
        {"step": step + 1, "loss": loss, "lr": run.lr(step), "gradient_norm": norm}
        for step, (loss, norm) in enumerate(rows)
    ]
