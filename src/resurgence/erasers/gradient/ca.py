"""CA: Concept Ablation (Kumari et al., ICCV 2023, arXiv 2303.13516), the model-based and the noise-based objective.

    model-based:  min || eps_theta(x_t, c*) - eps_0(x_t, c) ||^2
    noise-based:  min || eps_theta(x_t, c*) - noise ||^2
    anchor term:  + anchor_weight || eps_theta(x_t, c) - noise ||^2   (optional)

x_t are noised images of the anchor, here the task's mapping concept; c is a caption of it, c* the same caption with
the erased concept in its place. So the words of the erased concept come to mean the anchor. The paper derives the
first objective with the frozen eps_0; to hold one model only, its training and its code take sg eps_theta instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from resurgence.erasers.gradient.anchor_images import AnchorObjective
from resurgence.erasers.gradient.erasure import trained


def target_of(loss: str, truth: torch.Tensor, anchor: torch.Tensor | None) -> torch.Tensor:
    """What c* is to predict, (B, C, h, w) without gradient: eps(x_t, c), or with `noise-based` the noise in x_t."""
    return truth if loss == "noise-based" else anchor.detach()


class Ca(AnchorObjective):
    """The loss of one step, for `batch` pairs of an erased concept and an image of its anchor."""

    def loss(self, step: int) -> torch.Tensor:
        """Mean squared error to the target, and the anchor term if it has a weight."""
        x, t, truth, text, anchor_text = self.pairs(step)
        student, cfg = self.student, self.cfg
        anchor = None
        if cfg.anchor_weight:
            concept, anchor = student(torch.cat([x, x]), torch.cat([t, t]), torch.cat([text, anchor_text])).chunk(2)
            retained = cfg.anchor_weight * F.mse_loss(anchor, truth)
        else:
            concept, retained = student(x, t, text), 0.0
        if cfg.loss == "model-based" and cfg.target_from == "frozen":
            anchor = student.frozen(x, t, anchor_text)
        elif cfg.loss == "model-based" and anchor is None:
            with torch.no_grad():
                anchor = student(x, t, anchor_text)
        return F.mse_loss(concept, target_of(cfg.loss, truth, anchor)) + retained


erase = trained(Ca)
