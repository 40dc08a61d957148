"""EraseDiff: erasing as a bilevel problem (Wu et al., CVPR 2025, arXiv 2401.05779), Theorem 3.1.

    min_theta L_remain(theta)  subject to  g(theta) = L_f(theta) - min_phi L_f(phi) <= 0
    L_f = || eps(x_f, c_f) - sg eps(x_f, c_r) ||^2

The minimum is approached by K inner steps from theta, which are then taken back. The outer step follows

    grad L_remain + lambda grad g ,   lambda = max(0, (a - <grad g, grad L_remain>) / ||grad g||^2) ,

the direction nearest to grad L_remain along which g falls at rate a = eta ||grad g||^2. x_f are noised images of an
erased concept, c_f their caption and c_r the same caption with the mapping concept in it. The minimum is a constant to
the outer step, so grad g = grad L_f: the inner steps reach the weights only with `multiplier: value`, where a = eta g.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from resurgence.erasers.gradient.erasure import trained
from resurgence.erasers.gradient.forget_retain import ForgetRetain, Noised, denoising_loss, pseudo_loss
from resurgence.erasers.gradient.trainer import gradients, inner
from resurgence.training.memory import host_copy


def barrier_multiplier(
    remain: Sequence[torch.Tensor], forget: Sequence[torch.Tensor], rate: torch.Tensor
) -> torch.Tensor:
    """The least lambda >= 0 with <forget, remain + lambda forget> >= rate; 0 where forget is 0."""
    size = inner(forget, forget)
    return torch.where(size > 0, (rate - inner(forget, remain)) / size, 0.0).clamp(min=0)


def cosine_multiplier(remain: Sequence[torch.Tensor], forget: Sequence[torch.Tensor], eta: float) -> torch.Tensor:
    """max(0, eta - cos(remain, forget)), the cosine being 0 where remain is 0; 0 where forget is 0."""
    size = inner(forget, forget)
    lengths = size.sqrt() * inner(remain, remain).sqrt()
    cosine = torch.where(lengths > 0, inner(forget, remain) / lengths, 0.0)
    return torch.where(size > 0, eta - cosine, 0.0).clamp(min=0)


class EraseDiff(ForgetRetain):
    """The gradient of one step, for `batch` forget images and `batch` retained ones."""

    def least(self, at: Noised) -> torch.Tensor:
        """min_phi L_f(phi) as K steps from the present weights find it, on the same images.

        phi takes the place of the weights, which are in main memory meanwhile, and are then restored.
        """
        phi = list(self.student.weights.values())
        before = [host_copy(w) for w in phi]
        try:
            return self.after_inner_steps(phi, at)
        finally:
            for w, value in zip(phi, before, strict=True):
                w.data.copy_(value)
                w.grad = None

    def after_inner_steps(self, phi: list[torch.Tensor], at: Noised) -> torch.Tensor:
        """L_f after K steps of Adam from phi, which moves, or its mean during them."""
        cfg, student, losses = self.cfg, self.student, []
        # tensor by tensor, so that temporary results are small
        optimiser = torch.optim.Adam(phi, lr=cfg.lr if cfg.inner_lr is None else cfg.inner_lr, foreach=False)
        for _ in range(cfg.inner_steps):
            loss = pseudo_loss(student, student.weights, at, cfg.target_from)
            for w, g in zip(phi, gradients(loss, phi), strict=True):
                w.grad = g
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.detach())
        if cfg.inner_value == "mean":
            return torch.stack(losses).mean()
        with torch.no_grad():
            return pseudo_loss(student, student.weights, at, cfg.target_from)

    def multiplier(
        self, remain: Sequence[torch.Tensor], forget: Sequence[torch.Tensor], constraint: torch.Tensor
    ) -> torch.Tensor:
        """lambda of this step, a scalar; constraint: g."""
        cfg = self.cfg
        if cfg.multiplier == "fixed":
            return torch.full_like(constraint, cfg.weight)
        if cfg.multiplier == "cosine":
            return cosine_multiplier(remain, forget, cfg.eta)
        rate = constraint.clamp(min=0) if cfg.multiplier == "value" else inner(forget, forget)
        return barrier_multiplier(remain, forget, cfg.eta * rate)

    def gradient(self, step: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """grad L_remain + lambda grad L_f; without inner steps g is L_f itself."""
        weights, cfg = list(self.student.weights.values()), self.cfg
        forget, retain = self.forget(step), self.retain(step)
        least = self.least(forget) if cfg.inner_steps else 0.0  # first: its optimiser needs the memory of the gradients
        retained = denoising_loss(self.student, retain)
        remain_gradient = gradients(retained, weights)
        erased = pseudo_loss(self.student, self.student.weights, forget, cfg.target_from)
        forget_gradient = gradients(erased, weights)
        retained, erased = retained.detach(), erased.detach()
        constraint = erased - least
        factor = self.multiplier(remain_gradient, forget_gradient, constraint)
        for r, f in zip(remain_gradient, forget_gradient, strict=True):
            r += factor * f
        values = {"loss": retained + factor * constraint, "remain": retained, "forget": erased, "lambda": factor}
        return remain_gradient, values | {"constraint": constraint}


erase = trained(EraseDiff)
