"""Erasing and preserving success rates (EAP, section 5.1): which classes a classifier sees in an image.

    ESR-k  share of images of erased concepts whose class is not among the k most probable ones
    PSR-k  share of images of retained concepts whose class is

with k = 1 and 5. The paper's classifier is torchvision's ResNet-50 IMAGENET1K_V2 (`resnet50`) over the 1,000 classes of
ImageNet; on a miniature it is the recogniser, over its classes, or its styles where the concept is a style.

Columns: success_class (the most probable class or style), success_esr_1 and _5 (rows whose concept is erased, else
NaN), success_psr_1 and _5 (rows whose concept is retained, else NaN). Names are compared in lower case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from resurgence.scorers import imagenet
from resurgence.scorers.recogniser import shared

if TYPE_CHECKING:
    import pandas as pd

    from resurgence.config.task import Task
    from resurgence.scorers.erasure_configs import SuccessConfig

BATCH = 64  # images of a pass of the ResNet-50
Heads = Sequence[tuple[Sequence[str], np.ndarray]]
"""Names (L,) and scores (N, L) of each head of a classifier."""


def ranks_of(heads: Heads, concepts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The most probable class, and the rank of the concept's class, of each image: the number of likelier ones.

    The head of a row is the first that has its concept, and the first head without a concept, whose rank is NaN.

    Raises:
        ValueError: a concept that no head has.
    """
    places = [{name.lower() for name in names} for names, _ in heads]
    top, ranks = [], np.full(len(concepts), np.nan)
    for row, concept in enumerate(word.lower() for word in concepts):
        number = next((n for n, place in enumerate(places) if not concept or concept in place), None)
        if number is None:
            raise ValueError(f"concept {concepts[row]!r} is no class of the classifier ({len(heads[0][0])} classes); "
                             "leave success out of `scorers`, or name a concept that it knows")  # fmt: skip
        names, scores = heads[number][0], heads[number][1][row]
        top.append(names[int(scores.argmax())])
        if concept:  # two classes of ImageNet have one name
            highest = max(score for name, score in zip(names, scores, strict=True) if name.lower() == concept)
            ranks[row] = (scores > highest).sum()
    return top, ranks


Classifier = Callable[[torch.Tensor], Sequence[torch.Tensor]]
"""Images uint8 (N, 3, H, W) on the CPU -> logits (N, L) of each head."""


def in_batches(network: Callable[[torch.Tensor], torch.Tensor], device: torch.device | str) -> Classifier:
    """The classifier of a network with one head, BATCH images a pass."""

    def classify(images: torch.Tensor) -> list[torch.Tensor]:
        return [torch.cat([network(part.to(device)).float().cpu() for part in images.split(BATCH)])]

    return classify


@dataclass
class SuccessScorer:
    """A classifier, and the names of the classes of each of its heads."""

    classify: Classifier
    names: Sequence[Sequence[str]]

    @torch.inference_mode()
    def score(
        self, images: torch.Tensor, prompts: pd.DataFrame, task: Task, base: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Columns success_*, one row an image; images uint8 (N, 3, H, W)."""
        logits = self.classify(images)
        heads = [(names, part.float().cpu().numpy()) for names, part in zip(self.names, logits, strict=True)]
        concepts = prompts["concept"].fillna("").tolist()
        top, ranks = ranks_of(heads, concepts)
        erased, retained = (np.array([c in part for c in concepts]) for part in (set(task.erase), set(task.retain)))
        columns: dict[str, Any] = {"success_class": top}
        columns |= {f"success_esr_{k}": np.where(erased, ranks >= k, np.nan) for k in (1, 5)}
        return columns | {f"success_psr_{k}": np.where(retained, ranks < k, np.nan) for k in (1, 5)}


def load(config: SuccessConfig, device: torch.device | str = "cpu") -> SuccessScorer:
    """Read the classifier.

    Raises:
        FileNotFoundError, ValueError: a missing file or one that does not fit, by name.
    """
    if config.classifier == "recogniser":
        scorer = shared(Path(config.path), device)
        names = [scorer.labels.classes, scorer.labels.styles] if scorer.labels.styles else [scorer.labels.classes]
        return SuccessScorer(lambda images: scorer.logits(images)[: len(names)], names)
    return SuccessScorer(in_batches(imagenet.load(config, device), device), [imagenet.NAMES])
