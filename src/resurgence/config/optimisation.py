"""The settings that every eraser trained by gradient steps shares. No torch here: the Snakefile reads it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from resurgence.config.erasers import EraserConfig, Passes
from resurgence.config.fields import ConfigError, Count, NotNegative, Positive

Selection = Literal[
    "xattn",  # attn2: q, k, v and out of every cross-attention
    "xattn-kv",  # attn2.to_k and attn2.to_v, what the closed forms change
    "selfattn",  # attn1
    "attention",  # attn1 and attn2
    "noxattn",  # everything but attn2
    "noxattn-official",  # the same without the time embedding and the output layers, as ESD's first script
    "noxattn-2025",  # noxattn without normalisation layers, as ESD-u of the script of 2025
    "full",  # the whole UNet
    "text-encoder",  # the whole text encoder
]


Space = Literal[
    "prediction",  # as the base was trained: its noise or its velocity
    "noise",  # of a velocity v: sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t
    "clean",  # x_0
]


@dataclass(frozen=True)
class Optimisation(EraserConfig):
    """Settings of the shared trainer; a method's own config inherits them and sets its own defaults.

    The values here are those of ESD's first script; where a method's come from: Settings on its page, docs/methods.
    """

    has_curve: ClassVar[bool] = True
    trains_text_encoder: ClassVar[bool] = True  # `parameters` may be text-encoder
    compares_predictions: ClassVar[bool] = True  # its losses do, so `space` has an effect

    parameters: Selection = "xattn"  # which modules train, ESD-x; the delta holds exactly these
    space: Space = "prediction"  # ours: of predictions and targets in all losses; noise is the same for epsilon bases
    steps: Count = 1000  # optimiser steps
    lr: Positive = 1e-5  # learning rate, the same in each step
    optimiser: Literal["adam", "adamw"] = "adam"  # betas (0.9, 0.999), eps 1e-8, PyTorch's
    weight_decay: NotNegative = 0.0  # adamw only
    batch: Count = 1  # samples a step; the erased concepts follow each other in a new random order each round
    max_norm: Positive | None = None  # of the gradient; null: not clipped
    ema: float | None = None  # decay of the moving average that becomes the delta; null: the last weights
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"  # of the passes, ours; weights stay fp32; tf32 needs a GPU
    checkpoints: tuple[int, ...] = ()  # ours: steps at which the delta is also written, to step-NNNNNN/

    def __post_init__(self) -> None:
        if self.parameters == "text-encoder" and not self.trains_text_encoder:
            remedy = f"this method trains the UNet; choose another, e.g. {type(self).parameters}"
            raise ConfigError("parameters", self.parameters, remedy)
        if self.space != "prediction" and not self.compares_predictions:
            raise ConfigError("space", self.space, "has no effect: this method compares no predictions; leave it out")
        if self.optimiser == "adam" and self.weight_decay:
            raise ConfigError("weight_decay", self.weight_decay, "adam has none here; write optimiser: adamw")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError("ema", self.ema, "must lie between 0 and 1, or null for no moving average")
        marks = list(self.checkpoints)
        if marks != sorted(set(marks)) or (marks and not 1 <= marks[0] <= marks[-1] <= self.steps):
            raise ConfigError("checkpoints", marks, f"must rise, between 1 and steps ({self.steps})")

    def step_passes(self, erased: int) -> Passes:
        """Passes of one sample of a step; the default stands for a method that does not count them."""
        return Passes(1, 2)

    def first_passes(self, erased: int, retained: int) -> Passes:
        """Passes before the first step: trajectories of the base, masks."""
        return Passes(0, 0)

    def unet_passes(self, erased: int, retained: int) -> Passes:
        """Samples that pass the UNet in a whole run."""
        step, first = self.step_passes(erased), self.first_passes(erased, retained)
        samples = self.steps * self.batch
        return Passes(samples * step.graded + first.graded, samples * step.plain + first.plain)
