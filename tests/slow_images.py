"""Forget and retained images for the tests of SalUn, EraseDiff and ScissorHands, noised one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from resurgence.erasers import EraserData
from resurgence.erasers.gradient.trainer import samples
from resurgence.seeds import seed_of
from slow import TASK, embed, predicted, truth

CAPTIONS = ("a photo of the {}", "the {} on the ground")


class Point(NamedTuple):
    """One noised image, what an ideal model predicts for it, and the captions c_f and c_r."""

    x: torch.Tensor
    t: int
    truth: torch.Tensor
    caption: str
    pseudo: str


def pictures() -> EraserData:
    """Two images of each erased concept and three of each retained one."""
    g = torch.Generator().manual_seed(2)
    images = {name: torch.rand(2, 3, 16, 16, generator=g) * 2 - 1 for name in TASK.erase}
    return EraserData(images=images, retained={n: torch.rand(3, 3, 16, 16, generator=g) * 2 - 1 for n in TASK.retain})


@torch.no_grad()
def points(pipe, concepts, images: Mapping[str, torch.Tensor], batch: int, seed: int, step: int) -> list[Point]:
    """The noised images of a step: draws in the order image, caption, t, noise."""
    found = []
    for concept, g in samples(concepts, batch, seed, step):
        picture = images[concept][int(torch.randint(len(images[concept]), (), generator=g))]
        template = CAPTIONS[int(torch.randint(len(CAPTIONS), (), generator=g))]
        t, noise = int(torch.randint(1000, (), generator=g)), torch.randn(4, 8, 8, generator=g)
        clean = pipe.vae.encode(picture[None].to(pipe.vae.dtype)).latent_dist.mode()[0] * pipe.vae.config.scaling_factor
        a = pipe.scheduler.alphas_cumprod[t]
        captions = [template.replace("{}", word) for word in (concept, TASK.mapping.get(concept, concept))]
        x = a**0.5 * clean + (1 - a) ** 0.5 * noise.to(clean)
        found.append(Point(x, t, truth(pipe, clean, noise, t), *captions))
    return found


def forget_points(pipe, data: EraserData, batch: int, seed: int, step: int, purpose: str = "") -> list[Point]:
    """The forget images of a step of the training, or of a first phase."""
    return points(pipe, TASK.erase, data.images, batch, seed_of(purpose, seed) if purpose else seed, step)


def retain_points(pipe, data: EraserData, batch: int, seed: int, step: int) -> list[Point]:
    """The retained images of a step."""
    return points(pipe, TASK.retain, data.retained, batch, seed_of("retained", seed), step)


def slow_denoising(pipe, unet, drawn: list[Point], guidance: float = 0.0) -> torch.Tensor:
    """|| noise - eps(x_t, c) ||^2, or with (1 + w) eps(x_t, c) - w eps(x_t, "")."""
    terms = []
    for p in drawn:
        out = predicted(pipe, unet, p.x, p.t, embed(pipe, p.caption))
        if guidance:
            out = (1 + guidance) * out - guidance * predicted(pipe, unet, p.x, p.t, embed(pipe, ""))
        terms.append(((p.truth - out) ** 2).mean())
    return torch.stack(terms).mean()


def slow_pseudo(pipe, unet, teacher, drawn: list[Point]) -> torch.Tensor:
    """|| eps(x_t, c_f) - sg eps'(x_t, c_r) ||^2, eps' of the teacher."""
    terms = []
    for p in drawn:
        with torch.no_grad():
            target = predicted(pipe, teacher, p.x, p.t, embed(pipe, p.pseudo))
        terms.append(((predicted(pipe, unet, p.x, p.t, embed(pipe, p.caption)) - target) ** 2).mean())
    return torch.stack(terms).mean()


def flat(tensors) -> torch.Tensor:
    """Several tensors as one vector of float64."""
    return torch.cat([x.detach().flatten().double() for x in tensors])
