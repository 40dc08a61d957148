"""SDD: Safe self-Distillation Diffusion (Kim et al., ICML 2023 workshop, arXiv 2307.05977).

    min || eps_theta(z_t, c*) - sg eps_theta(z_t, "") ||^2

The model learns to predict for the concept what it predicts itself, without gradient, for the empty caption. z_t is
sampled with guidance by the moving average of the model, the teacher, and the teacher is what is returned. Several
concepts: each step trains `batch` of them, in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from resurgence.config.fields import ConfigError, at_least, one_place
from resurgence.config.optimisation import Optimisation
from resurgence.diffusion.text import token_ids
from resurgence.erasers import Eraser, EraserData
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Objective, Sample, samples, train
from resurgence.erasers.gradient.trajectories import Trajectories, walked

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from resurgence.config.task import Task


@dataclass(frozen=True)
class SddConfig(Optimisation):
    """Settings; the defaults are the authors', unless a comment says ours."""

    steps: int = 1500  # optimiser steps: script
    lr: float = 1e-5  # learning rate: script
    optimiser: Literal["adam", "adamw"] = "adamw"  # script
    weight_decay: float = 1e-4  # of AdamW: script
    max_norm: float | None = 1.0  # of the gradient: script
    ema: float | None = 0.999  # script; m of the teacher, which samples z_t and is the result; lower it for few steps
    z_t: Literal["teacher", "base"] = "teacher"  # who samples z_t: the moving average, paper; or the base once (ours)
    sampled_for: Literal["concept", "all"] = "concept"  # ours, caption of z_t: the concept's; all: joined, script
    ddim_steps: int = 50  # of a whole trajectory: script
    guidance: float = 3.0  # of sampling z_t; 3 in the authors' runs, 1 in the script
    trajectories: int = 4  # ours; z_t base: sampled for each concept
    template: str = "{}"  # ours: the caption of a concept

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("ddim_steps", "trajectories"):
            at_least(key, getattr(self, key), 1)
        at_least("guidance", self.guidance, 0)
        if self.parameters == "text-encoder":
            raise ConfigError("parameters", self.parameters, "sdd trains the UNet; choose another, e.g. xattn")
        if self.ema is None:
            raise ConfigError("ema", None, "is the teacher, which SDD needs; write its decay, e.g. 0.999")
        one_place("template", self.template)


class Sdd(Objective):
    """The loss of one step, for `batch` concepts."""

    def __init__(self, student: Student, task: Task, cfg: SddConfig, seed: int) -> None:
        super().__init__(student)
        self.task, self.cfg, self.seed = task, cfg, seed
        prompts = [cfg.template.replace("{}", concept) for concept in task.erase]
        self.texts = dict(zip(task.erase, student.texts(prompts), strict=True))
        self.empty = student.texts([""])  # (1, L, d)
        self.sampled = self.texts  # concept -> (L, d), for sampling z_t
        if cfg.sampled_for == "all":
            joined = ", ".join(prompts)
            token_ids(student.pipe.tokenizer, joined)  # an error if it does not fit
            self.sampled = dict.fromkeys(task.erase, student.texts([joined])[0])
        options = (self.empty, cfg.trajectories, cfg.ddim_steps, cfg.guidance, seed)
        self.pool = Trajectories(student.pipe, self.sampled, *options) if cfg.z_t == "base" else None

    def noisy(self, drawn: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        """z_t (B, C, h, w) and t (B,) of the samples, from the pool or walked to by the teacher."""
        cfg, student, draws = self.cfg, self.student, [sample.generator for sample in drawn]
        if self.pool is not None:
            return self.pool.draws([sample.concept for sample in drawn], draws)
        text = torch.stack([self.sampled[sample.concept] for sample in drawn])
        predict = partial(student.raw, student.average)
        return walked(student.pipe, predict, draws, text, self.empty, cfg.ddim_steps, cfg.guidance)

    def loss(self, step: int) -> torch.Tensor:
        """Mean squared error between what the model predicts for c* and, held fixed, for ""."""
        drawn = samples(self.task.erase, self.cfg.batch, self.seed, step)
        text = torch.stack([self.texts[sample.concept] for sample in drawn])
        z, t = self.noisy(drawn)
        with torch.no_grad():
            target = self.student(z, t, self.empty.expand_as(text))
        return F.mse_loss(self.student(z, t, text), target)


def erase(
    pipe: StableDiffusionPipeline, task: Task, cfg: SddConfig, data: EraserData, seed: int, folder: Path | None = None
) -> dict[str, torch.Tensor]:
    """Train and return the teacher; the pipeline is left as it was.

    Args:
        folder: where curves.json and the checkpoints go; None: nowhere.
    """
    student = Student(pipe, cfg.parameters)
    return train(student, Sdd(student, task, cfg, seed), task, cfg, data, seed, folder)


ERASER = Eraser(SddConfig, erase, frozenset())
