"""Fine-tune an erased model on benign images by LoRA or in full: the step after which concepts may come back.

The loss is the plain mean squared error of the predicted noise (Ho et al. 2020, Eq. 14) or velocity (Salimans & Ho
2022), timesteps uniform. Latents and text embeddings are computed once. Every draw of a training sample is seeded by
(seed, step, number in the step), so how a step is split into batches changes no draw, and a resumed run is the run that
was never stopped.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from resurgence.config.fields import ConfigError
from resurgence.config.stages import FinetuneConfig
from resurgence.diffusion.pipeline import exact
from resurgence.progress import Progress
from resurgence.seeds import generator
from resurgence.training.checkpoint import Saver, fingerprint, stop_on_sigterm
from resurgence.training.lora import checkpoint_name, prepare, restore, save_checkpoint

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

log = logging.getLogger(__name__)
Tensors = dict[str, torch.Tensor]
CHECK_EVERY = 10  # steps between two looks at the losses: each look waits for the GPU


class Data(NamedTuple):
    """What training reads: posteriors of the latents, plain and mirrored, and embeddings."""

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
    epoch, place = divmod(step * per_step + number, images)
    order = torch.randperm(images, generator=generator("finetune order", seed, epoch))
    g = generator("finetune draw", seed, step, number)
    flip = int(torch.randint(2, (), generator=g)) * flips
    t = int(torch.randint(timesteps, (), generator=g))
    return Draw(int(order[place]), flip, t, torch.randn(shape, generator=g), torch.randn(shape, generator=g))


def diffusion_loss(
    unet: UNet2DConditionModel, scheduler: DDIMScheduler, data: Data, draws: Sequence[Draw]
) -> torch.Tensor:
    """Return the mean squared error of the predicted noise or velocity over the draws of one forward pass."""
    device = data.mean.device
    image, flip, t = (torch.tensor([d[i] for d in draws], device=device) for i in range(3))
    posterior, noise = (torch.stack([d[i] for d in draws]).to(device) for i in (3, 4))  # (B, C, h, w)
    x0 = data.mean[flip, image] + data.std[flip, image] * posterior
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(x0, noise, t) if velocity else noise
    text = data.text[torch.tensor([data.caption[d.image] for d in draws], device=device)]  # (B, L, d)
    prediction = unet(scheduler.add_noise(x0, noise, t), t, text, return_dict=False)[0]
    return F.mse_loss(prediction.float(), target)


@torch.no_grad()
def encode(
    pipe: StableDiffusionPipeline, images: torch.Tensor, captions: Sequence[str], flips: bool, batch: int = 8
) -> Data:
    """Encode images (N, 3, H, W) in [-1, 1] and captions once."""
    means, stds = [], []
    for side in (images, images.flip(-1))[: 1 + flips]:
        posteriors = [pipe.vae.encode(part.to(pipe.vae.device)).latent_dist for part in side.split(batch)]
        means.append(torch.cat([p.mean for p in posteriors]))
        stds.append(torch.cat([p.std for p in posteriors]))
    unique = list(dict.fromkeys(captions))
    text = [pipe.encode_prompt(unique[i : i + 64], pipe.device, 1, False)[0] for i in range(0, len(unique), 64)]
    factor, numbers = pipe.vae.config.scaling_factor, [unique.index(caption) for caption in captions]
    return Data(torch.stack(means) * factor, torch.stack(stds) * factor, torch.cat(text), numbers)


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
    if precision == "fp16" and pipe.device.type != "cuda":
        raise ConfigError("precision", precision, f"needs a GPU, the base is on {pipe.device}; write fp32 or bf16")
    if (kind := pipe.scheduler.config.prediction_type) not in ("epsilon", "v_prediction"):
        raise ValueError(f"the base predicts {kind!r}; this loss knows epsilon and v_prediction")


def finetune(
    pipe: StableDiffusionPipeline,
    images: torch.Tensor,
    captions: Sequence[str],
    cfg: FinetuneConfig,
    seed: int,
    folder: Path,
    state: Path | None = None,
) -> list[dict[str, float]]:
    """Fine-tune the UNet and write folder/step-000100/... at each checkpoint; the pipeline is as before afterwards.

    Args:
        images: (N, 3, H, W) in [-1, 1]. captions: one for each.
        state: scratch folder from which an interrupted run goes on, exactly; the caller removes it in the end.

    Returns:
        One row a step: step, loss, lr, gradient_norm.

    Raises:
        ValueError: inputs that do not fit, or a loss that is no number, naming step and lr.
        SystemExit: 143 after SIGTERM, with the state saved.
    """
    check_inputs(pipe, images, captions, cfg.precision)
    unet = pipe.unet
    # without the private entries: diffusers lists the defaults it has used in another order in each process
    noise = sorted((key, value) for key, value in pipe.scheduler.config.items() if not key.startswith("_"))
    facts = (astuple(cfg), seed, list(captions), noise)
    weights = (p for part in (unet, pipe.vae, pipe.text_encoder) for p in part.state_dict().values())
    saver = Saver(state, fingerprint(facts, [images, *weights]) if state else "")
    data = encode(pipe, images, shuffled(captions, seed) if cfg.shuffle_captions else captions, cfg.horizontal_flip)
    full = cfg.algorithm == "full"
    before = {name: p.detach().to("cpu", copy=True) for name, p in unet.state_dict().items()} if full else {}
    try:
        trainable = prepare(unet, None if full else cfg.rank, seed, cfg.gradient_checkpointing)
        with exact(pipe.device):
            curve = train(pipe, data, trainable, before, cfg, seed, state or folder, saver)
    finally:
        restore(unet, before)
    if state is not None:
        for step in cfg.checkpoints:
            shutil.copytree(state / checkpoint_name(step), folder / checkpoint_name(step), dirs_exist_ok=True)
    return curve


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
    """Run the optimiser, write checkpoints into `folder`, and return the curve."""
    device, scheduler, per_step = pipe.unet.device, pipe.scheduler, cfg.batch * cfg.accumulation
    optimizer = torch.optim.AdamW(trainable.values(), cfg.lr, weight_decay=cfg.weight_decay, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.precision == "fp16")
    ema = {name: p.detach().clone() for name, p in trainable.items()} if cfg.ema else {}
    first, curve, unseen = 0, [], []
    if (saved := saver.load(device)) is not None:
        first, curve = saved["step"], saved["curve"]
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        for own, kept in ((trainable, saved["trainable"]), (ema, saved["ema"])):
            for name, p in own.items():
                p.data.copy_(kept[name])
    progress = Progress("fine-tuning", cfg.steps, "steps", first)
    half = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[cfg.precision]

    def state(step: int) -> dict[str, object]:
        values = {name: p.detach() for name, p in trainable.items()}
        scales = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
        return {"step": step, "curve": curve, "trainable": values, "ema": ema, **scales}

    with stop_on_sigterm() as stop:
        for step in range(first, cfg.steps):
            lr = optimizer.param_groups[0]["lr"] = cfg.lr * lr_factor(cfg, step)
            loss = torch.zeros((), device=device)
            for start in range(0, per_step, cfg.batch):
                numbers = range(start, start + cfg.batch)
                options = (per_step, data, scheduler.config.num_train_timesteps, cfg.horizontal_flip)
                draws = [draw(seed, step, number, *options) for number in numbers]
                with torch.autocast(device.type, half, enabled=half is not None):
                    part = diffusion_loss(pipe.unet, scheduler, data, draws) / cfg.accumulation
                scaler.scale(part).backward()
                loss += part.detach()
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(trainable.values(), cfg.max_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            done = step + 1
            for name, p in ema.items():
                p.lerp_(trainable[name].detach(), 1 - ema_decay(done))
            unseen.append((done, lr, loss, norm))
            if done % CHECK_EVERY == 0 or done in cfg.checkpoints or stop.is_set():
                curve += seen(unseen)
                unseen = []
                if done in cfg.checkpoints:
                    save_checkpoint(pipe.unet, ema or trainable, before, folder / checkpoint_name(done))
                saver.save(state(done), force=done in cfg.checkpoints or stop.is_set())
                if stop.is_set():
                    log.warning("SIGTERM: stopped after step %d of %d", done, cfg.steps)
                    raise SystemExit(143)
            progress.add()
    return curve


def seen(steps: list[tuple[int, float, torch.Tensor, torch.Tensor]]) -> list[dict[str, float]]:
    """Return the rows of the curve; raise ValueError at the first loss that is no number."""
    rows = [{"step": s, "loss": loss.item(), "lr": lr, "gradient_norm": n.item()} for s, lr, loss, n in steps]
    for row in rows:
        if not math.isfinite(row["loss"]):
            hint = "lower lr, or use precision fp32"
            raise ValueError(f"loss is {row['loss']} at step {row['step']} with lr = {row['lr']:g}; {hint}")
    return rows
