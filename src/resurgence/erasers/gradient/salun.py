"""SalUn: saliency unlearning (Fan et al., ICLR 2024, arXiv 2310.12508).

    mask = the fraction of the weights with the largest | d L_s / d theta_0 |, L_s = || noise - eps(x_f, c_f) ||^2
    min over the masked weights  || eps_theta(x_f, c_f) - sg eps_theta(x_f, c_r) ||^2 + alpha L_remain

x_f are noised images of an erased concept, c_f their caption and c_r the same caption with the mapping concept in it;
L_remain is the loss of diffusion training on images of the retained concepts. Weights outside the mask stay as they
are, bit by bit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from resurgence.config.task import Task
from resurgence.diffusion.device import exact
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.erasure import trained
from resurgence.erasers.gradient.forget_retain import ForgetRetain, forget_gradients, largest, pseudo_target
from resurgence.erasers.gradient.image_configs import SalunConfig
from resurgence.erasers.gradient.student import Student


def saliency_mask(gradients: list[torch.Tensor], fraction: float) -> list[torch.Tensor]:
    """Masks of the int(fraction n) largest magnitudes of n gradients, with one threshold over all tensors.

    Raises:
        ValueError: a fraction so small that nothing would be trained.
    """
    number = int(fraction * sum(g.numel() for g in gradients))
    if not number:
        raise ValueError(f"fraction = {fraction:g} of the weights is less than one weight; raise it")
    return largest([g.abs() for g in gradients], number)


class Salun(ForgetRetain):
    """The loss of one step, for `batch` forget images and `batch` retained ones; the mask is computed in advance."""

    def __init__(self, student: Student, task: Task, cfg: SalunConfig, data: EraserData, seed: int) -> None:
        super().__init__(student, task, cfg, data, seed)
        with exact(student.device):  # a resumed run computes the same mask again
            saliency = forget_gradients(self, cfg.mask_steps, cfg.mask_guidance, absolute=False)
        self.mask = saliency_mask(saliency, cfg.fraction)  # bool, one for each of student.weights

    def loss(self, step: int) -> torch.Tensor:
        """The forget loss and alpha L_remain; both kinds of images in one pass."""
        forget, retain = self.forget(step), self.retain(step)
        target = pseudo_target(self.student, self.student.weights, forget, self.cfg.target_from)
        x, t, _, text, _ = (torch.cat(both) for both in zip(forget, retain, strict=True))
        erased, retained = self.student(x, t, text).chunk(2)
        return F.mse_loss(erased, target) + self.cfg.alpha * F.mse_loss(retained, retain.truth)

    def gradient(self, step: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """The loss's gradient inside the mask, 0 outside: there Adam's moments and its step stay 0."""
        gradient, values = super().gradient(step)
        for m, g in zip(self.mask, gradient, strict=True):
            g.masked_fill_(~m, 0.0)
        return gradient, values


erase = trained(Salun)
