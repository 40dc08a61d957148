"""What the erasers share that train on images of both sides: noised images of erased and of retained concepts.

SalUn, EraseDiff and ScissorHands minimise losses on the forget images (of the erased concepts) and on the retained
ones, and two of them first look for the weights that matter to the forget images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from resurgence.config.task import Task
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.image_draws import Draw, Noised, caption_texts, concept_latents, noised
from resurgence.erasers.gradient.student import Student, Weights
from resurgence.erasers.gradient.trainer import Objective, Sample, gradients, samples
from resurgence.seeds import seed_of


class ForgetRetain(Objective):
    """Latents and captions of the images of both sides, in batches.

    Raises:
        ValueError: an erased concept without images in `data.images`, or a retained one without in `data.retained`.
    """

    def __init__(self, student: Student, task: Task, cfg: Any, data: EraserData, seed: int) -> None:
        super().__init__(student, task, cfg, data, seed)
        sides = (("concept", task.erase, data.images), ("retained", task.retain, data.retained))
        self.latents: dict[str, torch.Tensor] = {}
        for kind, concepts, images in sides:
            names = dict.fromkeys(concepts, "")
            self.latents |= concept_latents(type(self).__name__.lower(), student, names, images, kind)
        concepts = dict.fromkeys([*task.erase, *task.mapping.values(), *task.retain])
        self.texts = caption_texts(student, task, cfg.captions, concepts)

    @property
    def asks_original(self) -> bool:
        """Whether the original predicts the target."""
        return getattr(self.cfg, "target_from", "current") == "frozen"

    def forget(self, step: int, purpose: str | None = None) -> Noised:
        """The forget images of a step; a purpose gives draws of its own, so that a first phase is not the training.

        `other` has the mapping concept.
        """
        seed = self.seed if purpose is None else seed_of(purpose, self.seed)
        return self.batch(samples(self.task.erase, self.cfg.batch, seed, step))

    def retain(self, step: int) -> Noised:
        """The retained images of a step, with noise and t of their own; `other` is `text`."""
        return self.batch(samples(self.task.retain, self.cfg.batch, seed_of("retained", self.seed), step))

    def batch(self, drawn: Sequence[Sample]) -> Noised:
        """The noised images of samples."""
        mapping = self.task.mapping
        draws = [Draw(self.latents[c], (self.texts[c], self.texts[mapping.get(c, c)]), g) for c, g in drawn]
        return Noised(*noised(self.student, draws))


def denoising_loss(student: Student, at: Noised) -> torch.Tensor:
    """The loss of diffusion training, mean of || eps_theta(x_t, c) - noise ||^2 over samples and elements."""
    return F.mse_loss(student(at.x, at.t, at.text), at.truth)


def pseudo_target(student: Student, weights: Weights, at: Noised, target_from: str) -> torch.Tensor:
    """sg eps(x_t, c_r) of these weights (`current`) or of the original (`frozen`): (B, C, h, w)."""
    if target_from == "frozen":
        return student.frozen(at.x, at.t, at.other)
    with torch.no_grad():
        return student.predicted(weights, at.x, at.t, at.other)


def pseudo_loss(student: Student, weights: Weights, at: Noised, target_from: str) -> torch.Tensor:
    """Mean of || eps(x_t, c_f) - sg eps(x_t, c_r) ||^2 over samples and elements, of these weights."""
    target = pseudo_target(student, weights, at, target_from)
    return F.mse_loss(student.predicted(weights, at.x, at.t, at.text), target)


def forget_gradients(objective: ForgetRetain, steps: int, guidance: float, absolute: bool) -> list[torch.Tensor]:
    """Gradient of the denoising loss of the forget images, summed over `steps` batches, for each weight in training.

    Args:
        guidance: w of the prediction (1 + w) eps(c) - w eps(""), both with gradients; 0: eps(c) alone.
        absolute: sum the magnitudes of the batches' gradients instead of the gradients.
    """
    student = objective.student
    weights = list(student.weights.values())
    total = [torch.zeros_like(w) for w in weights]
    empty = student.texts([""])

    def gradient(step: int) -> list[torch.Tensor]:
        at = objective.forget(step, "saliency")
        predicted = student(at.x, at.t, at.text)
        if guidance:
            predicted = (1 + guidance) * predicted - guidance * student(at.x, at.t, empty.expand_as(at.text))
        return gradients(F.mse_loss(predicted, at.truth), weights)

    limits, student.limits = student.limits, replace(student.limits)  # the training finds its own micro-batch
    with objective.only_what_runs():
        for step in range(steps):
            for sum_, g in zip(total, student.limits.fitting(partial(gradient, step)), strict=True):
                sum_ += g.abs() if absolute else g
    student.limits = limits
    return total


def value_of(place: int, dtype: torch.dtype) -> float:
    """The floating-point value at a place of their order: 0 at 0, the next larger one at 1, its negative at -1."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    return math.copysign(float(torch.tensor(abs(place), dtype=integer).view(dtype)), place)


def kth_largest(scores: Sequence[torch.Tensor], count: int) -> float:
    """The `count`-th largest element over all tensors of one dtype: the largest value that so many reach.

    By bisection over all floating-point values, counting on the device of the tensors: no copy of them is made.
    """
    dtype = scores[0].dtype
    infinity = torch.tensor(torch.inf, dtype=dtype)
    high = int(infinity.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]))
    low = -high
    while low < high:
        middle = (low + high + 1) // 2
        reach = sum((s >= value_of(middle, dtype)).sum() for s in scores)
        low, high = (middle, high) if int(reach) >= count else (low, middle - 1)
    return value_of(low, dtype)


def largest(scores: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    """Masks of the `count` largest elements over all tensors together; of equal ones at the threshold the first.

    Each tensor is compared with the one threshold: sorting 860 million weights takes minutes and far more memory.

    Args:
        count: 0 to the number of all elements.
    """
    if not count:
        return [torch.zeros_like(s, dtype=torch.bool) for s in scores]
    threshold = kth_largest(scores, count)
    masks = [(s > threshold).flatten() for s in scores]
    left = count - int(sum(mask.sum() for mask in masks))  # of those that equal the threshold
    for mask, s in zip(masks, scores, strict=True):
        equal = (s == threshold).flatten().nonzero().flatten()[:left]
        mask[equal] = True
        left -= len(equal)
    return [mask.view(s.shape) for mask, s in zip(masks, scores, strict=True)]
