"""The delta of an erased model that others made; nothing is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resurgence.config.task import Task
from resurgence.diffusion.deltas import Delta
from resurgence.diffusion.model_files import read_erased_model
from resurgence.erasers import EraserData
from resurgence.erasers.checkpoint.config import CheckpointConfig
from resurgence.erasers.closed_form.solver import solved

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def difference(
    pipe: StableDiffusionPipeline, task: Task, cfg: CheckpointConfig, data: EraserData
) -> tuple[Delta, dict[str, Any]]:
    """The tensors in which the model differs from the base, and what was read: (delta, report)."""
    kind, delta = read_erased_model(pipe, cfg.path, cfg.revision, cfg.scale)
    return delta, {"checkpoint": {"kind": kind, "changed": sorted(delta)}}


erase = solved(difference)
