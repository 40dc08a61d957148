"""What the erasers share that train on images of the anchor: pairs of an erased concept and such an image.

Concept Ablation and DoCo read noised images of the anchor, here the task's mapping concept, once with a caption of it
and once with the same caption with the erased concept in its place.
"""

from __future__ import annotations

from typing import Any

import torch

from resurgence.config.anchor_captions import check_pairs
from resurgence.config.task import Task
from resurgence.diffusion.text import fill
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.image_draws import Draw, Noised, caption_texts, concept_latents, noised
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Objective


class AnchorObjective(Objective):
    """Latents of the anchors' images, and captions of erased concepts and anchors.

    Raises:
        ValueError: an anchor without images in `data.anchors`, or with `own_captions` without their captions in
            `data.anchor_captions`. ConfigError: see `image_captions`.
    """

    def __init__(self, student: Student, task: Task, cfg: Any, data: EraserData, seed: int) -> None:
        super().__init__(student, task, cfg, data, seed)
        anchors = {task.mapping[concept]: f", the anchor of {concept!r}" for concept in task.erase}
        self.latents = concept_latents(type(self).__name__.lower(), student, anchors, data.anchors, "anchor")
        self.texts: dict[str, torch.Tensor] = {}  # concept or anchor -> (K, L, d)
        self.caption_of: dict[str, list[int]] = {}  # anchor -> the caption of each of its images
        if not cfg.own_captions:
            self.texts = caption_texts(student, task, cfg.captions, (*task.erase, *anchors))
        for anchor in anchors if cfg.own_captions else ():
            templates = image_captions(anchor, data, cfg.suffix)
            unique = list(dict.fromkeys(templates))
            self.caption_of[anchor] = [unique.index(template) for template in templates]
            self.texts[anchor] = student.texts(fill(unique, anchor))
            for concept in (c for c in task.erase if task.mapping[c] == anchor):
                self.texts[concept] = student.texts(fill([template + cfg.suffix for template in unique], concept))

    def pairs(self, step: int) -> Noised:
        """The pairs of a step; `text` has the erased concept, `other` the anchor."""
        draws = []
        for sample in self.samples(step):
            anchor = self.task.mapping[sample.concept]
            tables = (self.texts[sample.concept], self.texts[anchor])
            draws.append(Draw(self.latents[anchor], tables, sample.generator, self.caption_of.get(anchor)))
        return Noised(*noised(self.student, draws))


def image_captions(anchor: str, data: EraserData, suffix: str) -> list[str]:
    """The prompt of each image of an anchor, with {} where it names the anchor.

    Raises:
        ValueError: none. ConfigError: one that with the suffix has not one place for the concept.
    """
    templates = data.anchor_captions.get(anchor, [])
    if len(templates) != len(data.anchors[anchor]):
        raise ValueError(f"own_captions: the images of {anchor!r} come without their prompts; write false")
    check_pairs(templates, suffix, "suffix")
    return templates
