"""What the erasers share that train on images of both sides: noised images of erased and of retained concepts.

SalUn, EraseDiff and ScissorHands minimise losses on the forget images (of the erased concepts) and on the retained
ones, and two of them first look for the weights that matter to the forget images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from resurgence.diffusion.latents import add_noise, latents_of
from resurgence.diffusion.text import fill, load_captions
from resurgence.erasers.gradient.student import Student, Weights
from resurgence.erasers.gradient.trainer import Sample, gradients, samples
from resurgence.seeds import seed_of

if TYPE_CHECKING:
    from resurgence.config.task import Task
    from resurgence.erasers import EraserData


class Noised(NamedTuple):
    """Noised latents with their captions."""

    x: torch.Tensor  # (B, C, h, w)
    t: torch.Tensor  # (B,)
    noise: torch.Tensor  # (B, C, h, w), what is in x
    text: torch.Tensor  # (B, L, d), the caption of what the image shows
    pseudo: torch.Tensor  # (B, L, d), the same caption with the mapping concept in it; of retained images: text again


class ForgetRetain:
    """Latents and captions of the images of both sides, dealt out in batches.

    Args:
        method: who asks, for the messages. captions: templates, or where to find them; see captions.load_captions.
        data: `images` of every erased concept and `retained` of every retained one.

    Raises:
        ValueError: a concept without images.
    """

    def __init__(
        self,
        method: str,
        student: Student,
        task: Task,
        captions: str | Sequence[str],
        batch: int,
        data: EraserData,
        seed: int,
    ) -> None:
        self.student, self.task, self.batch, self.seed = student, task, batch, seed
        self.latents: dict[str, torch.Tensor] = {}  # concept -> (N, C, h, w)
        for kind, concepts, images in (("concept", task.erase, data.images), ("retained", task.retain, data.retained)):
            for concept in concepts:
                if not len(images.get(concept, ())):
                    raise ValueError(f"{method}: no images of {concept!r}; make the {kind} images first")
                self.latents[concept] = latents_of(student.pipe, images[concept]).float()
        words = dict.fromkeys([*task.erase, *task.mapping.values(), *task.retain])
        templates = load_captions(captions, task.kind)
        self.texts = {word: student.texts(fill(templates, word)) for word in words}  # (K, L, d)

    def forget(self, step: int, purpose: str | None = None) -> Noised:
        """The forget images of a step; a purpose gives draws of its own, so that a first phase is not the training."""
        seed = self.seed if purpose is None else seed_of(purpose, self.seed)
        return self.collect(samples(self.task.erase, self.batch, seed, step), self.task.mapping)

    def retain(self, step: int) -> Noised:
        """The retained images of a step, with noise and t of their own."""
        return self.collect(samples(self.task.retain, self.batch, seed_of("retained", self.seed), step), {})

    def collect(self, drawn: Sequence[Sample], mapping: Mapping[str, str]) -> Noised:
        """Image, caption, t and noise of each sample, in this order from its generator."""
        parts = []
        for concept, draws in drawn:
            latents, texts = self.latents[concept], self.texts[concept]
            image = int(torch.randint(len(latents), (), generator=draws))
            caption = int(torch.randint(len(texts), (), generator=draws))
            t = torch.randint(len(self.student.alphas_bar), (), generator=draws)
            noise = torch.randn(latents.shape[1:], generator=draws)
            pseudo = self.texts[mapping.get(concept, concept)][caption]
            parts.append((latents[image], t.to(latents.device), noise.to(latents.device), texts[caption], pseudo))
        latents, t, noise, text, pseudo = (torch.stack(column) for column in zip(*parts, strict=True))
        return Noised(add_noise(latents, noise, self.student.alphas_bar[t]), t, noise, text, pseudo)


def denoising_loss(student: Student, at: Noised) -> torch.Tensor:
    """The loss of diffusion training, mean of || eps_theta(x_t, c) - noise ||^2 over samples and elements."""
    return F.mse_loss(student(at.x, at.t, at.text), at.noise)


def pseudo_target(student: Student, weights: Weights, at: Noised, target_from: str) -> torch.Tensor:
    """sg eps(x_t, c_r) of these weights (`current`) or of the original (`frozen`): (B, C, h, w)."""
    if target_from == "frozen":
        return student.frozen(at.x, at.t, at.pseudo)
    with torch.no_grad():
        return student.noise(weights, at.x, at.t, at.pseudo)


def pseudo_loss(student: Student, weights: Weights, at: Noised, target_from: str) -> torch.Tensor:
    """Mean of || eps(x_t, c_f) - sg eps(x_t, c_r) ||^2 over samples and elements, of these weights."""
    target = pseudo_target(student, weights, at, target_from)
    return F.mse_loss(student.noise(weights, at.x, at.t, at.text), target)


def forget_gradients(
    data: ForgetRetain, steps: int, guidance: float, purpose: str, absolute: bool
) -> list[torch.Tensor]:
    """Gradient of the denoising loss of the forget images, summed over `steps` batches, for each weight in training.

    Args:
        guidance: w of the prediction (1 + w) eps(c) - w eps(""), both with gradients; 0: eps(c) alone.
        absolute: sum the magnitudes of the batches' gradients instead of the gradients.
    """
    student = data.student
    weights = list(student.weights.values())
    total = [torch.zeros_like(w) for w in weights]
    empty = student.texts([""])
    for step in range(steps):
        at = data.forget(step, purpose)
        predicted = student(at.x, at.t, at.text)
        if guidance:
            predicted = (1 + guidance) * predicted - guidance * student(at.x, at.t, empty.expand_as(at.text))
        for sum_, g in zip(total, gradients(F.mse_loss(predicted, at.noise), weights), strict=True):
            sum_ += g.abs() if absolute else g
    return total


def largest(scores: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    """Masks of the `count` largest elements over all tensors together; of equal ones at the threshold the first.

    The one threshold is found by selection, on the CPU: sorting 860 million weights takes minutes and far more memory.

    Args:
        count: 0 to the number of all elements.
    """
    flat = torch.cat([s.detach().flatten().cpu() for s in scores])
    mask = torch.zeros(len(flat), dtype=torch.bool)
    if count:
        threshold = flat.kthvalue(len(flat) - count + 1).values
        torch.gt(flat, threshold, out=mask)
        equal = (flat == threshold).nonzero().flatten()
        mask[equal[: count - int(mask.sum())]] = True
    parts = mask.split([s.numel() for s in scores])
    return [part.view(s.shape).to(s.device) for part, s in zip(parts, scores, strict=True)]
