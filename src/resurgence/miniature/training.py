"""Training of the miniature's models: AdamW, warm-up and cosine decay, moving average of the weights.

Each step draws from a generator seeded by (seed, step), so a resumed run is bit-identical to an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resurgence.training import loop
from resurgence.training.checkpoint import Saver, fingerprint

CURVE_EVERY = 50  # steps averaged for one point of the curve


def warmup_cosine(step: int, steps: int, warmup: int, final: float = 0.02) -> float:
    """Return the factor of the learning rate: linear warm-up, then cosine decay to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of a training step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def train_module(
    model: nn.Module,
    loss_of: Callable[[nn.Module, int], torch.Tensor],
    saver: Saver,
    *,
    steps: int,
    lr: float,
    warmup: int = 200,
    ema_decay: float = 0.999,
    weight_decay: float = 0.01,
    max_norm: float = 1.0,
    precision: str = "fp32",
) -> list[dict[str, float]]:
    """Train with AdamW, leave the moving average of the weights in the model, in evaluation mode, and return the curve.

    Args:
        loss_of: (model, step) -> loss of one batch, a scalar; steps count from 0 and seed the draws.
        saver: saves the state from which an interrupted run resumes; the caller removes its folder at the end.
        ema_decay: of the moving average, which starts from the weights after the first step; buffers are averaged too.
        precision: fp32, or bf16 autocast.

    Returns:
        One row for each 50 steps: the last step, and the mean loss.

    Raises:
        ValueError: a loss that is not finite, naming step and lr.
        SystemExit: 143 after SIGTERM, with the state saved.
    """
    device = next(model.parameters()).device
    weights = model.state_dict(keep_vars=True)
    average = {name: w.detach().clone() for name, w in weights.items()}

    def gradient(step: int) -> dict[str, torch.Tensor]:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of(model, step)
        loss.backward()
        return {"loss": loss.detach()}

    run = loop.Run(
        type(model).__name__, steps, weights,
        torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay, fused=True),
        gradient,
        lr=lambda step: lr * warmup_cosine(step, steps, warmup),
        clip=partial(nn.utils.clip_grad_norm_, max_norm=max_norm),
        average=average, decay=lambda step: ema_decay if step > 1 else 0.0,
    )  # fmt: skip
    model.train()
    losses = loop.train(run, saver, saver.load(device))["loss"]
    model.load_state_dict(average)
    model.eval()
    parts = [losses[start : start + CURVE_EVERY] for start in range(0, steps, CURVE_EVERY)]
    ends = [min(start + CURVE_EVERY, steps) for start in range(0, steps, CURVE_EVERY)]
    return [{"step": end, "loss": torch.tensor(part).mean().item()} for end, part in zip(ends, parts, strict=True)]


def train_part(
    model: nn.Module,
    loss_of: Callable[[nn.Module, int], torch.Tensor],
    scratch: Path,
    cfg: dict[str, Any],
    facts: tuple,
    tensors: Iterable[torch.Tensor],
    **options: float,
) -> list[dict[str, float]]:
    """Train a model of the miniature by `train_module`, and return the curve.

    Args:
        scratch: folder of the state from which an interrupted training resumes.
        cfg: settings of the part, of which steps, lr and precision are used here.
        facts, tensors: everything else that the training depends on; a state with other ones is not resumed.
        options: of train_module.
    """
    saver = Saver(scratch, fingerprint((cfg, *facts), [*tensors, *model.state_dict().values()]))
    settings = {key: cfg[key] for key in ("steps", "lr", "precision")}
    return train_module(model, loss_of, saver, **settings, **options)
