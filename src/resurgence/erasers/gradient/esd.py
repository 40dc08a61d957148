"""ESD: Erased Stable Diffusion (Gandikota et al., ICCV 2023, arXiv 2303.07345), Eq. 7.

    min || eps_theta(x_t, c*) - [ eps_0(x_t, "") - eta (eps_0(x_t, c*) - eps_0(x_t, "")) ] ||^2

The model learns to predict for the concept what the frozen one predicts with negative guidance. `parameters: xattn` is
ESD-x, `noxattn` is ESD-u. Several concepts: each step trains `batch` of them, in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from resurgence.config.task import Task, TaskPart
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.erasure import trained
from resurgence.erasers.gradient.student import Student, Weights
from resurgence.erasers.gradient.trainer import Objective, Sample
from resurgence.erasers.gradient.trajectories import Asked, Original, Points, Trajectories, walked
from resurgence.erasers.gradient.trajectory_configs import EsdConfig


def esd_target(empty: torch.Tensor, concept: torch.Tensor, eta: float, eta_from: str = "empty") -> torch.Tensor:
    """What the student is to predict: start - eta (eps_0(c*) - eps_0("")).

    With eta_from `empty` the start is eps_0("") (Eq. 7), with `concept` eps_0(c*): there eta 2 is eta 1 of the paper.
    """
    return (empty if eta_from == "empty" else concept) - eta * (concept - empty)


class TrajectoryObjective(Objective):
    """Captions of the erased concepts and latents x_t on the way to their images, which ESD, SDD, SPM and EAP share."""

    def __init__(self, student: Student, task: Task | TaskPart, cfg: Any, data: EraserData, seed: int) -> None:
        super().__init__(student, task, cfg, data, seed)
        prompts = [cfg.template.replace("{}", concept) for concept in task.erase]
        self.texts = dict(zip(task.erase, student.texts(prompts), strict=True))  # concept -> (L, d)
        self.empty = student.texts([""])  # (1, L, d)
        self.sampled = self.sampled_texts(prompts)
        options = (self.empty, cfg.trajectories, cfg.ddim_steps, cfg.guidance, seed, student.limits)
        self.pool = Trajectories(student.pipe, self.sampled, *options) if cfg.samples_in_advance else None
        self.original = Original(student.frozen)

    def ask_in_advance(self, kind: str, texts: Mapping[str, torch.Tensor]) -> None:
        """Compute what the original predicts for a caption of each concept (L, d), if steps would ask more often."""
        cfg, student = self.cfg, self.student
        if self.pool is not None and cfg.asks_in_advance(len(self.task.erase)):
            self.original.known[kind] = self.pool.answers(student.frozen, texts, student.limits)

    def sampled_texts(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """Concept -> embedding (L, d) of the caption for which x_t is sampled."""
        return self.texts

    def sampling_weights(self) -> Weights:
        """Weights of the model that samples x_t in each step."""
        return self.student.weights

    def noisy(self, drawn: list[Sample]) -> Points:
        """x_t and t of the samples, from the pool or sampled by a model in this step."""
        cfg, student, draws = self.cfg, self.student, [sample.generator for sample in drawn]
        if self.pool is not None:
            return self.pool.at([self.pool.place(sample.concept, sample.generator) for sample in drawn])
        predict, text = partial(student.raw, self.sampling_weights()), self.texts_of(drawn, self.sampled)
        return Points(*walked(student.pipe, predict, draws, text, self.empty, cfg.ddim_steps, cfg.guidance))

    def texts_of(self, drawn: list[Sample], texts: dict[str, torch.Tensor]) -> torch.Tensor:
        """The embeddings of the samples' concepts: (B, L, d)."""
        return torch.stack([texts[sample.concept] for sample in drawn])


class Esd(TrajectoryObjective):
    """The loss of one step, for `batch` concepts."""

    def __init__(self, student: Student, task: Task, cfg: EsdConfig, data: EraserData, seed: int) -> None:
        super().__init__(student, task, cfg, data, seed)
        self.ask_in_advance("empty", dict.fromkeys(task.erase, self.empty[0]))
        self.ask_in_advance("concept", self.texts)

    def loss(self, step: int) -> torch.Tensor:
        """Mean squared error to the target; "" and c* are known, or go through the frozen model in one pass."""
        drawn = self.samples(step)
        text, points = self.texts_of(drawn, self.texts), self.noisy(drawn)
        asked = Asked(points, self.empty.expand_as(text), "empty"), Asked(points, text, "concept")
        target = esd_target(*self.original(*asked), self.cfg.eta, self.cfg.eta_from)
        return F.mse_loss(self.student(points.x, points.t, text), target)


erase = trained(Esd)
