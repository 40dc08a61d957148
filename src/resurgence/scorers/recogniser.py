"""Top-1 accuracy of the miniature world's recogniser: the stand-in for the celebrity detector.

Columns: recogniser_top1 (the most probable class), recogniser_correct (1 when that is the concept of the row) and
recogniser_probability (softmax probability of the concept). Rows of role `synonym` have the class as their concept,
so their images are scored against the class label; rows of role `general` have no concept, and no value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from resurgence.scorers.concept_columns import concept_columns
from resurgence.scorers.recogniser_model import Recogniser, load_recogniser

if TYPE_CHECKING:
    import pandas as pd

    from resurgence.config.task import Task
    from resurgence.scorers.configs import RecogniserConfig


def to_input(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 (B, 3, H, W) -> [-1, 1], resized to size x size (antialiased) unless that is its size."""
    x = images.float() / 127.5 - 1
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return x


def class_columns(probabilities: np.ndarray, classes: list[str], concepts: list[str]) -> dict[str, Any]:
    """The columns from class probabilities (N, C); an empty concept gives NaN.

    Raises:
        ValueError: a concept that is no class of the recogniser.
    """
    fault = (f"is no class of the recogniser ({len(classes)} classes); leave the recogniser out of `scorers`, or name "
             "a concept that it knows")  # fmt: skip
    columns = concept_columns("recogniser", probabilities, probabilities, classes, concepts, fault)
    return {"recogniser_top1": [classes[i] for i in probabilities.argmax(1)], **columns}


@dataclass
class RecogniserScorer:
    """The recogniser with its class names; its pooled features serve the Fréchet distance."""

    model: Recogniser
    classes: list[str]
    device: torch.device | str = "cpu"
    batch: int = 256

    @torch.inference_mode()
    def score(
        self, images: torch.Tensor, prompts: pd.DataFrame, task: Task, base: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Columns recogniser_*, one row an image; images uint8 (N, 3, H, W)."""
        logits = torch.cat([self.model(part).float() for part in self.inputs(images)])
        probabilities = logits.softmax(1).cpu().numpy()
        return class_columns(probabilities, self.classes, prompts["concept"].fillna("").tolist())

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (N, F), float32 on the CPU."""
        return torch.cat([self.model.features(part) for part in self.inputs(images)]).float().cpu()

    def inputs(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """Batches of images (N, 3, H, W) uint8 as the model expects them, on its device."""
        return (to_input(part.to(self.device), self.model.size) for part in images.split(self.batch))


def load(config: RecogniserConfig, device: torch.device | str = "cpu") -> RecogniserScorer:
    """Read a recogniser folder (config.json, model.safetensors).

    Raises:
        FileNotFoundError: a file is missing.
    """
    return RecogniserScorer(*load_recogniser(Path(config.path), device), device)
