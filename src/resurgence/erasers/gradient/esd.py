"""ESD: Erased Stable Diffusion (Gandikota et al., ICCV 2023, arXiv 2303.07345), Eq. 7.

    min || eps_theta(x_t, c*) - [ eps_0(x_t, "") - eta (eps_0(x_t, c*) - eps_0(x_t, "")) ] ||^2

The model learns to predict for the concept what the frozen one predicts with negative guidance. `parameters: xattn` is
ESD-x, `noxattn` is ESD-u. Several concepts: each step trains `batch` of them, in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from resurgence.config.fields import ConfigError, at_least, one_place
from resurgence.config.optimisation import Optimisation
from resurgence.erasers import Eraser, EraserData
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Objective, Sample, samples, train
from resurgence.erasers.gradient.trajectories import Trajectories, walked

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from resurgence.config.task import Task


@dataclass(frozen=True)
class EsdConfig(Optimisation):
    """Settings; the defaults are ESD-x of the first script, unless a comment says ours.

    The script of 2025: 200 steps, lr 5e-5, x_t base, eta_from concept, eta 2.
    """

    eta: float = 1.0  # strength of the negative guidance: first script
    eta_from: Literal["empty", "concept"] = "empty"  # the target starts at eps_0(""), Eq. 7, or (2025) at eps_0(c*)
    x_t: Literal["student", "base"] = "student"  # who samples x_t: the model in training (first script), the base once
    ddim_steps: int = 50  # of a whole trajectory: first script
    guidance: float = 3.0  # of sampling x_t: both scripts
    trajectories: int = 4  # ours; x_t base: sampled for each concept
    template: str = "{}"  # ours: the caption of a concept

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("ddim_steps", "trajectories"):
            at_least(key, getattr(self, key), 1)
        for key in ("eta", "guidance"):
            at_least(key, getattr(self, key), 0)
        if self.parameters == "text-encoder":
            raise ConfigError("parameters", self.parameters, "esd trains the UNet; choose another, e.g. xattn")
        one_place("template", self.template)


def esd_target(empty: torch.Tensor, concept: torch.Tensor, eta: float, eta_from: str) -> torch.Tensor:
    """What the student is to predict: start - eta (eps_0(c*) - eps_0("")).

    With eta_from `empty` the start is eps_0("") (Eq. 7), with `concept` eps_0(c*): there eta 2 is eta 1 of the paper.
    """
    return (empty if eta_from == "empty" else concept) - eta * (concept - empty)


class Esd(Objective):
    """The loss of one step, for `batch` concepts."""

    def __init__(self, student: Student, task: Task, cfg: EsdConfig, seed: int) -> None:
        super().__init__(student)
        self.task, self.cfg, self.seed = task, cfg, seed
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

    def loss(self, step: int) -> torch.Tensor:
        """Mean squared error to the target; the frozen model sees "" and c* in one pass."""
        drawn = samples(self.task.erase, self.cfg.batch, self.seed, step)
        text = torch.stack([self.texts[sample.concept] for sample in drawn])
        x, t = self.noisy(drawn, text)
        both = torch.cat([self.empty.expand_as(text), text])
        empty, concept = self.student.frozen(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return F.mse_loss(self.student(x, t, text), esd_target(empty, concept, self.cfg.eta, self.cfg.eta_from))


def erase(
    pipe: StableDiffusionPipeline, task: Task, cfg: EsdConfig, data: EraserData, seed: int, folder: Path | None = None
) -> dict[str, torch.Tensor]:
    """Train; the pipeline is left as it was.

    Args:
        folder: where curves.json and the checkpoints go; None: nowhere.
    """
    student = Student(pipe, cfg.parameters)
    return train(student, Esd(student, task, cfg, seed), task, cfg, data, seed, folder)


ERASER = Eraser(EsdConfig, erase, frozenset())
