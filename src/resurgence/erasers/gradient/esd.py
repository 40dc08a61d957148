"""ESD: Erased Stable Diffusion (Gandikota et al., ICCV 2023, arXiv 2303.07345), Eq. 7.

    min || eps_theta(x_t, c*) - [ eps_0(x_t, "") - eta (eps_0(x_t, c*) - eps_0(x_t, "")) ] ||^2

The model learns to predict for the concept what the frozen one predicts with negative guidance. `parameters: xattn` is
ESD-x, `noxattn` is ESD-u. Several concepts: each step trains `batch` of them, in turn.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
import torch.nn.functional as F

from resurgence.erasers import EraserData
from resurgence.erasers.gradient.erasure import trained
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Objective, Sample, samples
from resurgence.erasers.gradient.trajectories import Trajectories, walked
from resurgence.erasers.gradient.trajectory_configs import EapConfig, EsdConfig, SpmConfig

if TYPE_CHECKING:
    from resurgence.config.task import Task, TaskPart

Config = TypeVar("Config", EsdConfig, SpmConfig, EapConfig)


def esd_target(empty: torch.Tensor, concept: torch.Tensor, eta: float, eta_from: str) -> torch.Tensor:
    """What the student is to predict: start - eta (eps_0(c*) - eps_0("")).

    With eta_from `empty` the start is eps_0("") (Eq. 7), with `concept` eps_0(c*): there eta 2 is eta 1 of the paper.
    """
    return (empty if eta_from == "empty" else concept) - eta * (concept - empty)


class TrajectoryObjective(Objective, Generic[Config]):
    """Captions of the erased concepts and latents x_t on the way to their images, which ESD, SPM and EAP share."""

    def __init__(self, student: Student, task: Task | TaskPart, cfg: Config, data: EraserData, seed: int) -> None:
        super().__init__(student)
        self.task, self.seed = task, seed
        self.cfg: Config = cfg
        prompts = [cfg.template.replace("{}", concept) for concept in task.erase]
        self.texts = dict(zip(task.erase, student.texts(prompts), strict=True))
        self.empty = student.texts([""])  # (1, L, d)
        options = (self.empty, cfg.trajectories, cfg.ddim_steps, cfg.guidance, seed)
        self.pool = Trajectories(student.pipe, self.texts, *options) if cfg.x_t == "base" else None

    def noisy(self, drawn: list[Sample], text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x_t (B, C, h, w) and t (B,) of the samples, from the pool or walked to by the model in training."""
        cfg, student, draws = self.cfg, self.student, [sample.generator for sample in drawn]
        if self.pool is not None:
            return self.pool.draws([sample.concept for sample in drawn], draws)
        predict = partial(student.raw, student.weights)
        return walked(student.pipe, predict, draws, text, self.empty, cfg.ddim_steps, cfg.guidance)


class Esd(TrajectoryObjective[EsdConfig]):
    """The loss of one step, for `batch` concepts."""

    def loss(self, step: int) -> torch.Tensor:
        """Mean squared error to the target; the frozen model sees "" and c* in one pass."""
        drawn = samples(self.task.erase, self.cfg.batch, self.seed, step)
        text = torch.stack([self.texts[sample.concept] for sample in drawn])
        x, t = self.noisy(drawn, text)
        both = torch.cat([self.empty.expand_as(text), text])
        empty, concept = self.student.frozen(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return F.mse_loss(self.student(x, t, text), esd_target(empty, concept, self.cfg.eta, self.cfg.eta_from))


erase = trained(Esd)
