"""SDD: Safe self-Distillation Diffusion (Kim et al., ICML 2023 workshop, arXiv 2307.05977).

    min || eps_theta(z_t, c*) - sg eps_theta(z_t, "") ||^2

The model learns to predict for the concept what it predicts itself, without gradient, for the empty caption. z_t is
sampled with guidance by the moving average of the model, the teacher, and the teacher is what is returned. Several
concepts: each step trains `batch` of them, in turn.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from resurgence.diffusion.text import token_ids
from resurgence.erasers.gradient.erasure import trained
from resurgence.erasers.gradient.esd import TrajectoryObjective
from resurgence.erasers.gradient.student import Weights


class Sdd(TrajectoryObjective):
    """The loss of one step, for `batch` concepts (z_t is what ESD calls x_t)."""

    def sampled_texts(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """Of each concept's caption, or of all captions joined.

        Raises:
            ValueError: the joined captions have more tokens than the model reads.
        """
        if self.cfg.sampled_for == "concept":
            return self.texts
        joined = ", ".join(prompts)
        token_ids(self.student.pipe.tokenizer, joined)  # an error if it does not fit
        return dict.fromkeys(self.task.erase, self.student.texts([joined])[0])

    def sampling_weights(self) -> Weights:
        """The teacher's."""
        return self.student.average

    @property
    def asks_original(self) -> bool:
        """No: the base samples z_t in advance, if at all."""
        return False

    def loss(self, step: int) -> torch.Tensor:
        """Mean squared error between what the model predicts for c* and, held fixed, for ""."""
        drawn = self.samples(step)
        text = self.texts_of(drawn, self.texts)
        z, t, _ = self.noisy(drawn)
        with torch.no_grad():
            target = self.student(z, t, self.empty.expand_as(text))
        return F.mse_loss(self.student(z, t, text), target)


erase = trained(Sdd)
