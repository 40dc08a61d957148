"""The training loop of the miniature world's models: warm-up and cosine, EMA, exact resume, progress.

Each step draws from a generator seeded by (seed, step), so a resumed run is the run that was never stopped.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

log = logging.getLogger(__name__)


def warmup_cosine(step: int, steps: int, warmup: int, final: float = 0.02) -> float:
    """Factor of the learning rate: linear warm-up, then cosine decay to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one training step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def save_state(path: Path, state: object) -> None:
    """Write a training state under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.rename(path)


def train(
    model: nn.Module,
    loss_of: Callable[[nn.Module, torch.Generator], torch.Tensor],
    *,
    steps: int,
    lr: float,
    seed: int,
    state: Path,
    warmup: int = 200,
    ema_decay: float = 0.999,
    weight_decay: float = 0.01,
    max_norm: float = 1.0,
    precision: str = "fp32",
    save_every: int = 500,
    stop_at: int | None = None,
) -> tuple[nn.Module, list[dict]]:
    """Train with AdamW and return the EMA weights and the loss curve.

    Args:
        loss_of: scalar loss of one batch, all draws from the generator that it is given.
        state: scratch file from which an interrupted run goes on; removed by the caller when it is done.
        precision: fp32, or bf16 autocast.
        stop_at: leave after this step with the state saved (phases, tests of the resume).
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay, fused=True)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=True)
    first, curve = 0, []
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location=device)
        model.load_state_dict(saved["model"]), ema.load_state_dict(saved["ema"])
        optimizer.load_state_dict(saved["optimizer"])
        first, curve = saved["step"], saved["curve"]
        log.info("resumed at step %d of %d", first, steps)
        if first >= (stop_at or steps):
            return ema.module.eval(), curve
    model.train()
    started, losses = time.monotonic(), []
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup_cosine(step, steps, warmup)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of(model, step_generator(seed, step))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(model)
        losses.append(loss.detach())
        done = step + 1
        if done % 50 == 0 or done == steps:
            mean = torch.stack(losses).mean().item()
            curve.append({"step": done, "loss": mean})
            losses = []
            rate = (done - first) / (time.monotonic() - started)
            log.info("step %d/%d loss %.4f, %.2f steps/s, %.0f s left", done, steps, mean, rate, (steps - done) / rate)
        if done % save_every == 0 or done in (steps, stop_at):
            save_state(
                state,
                {
                    "model": model.state_dict(),
                    "ema": ema.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": done,
                    "curve": curve,
                },
            )
        if done == stop_at:
            break
    return ema.module.eval(), curve
