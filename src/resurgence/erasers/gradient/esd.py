"""ESD: Erased Stable Diffusion (Gandikota et al., ICCV 2023, arXiv 2303.07345), Eq. 7.

    min || eps_theta(x_t, c*) - [ eps_0(x_t, "") - eta (eps_0(x_t, c*) - eps_0(x_t, "")) ] ||^2

The model learns to predict for the concept what the frozen one predicts with negative guidance. `parameters: xattn` is
ESD-x, `noxattn` is ESD-u. Several concepts: each step trains `batch` of them, in turn.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from resurgence.config.task import Task, TaskPart
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.erasure import trained
from resurgence.erasers.gradient.student import Student, Weights
from resurgence.erasers.gradient.trainer import Objective, Sample
from resurgence.erasers.gradient.trajectories import Trajectories, walked


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

    def sampled_texts(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """Concept -> embedding (L, d) of the caption for which x_t is sampled."""
        return self.texts

    def sampling_weights(self) -> Weights:
        """Weights of the model that samples x_t in each step."""
        return self.student.weights

    def noisy(self, drawn: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        """x_t (B, C, h, w) and t (B,) of the samples, from the pool or sampled by a model in this step."""
        cfg, student, draws = self.cfg, self.student, [sample.generator for sample in drawn]
        if self.pool is not None:
            return self.pool.draws([sample.concept for sample in drawn], draws)
        predict, text = partial(student.raw, self.sampling_weights()), self.texts_of(drawn, self.sampled)
        return walked(student.pipe, predict, draws, text, self.empty, cfg.ddim_steps, cfg.guidance)

    def texts_of(self, drawn: list[Sample], texts: dict[str, torch.Tensor]) -> torch.Tensor:
        """The embeddings of the samples' concepts: (B, L, d)."""
        return torch.stack([texts[sample.concept] for sample in drawn])


class Esd(TrajectoryObjective):
    """The loss of one step, for `batch` concepts."""

    def loss(self, step: int) -> torch.Tensor:
        """Mean squared error to the target; "" and c* go through the frozen model in one pass."""
        drawn = self.samples(step)
        text = self.texts_of(drawn, self.texts)
        x, t = self.noisy(drawn)
        both = torch.cat([self.empty.expand_as(text), text])
        empty, concept = self.student.frozen(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return F.mse_loss(self.student(x, t, text), esd_target(empty, concept, self.cfg.eta, self.cfg.eta_from))


erase = trained(Esd)
