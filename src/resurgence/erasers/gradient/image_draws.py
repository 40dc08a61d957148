"""What the erasers share that train on noised images: latents by concept, and draws of image, caption, t and noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from resurgence.config.task import Task
from resurgence.diffusion.device import at_least_single
from resurgence.diffusion.latents import add_noise, latents_of
from resurgence.diffusion.text import fill, load_captions
from resurgence.erasers.gradient.student import Student


class Noised(NamedTuple):
    """Noised latents with their captions."""

    x: torch.Tensor  # (B, C, h, w)
    t: torch.Tensor  # (B,)
    truth: torch.Tensor  # (B, C, h, w), what an ideal model predicts for x: the noise in it, or v or x_0
    text: torch.Tensor  # (B, L, d), a caption of a concept
    other: torch.Tensor  # (B, L, d), the same caption with another concept; see where it is drawn


class Draw(NamedTuple):
    """Of what a sample is drawn."""

    latents: torch.Tensor  # (N, C, h, w)
    tables: Sequence[torch.Tensor]  # (K, ...), rows of the K captions
    generator: torch.Generator
    caption_of: Sequence[int] | None = None  # the caption of each of the N images; None: any


def noised(student: Student, draws: Iterable[Draw]) -> tuple[torch.Tensor, ...]:
    """Noise an image of each draw: (x_t (B, C, h, w), t (B,), its truth (B, C, h, w), a row of each table (B, ...)).

    Image, caption (the row, which all tables of a draw share) unless the image has its own, t and noise are drawn in
    this order.
    """
    parts = []
    for latents, tables, generator, caption_of in draws:
        image = int(torch.randint(len(latents), (), generator=generator))
        if caption_of is None:
            caption = int(torch.randint(len(tables[0]), (), generator=generator))
        else:
            caption = caption_of[image]
        t = torch.randint(len(student.alphas_bar), (), generator=generator).to(latents.device)
        noise = torch.randn(latents.shape[1:], generator=generator).to(latents.device)
        parts.append((latents[image], t, noise, *(table[caption] for table in tables)))
    latents, t, noise, *rows = (torch.stack(column) for column in zip(*parts, strict=True))
    return add_noise(latents, noise, student.alphas_bar[t]), t, student.truth(latents, noise, t), *rows


def concept_latents(
    method: str, student: Student, concepts: Mapping[str, str], images: Mapping[str, torch.Tensor], kind: str
) -> dict[str, torch.Tensor]:
    """Latents (N, C, h, w), at least float32, of the images of each concept.

    Args:
        method, kind: for the message, with the text that `concepts` has for each concept.

    Raises:
        ValueError: a concept without images.
    """
    for concept, text in concepts.items():
        if not len(images.get(concept, ())):
            raise ValueError(f"{method}: no images of {concept!r}{text}; make the {kind} images first")
    return {concept: at_least_single(latents_of(student.pipe, images[concept])) for concept in concepts}


def caption_texts(
    student: Student, task: Task, captions: str | Sequence[str], concepts: Iterable[str]
) -> dict[str, torch.Tensor]:
    """Embeddings (K, L, d) of the K captions of each concept.

    Args:
        captions: templates, or where to find them; see text.load_captions.
    """
    templates = load_captions(captions, task.kind)
    return {concept: student.texts(fill(templates, concept)) for concept in concepts}
