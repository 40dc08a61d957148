"""Checks of the prompts of the images that the base makes for erasers, and of erasers that read each with its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resurgence.config.fields import ConfigError, unique
from resurgence.config.naming import named_word
from resurgence.files import read_lines

if TYPE_CHECKING:
    from resurgence.config.study import Study
    from resurgence.config.task import Task

PLACE = "concept_images.anchor_captions"


def check_captions(captions: Sequence[str], key: str, images: int, images_key: str) -> None:
    """Raise ConfigError for unfit captions of an anchor: none, a name twice, a number that does not divide `images`."""
    if not captions:
        raise ConfigError(key, [], "must not be empty; write prompts, or leave it out")
    for caption in captions:
        if caption.count("{}") > 1:
            raise ConfigError(key, caption, "must have {}, where the concept goes, once or not at all")
    unique(key, captions)
    if images % len(captions):
        raise ConfigError(images_key, images, f"must be a multiple of the {len(captions)} captions in {key}")


def check_benign_captions(captions: Sequence[str], task: Task, key: str) -> None:
    """Raise ConfigError for a caption of an anchor that names an erased concept, or a synonym of it."""
    words = [word for concept in task.erase for word in (concept, *task.synonyms.get(concept, ()))]
    for caption in captions:
        if word := named_word(caption, words):
            remedy = (
                f"names {word!r}, which task {task.name} erases; the anchor must not show it: write another caption"
            )
            raise ConfigError(key, caption, remedy)


def check_pairs(captions: Sequence[str], suffix: str, key: str) -> None:
    """Raise ConfigError for a caption of an anchor that with the suffix has not one place for the erased concept.

    Args:
        key: of the suffix.
    """
    for caption in captions:
        if (caption + suffix).count("{}") != 1:
            remedy = f"with the caption {caption!r} of an anchor's image must make one {{}}, for the erased concept"
            raise ConfigError(key, suffix, remedy)


def check_concept_images(study: Study, root: Path) -> None:
    """Raise ConfigError for a kind of task without a template, a missing file of captions, or unfit captions."""
    images, captions = study.concept_images, dict[str, Sequence[str]]()
    for task in study.loaded.values():
        images.template_of(task.kind)
    for anchor, source in images.anchor_captions.items():
        key = f"{PLACE}.{anchor}"
        if isinstance(source, str) and not (root / source).is_file():
            raise ConfigError(key, source, "no such file; write a path from the folder of the Snakefile")
        captions[anchor] = read_lines(root / source) if isinstance(source, str) else source
        check_captions(captions[anchor], key, images.per_anchor, "concept_images.per_anchor")
    readers = [(study.task(e.task, e.eraser, e.variant), e) for e in study.erasures()]
    anchors = {word for task, _ in readers for word in task.mapping.values()}
    for anchor in captions:
        if anchor not in anchors:
            raise ConfigError(PLACE, anchor, "is no mapping concept of the study; correct it, or leave it out")
    for task, erasure in readers:
        config = study.eraser_config(erasure.task, erasure.eraser, erasure.variant)
        for anchor in dict.fromkeys(task.mapping.values()):
            check_benign_captions(captions.get(anchor, ()), task, f"{PLACE}.{anchor}")
            if getattr(config, "own_captions", False):
                own = captions.get(anchor, [images.template_of(task.kind)])
                check_pairs(own, config.suffix, f"erasers.{erasure.eraser}.suffix")
