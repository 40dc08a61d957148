"""Top-1 accuracy of the miniature world's recogniser: the stand-in for the celebrity detector.

Columns: recogniser_top1 (the class it sees), recogniser_correct (1 when that is the concept of the row) and
recogniser_probability (softmax probability of the concept). Rows of role `synonym` carry the class as their concept,
so their images are scored against the class label; rows of role `general` have no concept, and no value.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from resurgence.scorers.recogniser_model import load_recogniser

if TYPE_CHECKING:
    import pandas as pd

    from resurgence.config.task import Task
    from resurgence.scorers.configs import RecogniserConfig


def to_input(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 (B, 3, H, W) -> [-1, 1], resized to size x size (antialiased) where it has another size."""
    x = images.float() / 127.5 - 1
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return x


def class_columns(probabilities: np.ndarray, classes: list[str], concepts: list[str]) -> dict[str, Any]:
    """The columns from class probabilities (N, C); an empty concept gives NaN.

    Raises:
        ValueError: a concept that is no class of the recogniser.
    """
    index = {name: i for i, name in enumerate(classes)}
    for concept in sorted(set(concepts) - {""}):
        if concept not in index:
            raise ValueError(f"concept {concept!r} is no class of the recogniser ({len(classes)} classes); leave the "
                             "recogniser out of `scorers`, or name a concept that it knows")  # fmt: skip
    top = probabilities.argmax(1)
    named = np.array([bool(concept) for concept in concepts])
    wanted = np.array([index.get(concept, 0) for concept in concepts], dtype=np.int64)
    return {
        "recogniser_top1": [classes[i] for i in top],
        "recogniser_correct": np.where(named, top == wanted, np.nan),
        "recogniser_probability": np.where(named, probabilities[np.arange(len(top)), wanted], np.nan),
    }


@dataclass
class RecogniserScorer:
    """The recogniser with its class names; its pooled features are the space of the Fréchet distance."""

    model: torch.nn.Module
    classes: list[str]
    size: int
    device: torch.device | str = "cpu"
    batch: int = 256

    @torch.inference_mode()
    def score(
        self, images: torch.Tensor, prompts: pd.DataFrame, task: Task, base: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Columns recogniser_*, one row an image; images uint8 (N, 3, H, W)."""
        parts = [self.model(to_input(part.to(self.device), self.size)).float() for part in images.split(self.batch)]
        probabilities = torch.cat(parts).softmax(1).cpu().numpy()
        return class_columns(probabilities, self.classes, prompts["concept"].fillna("").tolist())

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (N, F), float32 on the CPU."""
        parts = [self.model.features(to_input(part.to(self.device), self.size)) for part in images.split(self.batch)]
        return torch.cat(parts).float().cpu()


def load(config: RecogniserConfig, device: torch.device | str = "cpu") -> RecogniserScorer:
    """Read a recogniser folder (config.json, model.safetensors).

    Raises:
        FileNotFoundError: a file is missing.
    """
    model, classes = load_recogniser(Path(config.path), device)
    size = json.loads((Path(config.path) / "config.json").read_text())["size"]
    return RecogniserScorer(model, classes, size, device)
