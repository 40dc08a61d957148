"""Settings of erased models from elsewhere, and of their updates without pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from resurgence.config.erasers import EraserConfig
from resurgence.config.fields import ConfigError, Positive


@dataclass(frozen=True)
class CheckpointConfig(EraserConfig):
    """Settings; the concepts that the model has lost are those of the task."""

    module: ClassVar[str] = "resurgence.erasers.checkpoint.method"
    closed_form: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ("path",)

    path: str  # diffusers folder, hub id, single file, UNet tensors, delta, LoRA or SPM adapters; see docs/methods
    revision: str | None = None  # of a hub id
    scale: Positive = 1.0  # by which a LoRA or adapters are multiplied


@dataclass(frozen=True)
class UpdateConfig(EraserConfig):
    """Settings; the concepts that the model has lost are those of the task."""

    module: ClassVar[str] = "resurgence.erasers.checkpoint.update"
    closed_form: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ("path", "lora")

    path: str | None = None  # the erased model, as of the eraser checkpoint; None: the base itself
    revision: str | None = None  # of a hub id
    lora: str | None = None  # file of a LoRA to merge, or the folder of one of peft
    scale: Positive = 1.0  # by which the LoRA is multiplied
    bits: Literal[2, 3, 4, 5, 6, 7, 8] | None = None  # to which weights are rounded, after merging

    def __post_init__(self) -> None:
        if self.lora is None and self.bits is None:
            raise ConfigError("bits", None, "changes nothing without a LoRA; write 8 or 4, or name a file in lora")
        if self.lora is None and self.scale != 1:
            raise ConfigError("scale", self.scale, "multiplies a LoRA, and none is named; leave it out")
