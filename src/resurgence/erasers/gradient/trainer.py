"""One training loop for every eraser that learns by gradient steps.

A method says what it minimises (`Objective`), this runs the optimiser: moving average, checkpoints, a curve, an exact
resume after a kill, a message for a loss that is no number. Every draw is seeded by (seed, step, number in the step),
so a run that was stopped and went on is the run that was never stopped.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from resurgence.diffusion.deltas import DELTA_FILE, save_delta
from resurgence.diffusion.pipeline import exact
from resurgence.progress import Progress
from resurgence.seeds import generator
from resurgence.training.checkpoint import Saver, fingerprint, stop_on_sigterm
from resurgence.training.lora import checkpoint_name

if TYPE_CHECKING:
    from resurgence.config.optimisation import Optimisation
    from resurgence.config.task import Task
    from resurgence.erasers import EraserData
    from resurgence.erasers.gradient.student import Student

log = logging.getLogger(__name__)
CHECK_EVERY = 10  # steps between two looks at the losses: each look waits for the GPU


class Sample(NamedTuple):
    """One training sample of a step: the erased concept, and the generator of everything else about it."""

    concept: str
    generator: torch.Generator


def samples(concepts: Sequence[str], batch: int, seed: int, step: int) -> list[Sample]:
    """The samples of a step; the concepts come in a new random order each round, so all are seen equally often."""
    found = []
    for number in range(batch):
        turn, place = divmod(step * batch + number, len(concepts))
        order = torch.randperm(len(concepts), generator=generator("eraser order", seed, turn))
        found.append(Sample(concepts[int(order[place])], generator("eraser draw", seed, step, number)))
    return found


class Objective:
    """What a method minimises. A subclass defines `loss`, or `gradient` when there is more than one loss."""

    def __init__(self, student: Student) -> None:
        self.student = student

    def loss(self, step: int) -> torch.Tensor:
        """The loss of one step, a scalar with gradients to `student.weights`."""
        raise NotImplementedError

    def gradient(self, step: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """Gradient for each of `student.weights` in their order, and what the curve shows (`loss` among it)."""
        value = self.loss(step)
        return gradients(value, list(self.student.weights.values())), {"loss": value.detach()}

    def state(self) -> dict[str, Any]:
        """What else changes from step to step (a discriminator, its optimiser); tensors and plain values only."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""


def gradients(loss: torch.Tensor, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """d loss / d weights; zeros for those that the loss does not depend on.

    Raises:
        ValueError: when it depends on none of them.
    """
    found = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else [None] * len(weights)
    if all(g is None for g in found):
        raise ValueError("the loss depends on none of the trained weights; choose other parameters for this method")
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]


def make_optimiser(weights: Sequence[torch.Tensor], cfg: Optimisation) -> torch.optim.Optimizer:
    """Adam, or AdamW with the decay of the settings."""
    if cfg.optimiser == "adam":
        return torch.optim.Adam(weights, lr=cfg.lr, fused=True)
    return torch.optim.AdamW(weights, lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True)


def train(
    student: Student,
    objective: Objective,
    task: Task,
    cfg: Optimisation,
    data: EraserData,
    seed: int,
    folder: Path | None = None,
) -> dict[str, torch.Tensor]:
    """Train and return the delta: exactly the parameters of `student.weights`, in the base's precision.

    Args:
        data: its images enter the fingerprint of the run, as do the captions that the student has embedded; its
            `state` is where an interrupted run goes on.
        folder: where curves.json and the checkpoints step-NNNNNN/ go; None: nowhere.

    Raises:
        ValueError: a loss that is no number, naming step and lr.
        SystemExit: 143 after SIGTERM, with the state saved.
    """
    base = student.pipe.unet.state_dict() | student.pipe.text_encoder.state_dict()
    facts = (type(objective).__qualname__, asdict(cfg), vars(task), seed, student.captions)
    pictures = [group[name] for group in (data.images, data.anchors, data.retained) for name in sorted(group)]
    saver = Saver(data.state, fingerprint(facts, [*pictures, *base.values()]) if data.state else "")
    place = data.state or folder
    with exact(student.device):
        curve = run(student, objective, cfg, saver, place)
    final = student.weights if student.average is None else student.average
    if folder is not None:
        (folder / "curves.json").write_text(json.dumps(curve, indent=1))
        for step in cfg.checkpoints if place != folder else ():
            shutil.copytree(place / checkpoint_name(step), folder / checkpoint_name(step), dirs_exist_ok=True)
    return in_precision_of_base(student, final)


def in_precision_of_base(student: Student, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights as a delta: detached, on the CPU, in the precision of the pipeline's."""
    return {name: w.detach().to("cpu", student.unet.dtype, copy=True).contiguous() for name, w in weights.items()}


def run(
    student: Student, objective: Objective, cfg: Optimisation, saver: Saver, place: Path | None
) -> dict[str, list[float]]:
    """Run the optimiser; the curve of each quantity that the objective shows."""
    weights = list(student.weights.values())
    optimiser = make_optimiser(weights, cfg)
    if cfg.ema is not None:
        student.average = {name: w.detach().clone() for name, w in student.weights.items()}
    first, curve, unseen = 0, {}, []
    if (saved := saver.load(student.device)) is not None:
        first, curve = saved["step"], saved["curve"]
        optimiser.load_state_dict(saved["optimiser"])
        objective.load(saved["objective"])
        for own, kept in ((student.weights, saved["weights"]), (student.average or {}, saved["average"])):
            for name, w in own.items():
                w.data.copy_(kept[name])
    progress = Progress("erasing", cfg.steps, "steps", first)
    half = torch.bfloat16 if cfg.precision == "bf16" else None

    def state(done: int) -> dict[str, Any]:
        kept = {"weights": {n: w.detach() for n, w in student.weights.items()}, "average": student.average or {}}
        own = {"optimiser": optimiser.state_dict(), "objective": objective.state()}
        return {"step": done, "curve": curve, **kept, **own}

    with stop_on_sigterm() as stop:
        for step in range(first, cfg.steps):
            # no cache: a weight that was cast in a pass without gradients would keep none in the next one
            with torch.autocast(student.device.type, half, enabled=half is not None, cache_enabled=False):
                found, shown = objective.gradient(step)
            for w, g in zip(weights, found, strict=True):
                w.grad = g
            if cfg.max_norm is not None:
                torch.nn.utils.clip_grad_norm_(weights, cfg.max_norm)
            optimiser.step()
            if student.average is not None:
                for name, w in student.weights.items():
                    student.average[name].lerp_(w.detach(), 1 - cfg.ema)
            unseen.append((step + 1, shown))
            done, marked = step + 1, step + 1 in cfg.checkpoints
            if done % CHECK_EVERY == 0 or done == cfg.steps or marked or stop.is_set():
                extend(curve, unseen, cfg.lr)
                unseen = []
                if marked and place is not None:
                    final = student.weights if student.average is None else student.average
                    save_delta(in_precision_of_base(student, final), place / checkpoint_name(done) / DELTA_FILE)
                saver.save(state(done), force=marked or stop.is_set())
                if stop.is_set():
                    log.warning("SIGTERM: stopped after step %d of %d", done, cfg.steps)
                    raise SystemExit(143)
            progress.add()
    return curve


def extend(curve: dict[str, list[float]], steps: list[tuple[int, dict[str, torch.Tensor]]], lr: float) -> None:
    """Add steps to the curve; ValueError at the first value that is no number."""
    for step, shown in steps:
        for name, value in shown.items():
            if not math.isfinite(float(value)):
                raise ValueError(f"{name} is {float(value)} at step {step} with lr = {lr:g}; lower lr, or use fp32")
            curve.setdefault(name, []).append(float(value))
