"""Settings of erased models from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from resurgence.config.erasers import EraserConfig
from resurgence.config.fields import Positive


@dataclass(frozen=True)
class CheckpointConfig(EraserConfig):
    """Settings; the concepts that the model has lost are those of the task."""

    module: ClassVar[str] = "resurgence.erasers.checkpoint.method"
    closed_form: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ("path",)

    path: str  # diffusers folder, hub id, single file, UNet tensors, delta, LoRA or SPM adapters; see docs/methods
    revision: str | None = None  # of a hub id
    scale: Positive = 1.0  # by which a LoRA or adapters are multiplied
