"""An update of an erased model that needs no pictures, as an eraser: a LoRA merged, weights rounded, or both.

Users of a released model do both every day, and neither was made to bring a concept back. Rounding is simulated: each
output row of a weight matrix has 2^bits - 1 levels, spread evenly up to its largest absolute value (absmax
quantisation; Dettmers et al. 2022, arXiv 2208.07339, section 2.1), and is stored in full precision. Embeddings, biases
and norms stay as they are, and so does the autoencoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from resurgence.config.task import Task
from resurgence.diffusion.deltas import Delta, apply_delta, parameters
from resurgence.diffusion.model_files import file_of, plain_lora_delta, read_erased_model
from resurgence.erasers import EraserData
from resurgence.erasers.checkpoint.config import UpdateConfig
from resurgence.erasers.closed_form.solver import solved

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """A weight of two or more dimensions with its output rows rounded to 2^bits - 1 levels; float32."""
    rows = weight.detach().float().flatten(1)
    step = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    levels = (rows / step.where(step > 0, 1.0)).round()
    return (levels * step).reshape(weight.shape)


def is_rounded(name: str, weight: torch.Tensor) -> bool:
    """Whether a parameter is rounded: a weight matrix, or the kernel of a convolution."""
    return weight.ndim > 1 and not name.endswith("embedding.weight")


def difference(
    pipe: StableDiffusionPipeline, task: Task, cfg: UpdateConfig, data: EraserData
) -> tuple[Delta, dict[str, Any]]:
    """The tensors in which the updated model differs from the base, and what was done: (delta, report)."""
    model = {} if cfg.path is None else read_erased_model(pipe, cfg.path, cfg.revision)[1]
    before = {name: value.detach().to("cpu", copy=True) for name, value in parameters(pipe).items()}
    apply_delta(pipe, model, str(cfg.path))
    try:
        weights = {name: value.detach().float().to("cpu", copy=True) for name, value in parameters(pipe).items()}
        merged = {} if cfg.lora is None else plain_lora_delta(pipe, file_of(Path(cfg.lora)))
    finally:
        apply_delta(pipe, before)
    for name, value in merged.items():
        weights[name] = value if cfg.scale == 1 else torch.lerp(weights[name], value, cfg.scale)
    if cfg.bits is not None:
        weights |= {name: rounded(value, cfg.bits) for name, value in weights.items() if is_rounded(name, value)}
    delta = {name: value for name, value in weights.items() if not torch.equal(before[name].float(), value)}
    return delta, {"update": {"bits": cfg.bits, "merged": sorted(merged), "changed": sorted(delta)}}


erase = solved(difference)
