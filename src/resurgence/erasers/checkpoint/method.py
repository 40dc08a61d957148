"""The delta of an erased model that others made; nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from resurgence.config.task import Task
from resurgence.diffusion.deltas import Delta, parameters
from resurgence.diffusion.model_files import read_erased_model
from resurgence.erasers import EraserData
from resurgence.erasers.checkpoint.config import CheckpointConfig
from resurgence.erasers.closed_form.solver import solved

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


GROUPS = {
    "UNet": "unet.",
    "keys of its cross-attentions": "attn2.to_k.",
    "values of its cross-attentions": "attn2.to_v.",
    "text encoder": "text_encoder.",
}
"""Part of a model -> what the names of its parameters hold."""


def distances(weights: Mapping[str, torch.Tensor], delta: Delta) -> dict[str, float]:
    """Part of the model -> |W' - W| / |W|, Frobenius norms over all its parameters, in float64.

    Args:
        weights: W of the base, by the names of a delta.
    """
    moved_by = {}
    for group, text in GROUPS.items():
        names = [name for name in weights if text in name]
        moved = sum(squares(delta[name].double() - weights[name].double().cpu()) for name in names if name in delta)
        if (whole := sum(squares(weights[name].double()) for name in names)) > 0:
            moved_by[group] = math.sqrt(moved / whole)
    return moved_by


def squares(values: torch.Tensor) -> float:
    """The sum of the squares."""
    return float(values.detach().square().sum())


def difference(
    pipe: StableDiffusionPipeline, task: Task, cfg: CheckpointConfig, data: EraserData
) -> tuple[Delta, dict[str, Any]]:
    """The tensors in which the model differs from the base, and what was read: (delta, report)."""
    kind, delta = read_erased_model(pipe, cfg.path, cfg.revision, cfg.scale)
    facts = {"kind": kind, "changed": sorted(delta), "distances": distances(parameters(pipe), delta)}
    return delta, {"checkpoint": facts}


erase = solved(difference)
