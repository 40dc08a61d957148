"""ScissorHands: trimming and repairing (Wu and Harandi, ECCV 2024, arXiv 2401.06187).

    trim:    re-initialise the 1 - sparsity of the weights with the largest | theta * d L_forget / d theta | (SNIP)
    repair:  min L_remain - weight L_forget

L_remain and L_forget are the loss of diffusion training on images of the retained and of the erased concepts. With a
projection the repairing gradient u is replaced by the nearest one that does not work against a gradient m,

    argmin || v - u ||^2  subject to  <v, m> >= 0 ,   which is u + max(0, -<u, m> / ||m||^2) m :

one constraint needs no quadratic program. m is the gradient of forgetting (-L_forget) or of L_remain.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from resurgence.config.task import Task
from resurgence.diffusion.device import exact
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.erasure import trained
from resurgence.erasers.gradient.forget_retain import (
    ForgetRetain,
    denoising_loss,
    forget_gradients,
    largest,
    pseudo_loss,
)
from resurgence.erasers.gradient.image_configs import ScissorHandsConfig
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import gradients, inner
from resurgence.seeds import generator

SCRIPTS = ("up_blocks.1.attentions.1.", "up_blocks.2.attentions.1.")  # output_blocks 4 and 7 of SD 1.x, of them attn1


def snip(weights: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], sparsity: float) -> list[torch.Tensor]:
    """Masks of the n - int(sparsity n) of n weights with the largest |weight * gradient|, over all tensors."""
    scores = [(w.detach() * g).abs() for w, g in zip(weights, gradients, strict=True)]
    total = sum(s.numel() for s in scores)
    return largest(scores, total - int(sparsity * total))


def fresh(name: str, weight: torch.Tensor, initial: str, seed: int) -> torch.Tensor:
    """New values for a parameter: matrices and kernels random, biases 0, scales of norms 1; drawn on the CPU."""
    new, draws = torch.zeros(weight.shape), generator("scissorhands", name, seed)
    if weight.ndim < 2:
        new.fill_(float(name.endswith("weight")))
    elif initial == "normal":
        nn.init.trunc_normal_(new, std=0.02, generator=draws)
    else:
        nn.init.kaiming_uniform_(new, a=0, nonlinearity="relu", generator=draws)
    return new.to(weight)


def project(
    u: Sequence[torch.Tensor], m: Sequence[torch.Tensor], margin: float = 0.0
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Make u the nearest v to it with <v, m> >= 0, in place; return it and the multiple of m in it, 0 if they agree.

    With a margin, what a projection adds is at least margin times m.
    """
    product, size = inner(u, m, torch.float64), inner(m, m, torch.float64)
    factor = torch.where(product < 0, (-product / size).clamp(min=margin), 0.0)
    for x, y in zip(u, m, strict=True):
        x += factor.to(x.dtype) * y
    return list(u), factor


class ScissorHands(ForgetRetain):
    """Trims the weights at once; then the gradient of one step, for `batch` forget images and `batch` retained ones."""

    def __init__(self, student: Student, task: Task, cfg: ScissorHandsConfig, data: EraserData, seed: int) -> None:
        super().__init__(student, task, cfg, data, seed)
        official = [n for n in student.weights if ".attn1." in n and any(part in n for part in SCRIPTS)]
        if cfg.trim == "official" and not official:
            raise ValueError(f"trim = 'official': no self-attention in {' or '.join(SCRIPTS)}; write trim: all")
        absolute = cfg.saliency == "absolute"
        with exact(student.device):  # a resumed run trims the same weights, before its own are restored
            saliency = forget_gradients(self, cfg.saliency_steps, cfg.saliency_guidance, absolute)
        masks = snip(list(student.weights.values()), saliency, cfg.sparsity)
        self.trimmed = dict(zip(student.weights, masks, strict=True))
        if cfg.trim == "official":
            self.trimmed = {n: m if n in official else torch.zeros_like(m) for n, m in self.trimmed.items()}
        for name, w in student.weights.items():
            w.data.copy_(torch.where(self.trimmed[name], fresh(name, w, cfg.initial, seed), w.detach()))

    def gradient(self, step: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """Gradient of L_remain - weight L_forget (or + weight of the pseudo loss), projected if it is to be."""
        student, cfg = self.student, self.cfg
        weights = list(student.weights.values())
        retained = denoising_loss(student, self.retain(step))
        remain = gradients(retained, weights)
        images = self.forget(step)
        if cfg.forget == "ascent":
            erased = -denoising_loss(student, images)
        else:
            erased = pseudo_loss(student, student.weights, images, "current")
        forget = gradients(erased, weights)
        # in place of the one that the projection does not need: each is as large as the weights
        gradient = forget if cfg.projection == "remain" else remain
        for r, f, g in zip(remain, forget, gradient, strict=True):
            torch.add(r, cfg.weight * f, out=g)
        retained, erased = retained.detach(), erased.detach()
        values = {"loss": retained + cfg.weight * erased, "remain": retained, "forget": erased.abs()}
        if cfg.projection == "none":
            return gradient, values
        gradient, factor = project(gradient, forget if cfg.projection == "forget" else remain, cfg.margin)
        return gradient, values | {"projection": factor}


erase = trained(ScissorHands)
