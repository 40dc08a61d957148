"""SDD: Safe self-Distillation Diffusion (Kim et al., ICML 2023 workshop, arXiv 2307.05977).

    min || eps_theta(z_t, c*) - sg eps_theta(z_t, "") ||^2

The model learns to predict for the concept what it predicts itself, without gradient, for the empty caption. z_t is
sampled with guidance by the moving average of the model, the teacher, and the teacher is what is returned. Several
concepts: each step trains `batch` of them, in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from resurgence.diffusion.text import token_ids
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.erasure import trained
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Objective, Sample, samples
from resurgence.erasers.gradient.trajectories import Trajectories, walked
from resurgence.erasers.gradient.trajectory_configs import SddConfig

if TYPE_CHECKING:
    from resurgence.config.task import Task


class Sdd(Objective):
    """The loss of one step, for `batch` concepts."""

    def __init__(self, student: Student, task: Task, cfg: SddConfig, data: EraserData, seed: int) -> None:
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


erase = trained(Sdd)
