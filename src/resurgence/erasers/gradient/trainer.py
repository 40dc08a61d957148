"""Training of the erasers that learn by gradient steps.

A method defines what it minimises (`Objective`); `train` describes it to the training loop and returns the delta.
Every draw is seeded by (seed, step, number in the step), so a resumed run is bit-identical to an uninterrupted one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from resurgence.config.optimisation import Optimisation
from resurgence.config.task import Task, TaskPart
from resurgence.diffusion.deltas import DELTA_FILE, save_delta
from resurgence.diffusion.device import check_precision, exact
from resurgence.seeds import generator
from resurgence.training import loop
from resurgence.training.checkpoint import Saver, checkpoint_name, copy_checkpoints, fingerprint

if TYPE_CHECKING:
    from resurgence.erasers import EraserData
    from resurgence.erasers.gradient.student import Student


class Sample(NamedTuple):
    """One training sample of a step: the erased concept, and the generator of everything else about it."""

    concept: str
    generator: torch.Generator


def samples(concepts: Sequence[str], batch: int, seed: int, step: int) -> list[Sample]:
    """The samples of a step; the concepts come in a new random order each round, so all are seen equally often."""
    drawn = []
    for number in range(batch):
        turn, place = divmod(step * batch + number, len(concepts))
        order = torch.randperm(len(concepts), generator=generator("eraser order", seed, turn))
        drawn.append(Sample(concepts[int(order[place])], generator("eraser draw", seed, step, number)))
    return drawn


class Objective:
    """What a method minimises. A subclass defines `loss`; `losses` or `gradient` when there is more than one loss."""

    def __init__(self, student: Student, task: Task | TaskPart, cfg: Any, data: EraserData, seed: int) -> None:
        self.student, self.task, self.cfg, self.seed = student, task, cfg, seed

    @property
    def clips(self) -> bool:
        """Whether `gradient` applies `max_norm` itself, so that the trainer does not clip its result again."""
        return False

    @property
    def asks_original(self) -> bool:
        """Whether a step runs the original, its text encoder or autoencoder; if not, they are in main memory."""
        return True

    def only_what_runs(self) -> AbstractContextManager[None]:
        """A context in which a step may run, with as little on the device as it needs."""
        return nullcontext() if self.asks_original else self.student.original_set_aside()

    def samples(self, step: int) -> list[Sample]:
        """The `batch` samples of a step."""
        return samples(self.task.erase, self.cfg.batch, self.seed, step)

    def loss(self, step: int) -> torch.Tensor:
        """The loss of one step, a scalar with gradients to `student.weights`."""
        raise NotImplementedError

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        """The scalars of one step for the curve: `loss`, which is minimised, and its terms."""
        return {"loss": self.loss(step)}

    def gradient(self, step: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """Gradients of `student.weights` in their order, and the values for the curve, `loss` among them."""
        losses = self.losses(step)
        gradient = gradients(losses["loss"], list(self.student.weights.values()))
        return gradient, {name: value.detach() for name, value in losses.items()}

    def state(self) -> dict[str, Any]:
        """Whatever else changes between steps (a discriminator, its optimiser); tensors and plain values only."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `state`."""


def gradients(loss: torch.Tensor, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """d loss / d weights; zeros for those that the loss does not depend on.

    Raises:
        ValueError: when it depends on none of them.
    """
    derivatives = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else [None] * len(weights)
    if all(g is None for g in derivatives):
        raise ValueError("the loss depends on none of the trained weights; choose other parameters for this method")
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, derivatives, strict=True)]


def inner(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], dtype: torch.dtype | None = None) -> torch.Tensor:
    """The inner product of two lists of tensors as one vector each: a scalar, summed in `dtype`, by default theirs."""
    return torch.stack([torch.sum(x * y, dtype=dtype) for x, y in zip(a, b, strict=True)]).sum()


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
    """Train and return the delta: the parameters of `student.weights` and no others, in the base's precision.

    Args:
        data: its images enter the fingerprint of the run, as do the captions that the student has embedded; its
            `state` is the scratch folder from which an interrupted run resumes.
        folder: where curves.json and the checkpoints step-NNNNNN/ are written; None: nowhere.

    Raises:
        ValueError: a loss that is not finite, naming step and lr.
        SystemExit: 143 after SIGTERM, with the state saved.
    """
    check_precision("precision", cfg.precision, student.device)
    facts = (type(objective).__qualname__, asdict(cfg), vars(task), seed, student.captions)
    saver = Saver(data.state, inputs_of(student, facts, data) if data.state else "")
    with exact(student.device, cfg.precision), objective.only_what_runs():
        curve = run(student, objective, cfg, saver, data.state or folder)
    copy_checkpoints(cfg.checkpoints, data.state, folder)
    if folder is not None:
        (folder / "curves.json").write_text(json.dumps(curve, indent=1))
    return in_precision_of_base(student, final_weights(student))


def inputs_of(student: Student, facts: Sequence[object], data: EraserData) -> str:
    """The fingerprint of a training: its settings, its images and the base with its noise schedule."""
    pipe = student.pipe
    # without private entries: diffusers lists its defaults in another order in each process
    schedule = sorted((key, value) for key, value in pipe.scheduler.config.items() if not key.startswith("_"))
    base = (p for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.state_dict().values())
    pictures = [group[name] for group in (data.images, data.anchors, data.retained) for name in sorted(group)]
    return fingerprint((*facts, schedule, data.anchor_captions), [*pictures, *base])


def final_weights(student: Student) -> dict[str, torch.Tensor]:
    """The moving average of the weights if there is one, else the weights."""
    return student.weights if student.average is None else student.average


def in_precision_of_base(student: Student, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights as a delta: detached, on the CPU, in the precision of the pipeline's."""
    return {name: w.detach().to("cpu", student.unet.dtype, copy=True).contiguous() for name, w in weights.items()}


def run(
    student: Student, objective: Objective, cfg: Optimisation, saver: Saver, place: Path | None
) -> dict[str, list[float]]:
    """Run the optimiser; the curve of each quantity that the objective returns."""
    weights = list(student.weights.values())
    if cfg.ema is not None:
        student.average = {name: w.detach().clone() for name, w in student.weights.items()}
    half = torch.bfloat16 if cfg.precision == "bf16" else None
    limit = None if objective.clips else cfg.max_norm

    def gradient(step: int) -> dict[str, torch.Tensor]:
        # no cache: a weight that was cast in a pass without gradients would keep none in the next one
        with torch.autocast(student.device.type, half, enabled=half is not None, cache_enabled=False):
            gradients, values = objective.gradient(step)
        for w, g in zip(weights, gradients, strict=True):
            w.grad = g
        return values

    def write(step: int) -> None:
        save_delta(in_precision_of_base(student, final_weights(student)), place / checkpoint_name(step) / DELTA_FILE)

    training = loop.Run(
        "erasing", cfg.steps, student.weights, make_optimiser(weights, cfg), gradient,
        lr=lambda step: cfg.lr,
        clip=None if limit is None else partial(torch.nn.utils.clip_grad_norm_, max_norm=limit),
        average=student.average or {}, decay=lambda step: cfg.ema,
        checkpoints=cfg.checkpoints if place is not None else (), write=write,
        further=objective.state, load_further=objective.load, limits=student.limits,
    )  # fmt: skip
    curve = loop.train(training, saver, saver.load(student.device))
    return {name: values for name, values in curve.items() if name != loop.GRADIENT_NORM}
