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
        """min_phi L_f(phi) as K steps from the present weights find it, on the same images; the weights stay."""
        cfg, losses = self.cfg, []
        phi = {name: w.detach().clone().requires_grad_() for name, w in self.student.weights.items()}
        optimiser = torch.optim.Adam(phi.values(), lr=cfg.lr if cfg.inner_lr is None else cfg.inner_lr)
        for _ in range(cfg.inner_steps):
            loss = pseudo_loss(self.student, phi, at, cfg.target_from)
            for w, g in zip(phi.values(), gradients(loss, list(phi.values())), strict=True):
                w.grad = g
            optimiser.step()
            losses.append(loss.detach())
        if cfg.inner_value == "mean":
            return torch.stack(losses).mean()
        with torch.no_grad():
            return pseudo_loss(self.student, phi, at, cfg.target_from)

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
        retained = denoising_loss(self.student, retain)
        remain_gradient = gradients(retained, weights)
        erased = pseudo_loss(self.student, self.student.weights, forget, cfg.target_from)
        forget_gradient = gradients(erased, weights)
        retained, erased = retained.detach(), erased.detach()
        constraint = erased - self.least(forget) if cfg.inner_steps else erased
        factor = self.multiplier(remain_gradient, forget_gradient, constraint)
        gradient = [r + factor * f for r, f in zip(remain_gradient, forget_gradient, strict=True)]
        values = {"loss": retained + factor * constraint, "remain": retained, "forget": erased, "lambda": factor}
        return gradient, values | {"constraint": constraint}


erase = trained(EraseDiff)
