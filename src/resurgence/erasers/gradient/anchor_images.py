"""What the erasers share that train on images of the anchor: pairs of an erased concept and such an image.

Concept Ablation and DoCo read noised images of the anchor, here the task's mapping concept, once with a caption of it
and once with the same caption with the erased concept in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from resurgence.diffusion.latents import latents_of
from resurgence.diffusion.text import fill, load_captions
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Sample

if TYPE_CHECKING:
    from resurgence.config.task import Task
    from resurgence.erasers import EraserData


class Pairs(NamedTuple):
    """A batch of pairs."""

    latents: torch.Tensor  # (B, C, h, w)
    noise: torch.Tensor  # (B, C, h, w)
    t: torch.Tensor  # (B,)
    text: torch.Tensor  # (B, L, d), the caption with the erased concept
    anchor_text: torch.Tensor  # (B, L, d), the same caption with the anchor


class AnchorImages:
    """Latents of the anchors' images, and captions of erased concepts and anchors.

    Args:
        method: who asks, for the messages. captions: templates, or where to find them; see captions.load_captions.
        data: `anchors`, images of each mapping concept.

    Raises:
        ValueError: an anchor without images.
    """

    def __init__(
        self, method: str, student: Student, task: Task, captions: str | Sequence[str], data: EraserData
    ) -> None:
        self.task, self.timesteps = task, len(student.alphas_bar)
        self.latents: dict[str, torch.Tensor] = {}  # anchor -> (N, C, h, w)
        for concept in task.erase:
            anchor = task.mapping[concept]
            if not len(data.anchors.get(anchor, ())):
                raise ValueError(
                    f"{method}: no images of {anchor!r}, the anchor of {concept!r}; make the anchor images first"
                )
            if anchor not in self.latents:
                self.latents[anchor] = latents_of(student.pipe, data.anchors[anchor]).float()
        templates, words = load_captions(captions, task.kind), (*task.erase, *self.latents)
        self.texts = {word: student.texts(fill(templates, word)) for word in words}  # (K, L, d)

    def draw(self, drawn: Sequence[Sample]) -> Pairs:
        """Image, caption, t and noise of each sample, in this order from its generator."""
        parts = []
        for concept, draws in drawn:
            anchor = self.task.mapping[concept]
            latents, texts = self.latents[anchor], self.texts[concept]
            image = int(torch.randint(len(latents), (), generator=draws))
            caption = int(torch.randint(len(texts), (), generator=draws))
            t = torch.randint(self.timesteps, (), generator=draws).to(latents.device)
            noise = torch.randn(latents.shape[1:], generator=draws).to(latents.device)
            parts.append((latents[image], noise, t, texts[caption], self.texts[anchor][caption]))
        return Pairs(*(torch.stack(column) for column in zip(*parts, strict=True)))
