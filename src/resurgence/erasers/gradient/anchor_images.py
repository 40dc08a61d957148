"""What the erasers share that train on images of the anchor: pairs of an erased concept and such an image.

Concept Ablation and DoCo read noised images of the anchor, here the task's mapping concept, once with a caption of it
and once with the same caption with the erased concept in its place.
"""

from __future__ import annotations

from typing import Any

from resurgence.config.task import Task
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.image_draws import Noised, caption_texts, concept_latents, noised
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Objective


class AnchorObjective(Objective):
    """Latents of the anchors' images, and captions of erased concepts and anchors.

    Raises:
        ValueError: an anchor without images in `data.anchors`.
    """

    def __init__(self, student: Student, task: Task, cfg: Any, data: EraserData, seed: int) -> None:
        super().__init__(student, task, cfg, data, seed)
        anchors = {task.mapping[concept]: f", the anchor of {concept!r}" for concept in task.erase}
        self.latents = concept_latents(type(self).__name__.lower(), student, anchors, data.anchors, "anchor")
        self.texts = caption_texts(student, task, cfg.captions, (*task.erase, *anchors))

    def pairs(self, step: int) -> Noised:
        """The pairs of a step; `text` has the erased concept, `other` the anchor."""
        named = [(sample.concept, self.task.mapping[sample.concept], sample.generator) for sample in self.samples(step)]
        return Noised(
            *noised(self.student, [(self.latents[a], (self.texts[c], self.texts[a]), g) for c, a, g in named])
        )
