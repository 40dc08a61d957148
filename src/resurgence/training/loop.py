"""The training loop of fine-tuning, of the erasers and of the miniature's models.

A caller describes its training as a `Run`: the tensors, their optimiser, and a function that computes the gradient of
a step. The loop sets the learning rate, clips, steps, averages, records the curve, writes checkpoints and saves the
state. Gradients must depend only on the number of the step and on the saved state; then a resumed run is bit-identical
to an uninterrupted one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from resurgence.pretrained.finite import check_finite
from resurgence.progress import Progress
from resurgence.training import memory
from resurgence.training.checkpoint import Saver, stop_on_sigterm

log = logging.getLogger(__name__)
CHECK_EVERY = 10  # steps between two readings of the curve: each waits for the GPU
REMEDY = "lower lr, or use precision fp32"
GRADIENT_NORM = "gradient_norm"  # in the curve of a run that clips: the norms before clipping


@dataclass
class Run:
    """One training. `gradient` and `lr` count steps from 0, checkpoints and messages the finished steps."""

    name: str  # in log lines
    steps: int
    weights: Mapping[str, torch.Tensor]  # what training changes, in place; tensors without gradient are only saved
    optimiser: torch.optim.Optimizer
    gradient: Callable[[int], Mapping[str, torch.Tensor]]  # sets .grad of the weights, returns values for the curve
    lr: Callable[[int], float]  # learning rate of a step
    clip: Callable[[Iterable[torch.Tensor]], torch.Tensor] | None = None  # of .grad, in place; returns the norm before
    average: Mapping[str, torch.Tensor] = field(default_factory=dict)  # moving averages of the weights; {}: none
    decay: Callable[[int], float] = lambda step: 0.0  # of the moving averages after a step; 0: the weights themselves
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    checkpoints: Collection[int] = ()  # steps after which `write` is called and the state is saved
    write: Callable[[int], None] = lambda step: None
    further: Callable[[], Mapping[str, Any]] = dict  # what else a resumed run needs; tensors and plain values only
    load_further: Callable[[Mapping[str, Any]], None] | None = None  # None: no step changes it
    curve: dict[str, list] = field(default_factory=dict)  # name -> one value a step (numbers, or lists of them)
    limits: memory.PassLimits = field(default_factory=memory.PassLimits)  # of the passes that `gradient` makes


def train(run: Run, saver: Saver, saved: Mapping[str, Any] | None = None) -> dict[str, list]:
    """Train and return the curve.

    Args:
        saved: the state from which to resume, as `saver.load` returns it; None: start at step 0.

    Raises:
        ValueError: a value of the curve, or a weight at a checkpoint or at the end, that is not finite, naming step and
            lr; or a training with GradScaler in which no gradient was finite, so that no step changed the weights.
        SystemExit: 143 after SIGTERM, with the state saved.
    """
    first = restore(run, saved) if saved else 0
    saved = None  # the run has its tensors now
    progress, pending = Progress(run.name, run.steps, "steps", first), []
    with stop_on_sigterm() as stop:
        for done in range(first + 1, run.steps + 1):
            pending.append((done, *update(run, done - 1)))
            at_checkpoint, ending = done in run.checkpoints, stop.is_set()
            if done % CHECK_EVERY == 0 or done == run.steps or at_checkpoint or ending or saver.is_due:
                record(run.curve, pending)
                pending = []
                if at_checkpoint or done == run.steps:
                    check_weights(run, done)
                if at_checkpoint:
                    run.write(done)
                saver.save(state_of(run, done), force=at_checkpoint or ending)
            if ending:
                log.warning("SIGTERM: %s stopped after step %d of %d", run.name, done, run.steps)
                raise SystemExit(143)
            progress.add()
    if run.limits.largest:
        memory.USED |= run.limits.used()
    return run.curve


def check_weights(run: Run, done: int) -> None:
    """Raise ValueError if the weights after a step are not finite, or if GradScaler skipped every step."""
    place = f"{run.name}: step {done} with lr = {run.lr(done - 1):g}"
    for tensors in (run.weights, run.average):
        check_finite(tensors, place, REMEDY)
    norms = run.curve.get(GRADIENT_NORM, [])
    if run.scaler.is_enabled() and done == run.steps and norms and not torch.tensor(norms).isfinite().any():
        raise ValueError(f"{place}: no gradient of {done} steps is finite, so no step changed a weight; use precision "
                         "bf16 or fp32")  # fmt: skip


def update(run: Run, step: int) -> tuple[float, Mapping[str, torch.Tensor], torch.Tensor | None]:
    """Take one optimiser step; return its learning rate, the values for the curve and the gradient norm if clipped."""
    lr = run.lr(step)
    for group in run.optimiser.param_groups:
        group["lr"] = lr
    values = gradient_of(run, step)
    run.scaler.unscale_(run.optimiser)
    norm = run.clip(run.weights.values()) if run.clip else None
    run.scaler.step(run.optimiser)
    run.scaler.update()
    run.optimiser.zero_grad()
    for name, mean in run.average.items():
        move_average(mean, run.weights[name].detach(), run.decay(step + 1))
    return lr, values, norm


def gradient_of(run: Run, step: int) -> Mapping[str, torch.Tensor]:
    """Compute the gradient of a step; with smaller passes from the same state again where memory does not suffice."""

    def copied(state: Mapping[str, Any]) -> Mapping[str, Any]:
        return memory.mapped(lambda tensor: tensor.detach().clone(), state)

    before = copied(run.further()) if run.load_further else {}

    def reset() -> None:
        run.optimiser.zero_grad()
        if run.load_further:
            run.load_further(copied(before))

    return run.limits.fitting(lambda: run.gradient(step), reset)


def move_average(mean: torch.Tensor, value: torch.Tensor, decay: float) -> None:
    """Set mean to decay mean + (1 - decay) value in place; integers are truncated, as by torch's AveragedModel."""
    if mean.is_floating_point():
        mean.lerp_(value, 1 - decay)
    else:
        mean.copy_(mean * decay + value * (1 - decay))


def clip_per_concept(weights: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale each concept's gradient, over all weights (K, ...), to norm at most max_norm in place; the norms (K,)."""
    gradients = [w.grad for w in weights]
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
    norms = torch.linalg.vector_norm(norms, dim=0)
    scale = (max_norm / (norms + 1e-6)).clamp(max=1)
    for g in gradients:
        g.mul_(scale.view(-1, *[1] * (g.ndim - 1)))
    return norms


def record(
    curve: dict[str, list], steps: Iterable[tuple[int, float, Mapping[str, torch.Tensor], torch.Tensor | None]]
) -> None:
    """Append steps to the curve; raise ValueError at the first value that is not finite."""
    for step, lr, values, norm in steps:
        for name, value in values.items():
            value = value.cpu()
            if not value.isfinite().all():
                raise ValueError(f"{name} is {value.tolist()} at step {step} with lr = {lr:g}; {REMEDY}")
            curve.setdefault(name, []).append(value.tolist())
        if norm is not None:  # may be infinite in fp16: GradScaler then skips the step
            curve.setdefault(GRADIENT_NORM, []).append(norm.tolist())


def state_of(run: Run, step: int) -> dict[str, Any]:
    """Return what a run needs to resume after `step` steps."""
    return {
        "step": step,
        "curve": run.curve,
        "weights": {name: w.detach() for name, w in run.weights.items()},
        "average": dict(run.average),
        "optimiser": run.optimiser.state_dict(),
        "scaler": run.scaler.state_dict(),
        "further": run.further(),
        "limits": run.limits.state(),
    }


@torch.no_grad()
def restore(run: Run, saved: Mapping[str, Any]) -> int:
    """Put the run into a saved state; return the number of steps done."""
    run.curve.update(saved["curve"])
    for part, tensors in (("weights", run.weights), ("average", run.average)):
        for name, tensor in tensors.items():
            tensor.copy_(saved[part][name])
    load_optimiser(run.optimiser, saved["optimiser"])
    run.scaler.load_state_dict(saved["scaler"])
    if run.load_further:
        run.load_further(saved["further"])
    run.limits.load(saved["limits"])
    return saved["step"]


def load_optimiser(optimiser: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load a saved state into an optimiser.

    Its numbers of steps are read in main memory: on a GPU each step would wait for each of them; a fused optimiser
    moves them to the device itself. Its means are laid out as their parameters, which may have been in another memory
    format when the state was saved (base.speed): fused kernels read both in the order of memory.
    """
    for state in saved["state"].values():
        if "step" in state:
            state["step"] = state["step"].cpu()
    optimiser.load_state_dict(saved)
    for parameter, state in optimiser.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter.detach(), dtype=value.dtype).copy_(value)
