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

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from resurgence.config.fields import ConfigError, at_least, templates
from resurgence.config.optimisation import Optimisation, Selection
from resurgence.erasers import Eraser, EraserData
from resurgence.erasers.gradient.forget_retain import ForgetRetain, Noised, denoising_loss, pseudo_loss
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Objective, gradients, train

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import StableDiffusionPipeline

    from resurgence.config.task import Task


@dataclass(frozen=True)
class EraseDiffConfig(Optimisation):
    """Settings; the defaults are those of the authors' scripts for classes, with the paper's lambda."""

    parameters: Selection = "full"  # script for classes; nudity: noxattn-official
    steps: int = 60  # optimiser steps: script for classes; nudity: 160
    batch: int = 16  # script for classes; forget images of a step, and as many retained ones
    multiplier: Literal[
        "gradient",  # lambda with a = eta ||grad g||^2: the paper
        "value",  # lambda with a = eta g: the dynamic barrier's other choice, in which the inner steps count
        "cosine",  # max(0, eta - cos(grad L_remain, grad g)): the authors' code for pixel models
        "fixed",  # weight: the authors' code for Stable Diffusion
    ] = "gradient"  # how lambda is set
    eta: float = 0.1  # of lambda: the authors' code for pixel models
    weight: float = 1.0  # lambda of `fixed`: scripts; the command line's default is 0.1
    inner_steps: int = 2  # K: command line
    inner_lr: float | None = None  # of Adam, begun anew in each step; null: lr, as the scripts
    inner_value: Literal["last", "mean"] = "last"  # min L_f: after the K steps (paper), or (code) their mean loss
    target_from: Literal["current", "frozen"] = "current"  # sg eps_theta (paper and code), or eps_0
    captions: str | tuple[str, ...] = ("an image of {}",)  # templates; the scripts: "an image of a <class>"

    def __post_init__(self) -> None:
        super().__post_init__()
        templates("captions", self.captions)
        for key in ("eta", "weight", "inner_steps"):
            at_least(key, getattr(self, key), 0)
        if self.inner_lr is not None and not self.inner_lr > 0:
            raise ConfigError("inner_lr", self.inner_lr, "must be positive, or null for lr")
        if self.multiplier == "value" and not self.inner_steps:
            raise ConfigError("inner_steps", self.inner_steps, "multiplier: value needs at least 1, to know g")
        if self.parameters == "text-encoder":
            raise ConfigError("parameters", self.parameters, "erasediff trains the UNet; choose another, e.g. full")


def inner(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
    """The inner product of two gradients, each given tensor by tensor: a scalar."""
    return torch.stack([torch.sum(x * y) for x, y in zip(a, b, strict=True)]).sum()


def barrier_multiplier(
    remain: Sequence[torch.Tensor], forget: Sequence[torch.Tensor], rate: torch.Tensor
) -> torch.Tensor:
    """The least lambda >= 0 with <forget, remain + lambda forget> >= rate; 0 where forget is 0."""
    size = inner(forget, forget)
    return torch.where(size > 0, (rate - inner(forget, remain)) / size, 0.0).clamp(min=0)


def cosine_multiplier(remain: Sequence[torch.Tensor], forget: Sequence[torch.Tensor], eta: float) -> torch.Tensor:
    """max(0, eta - cos(remain, forget)); 0 where forget is 0."""
    size = inner(forget, forget)
    cosine = inner(forget, remain) / ((size * inner(remain, remain)).sqrt() + 1e-8)
    return torch.where(size > 0, eta - cosine, 0.0).clamp(min=0)


class EraseDiff(Objective):
    """The gradient of one step, for `batch` forget images and `batch` retained ones."""

    def __init__(self, student: Student, task: Task, cfg: EraseDiffConfig, data: EraserData, seed: int) -> None:
        super().__init__(student)
        self.cfg = cfg
        self.data = ForgetRetain("erasediff", student, task, cfg.captions, cfg.batch, data, seed)

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
        forget, retain = self.data.forget(step), self.data.retain(step)
        kept = denoising_loss(self.student, retain)
        remain_gradient = gradients(kept, weights)
        erased = pseudo_loss(self.student, self.student.weights, forget, cfg.target_from)
        forget_gradient = gradients(erased, weights)
        kept, erased = kept.detach(), erased.detach()
        constraint = erased - self.least(forget) if cfg.inner_steps else erased
        factor = self.multiplier(remain_gradient, forget_gradient, constraint)
        found = [r + factor * f for r, f in zip(remain_gradient, forget_gradient, strict=True)]
        shown = {"loss": kept + factor * constraint, "remain": kept, "forget": erased, "lambda": factor}
        return found, shown | {"constraint": constraint}


def erase(
    pipe: StableDiffusionPipeline,
    task: Task,
    cfg: EraseDiffConfig,
    data: EraserData,
    seed: int,
    folder: Path | None = None,
) -> dict[str, torch.Tensor]:
    """Train; the pipeline is left as it was.

    Args:
        data: `images` of the erased concepts and `retained` ones.
        folder: where curves.json and the checkpoints go; None: nowhere.
    """
    student = Student(pipe, cfg.parameters)
    return train(student, EraseDiff(student, task, cfg, data, seed), task, cfg, data, seed, folder)


ERASER = Eraser(EraseDiffConfig, erase, frozenset({"images", "retained"}))
