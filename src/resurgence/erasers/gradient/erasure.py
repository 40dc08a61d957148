"""The function `erase` of a method that is trained by gradient steps, made of its objective."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resurgence.diffusion.deltas import Delta
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Objective, train

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from resurgence.config.task import Task
    from resurgence.erasers import EraserData


def whole_student(pipe: StableDiffusionPipeline, task: Task, cfg: Any, seed: int) -> Student:
    """A student of all parameters that the settings select."""
    return Student(pipe, cfg.parameters, cfg.space)


def trained(
    objective: Callable[[Any, Task, Any, EraserData, int], Objective],
    student: Callable[[StableDiffusionPipeline, Task, Any, int], Student] = whole_student,
    finish: Callable[[Any, Delta, Path | None], Delta] | None = None,
) -> Callable[..., Delta]:
    """Make `erase(pipe, task, cfg, data, seed, folder=None)`, which trains and leaves the pipeline as it was.

    Args:
        objective: class of the loss, called with (student, task, cfg, data, seed).
        student: makes what is trained from (pipe, task, cfg, seed).
        finish: gets the objective after the training, the delta and the folder; writes there what the method has to
            show besides curves.json and the checkpoints, unless that is None, and returns the delta.
    """

    def erase(
        pipe: StableDiffusionPipeline, task: Task, cfg: Any, data: EraserData, seed: int, folder: Path | None = None
    ) -> Delta:
        model = student(pipe, task, cfg, seed)
        goal = objective(model, task, cfg, data, seed)
        delta = train(model, goal, task, cfg, data, seed, folder)
        return delta if finish is None else finish(goal, delta, folder)

    return erase
