"""Top-1 accuracy of the miniature world's recogniser: the stand-in for the celebrity detector.

Columns: recogniser_top1 (the most probable class, or style in rows whose concept is a style), recogniser_correct (1
when that is the concept of the row), recogniser_probability (softmax probability of the concept), recogniser_style (the
most probable style) and recogniser_content_correct (in rows whose concept is a style: 1 when the most probable class is
the one that the prompt names). A recogniser without styles leaves the last two empty. Rows of role `synonym` have the
class as their concept, so their images are scored against the class label; rows of role `general` have no concept, and
no value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import torch
import torch.nn.functional as F

from resurgence.files import sha256
from resurgence.scorers.concept_columns import concept_columns
from resurgence.scorers.recogniser_model import Labels, Recogniser, load_recogniser

if TYPE_CHECKING:
    import pandas as pd

    from resurgence.config.task import Task
    from resurgence.scorers.configs import RecogniserConfig


IN_USE: WeakValueDictionary[tuple[str, str, str], RecogniserScorer] = WeakValueDictionary()  # by files and device


def to_input(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 (B, 3, H, W) -> [-1, 1], resized to size x size (antialiased) unless that is its size."""
    x = images.float() / 127.5 - 1
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return x


def class_columns(
    probabilities: np.ndarray, styles: np.ndarray, labels: Labels, concepts: Sequence[str], prompts: Sequence[str]
) -> dict[str, Any]:
    """The columns from the probabilities of classes (N, C) and of styles (N, S); an empty concept gives NaN.

    Raises:
        ValueError: a concept that is neither class nor style of the recogniser.
    """
    classes = labels.classes
    fault = (f"is no class of the recogniser ({len(classes)} classes); leave the recogniser out of `scorers`, or name "
             "a concept that it knows")  # fmt: skip
    is_style = np.array([concept in set(labels.styles) for concept in concepts], dtype=bool)[:, None]
    either = np.concatenate([np.where(is_style, 0, probabilities), np.where(is_style, styles, 0)], 1)
    names = [*classes, *labels.styles]
    columns = concept_columns("recogniser", either, either, names, list(concepts), fault)
    content = [classes.index(name) if (name := named_class(prompt, classes)) else -1 for prompt in prompts]
    has_content = is_style[:, 0] & (np.array(content) >= 0)
    return {
        "recogniser_top1": [names[i] for i in either.argmax(1)],
        **columns,
        "recogniser_style": [labels.styles[i] for i in styles.argmax(1)] if labels.styles else [""] * len(styles),
        "recogniser_content_correct": np.where(has_content, probabilities.argmax(1) == content, np.nan),
    }


def named_class(prompt: str, classes: Sequence[str]) -> str | None:
    """The longest of the classes whose words occur in a prompt, one after the other; None if none does."""
    words = " ".join(["", *re.findall(r"[^\W_]+", prompt.lower()), ""])
    return max((name for name in classes if f" {name.lower()} " in words), key=len, default=None)


@dataclass
class RecogniserScorer:
    """The recogniser with its labels; its pooled features serve the Fréchet distance.

    The convolutions are nearly all of the work, so the features of the images that were scored last are kept.
    """

    model: Recogniser
    labels: Labels
    device: torch.device | str = "cpu"
    batch: int = 256
    _last: tuple[torch.Tensor, list[torch.Tensor]] | None = None  # images; features (B, F) of their batches

    @torch.inference_mode()
    def score(
        self, images: torch.Tensor, prompts: pd.DataFrame, task: Task, base: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Columns recogniser_*, one row an image; images uint8 (N, 3, H, W)."""
        classes, styles = (
            (logits / temperature).softmax(1).cpu().numpy()
            for logits, temperature in zip(self.logits(images), self.labels.temperatures, strict=True)
        )
        concepts = prompts["concept"].fillna("").tolist()
        return class_columns(classes, styles, self.labels, concepts, prompts["prompt"].tolist())

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (N, F), float32 on the CPU."""
        return torch.cat(self.pooled(images)).float().cpu()

    @torch.inference_mode()
    def logits(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Logits of the classes (N, C) and of the styles (N, S), float32 on the device."""
        parts = [self.model.logits(part) for part in self.pooled(images)]
        return [torch.cat(logits).float() for logits in zip(*parts, strict=True)]

    def pooled(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Pooled features (B, F) of each batch, on the device; computed once for a tensor that is scored."""
        if self._last is None or self._last[0] is not images:
            self._last = images, [self.model.features(part) for part in self.inputs(images)]
        return self._last[1]

    def inputs(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """Batches of images (N, 3, H, W) uint8 as the model expects them, on its device."""
        return (to_input(part.to(self.device), self.model.size) for part in images.split(self.batch))


def load(config: RecogniserConfig, device: torch.device | str = "cpu") -> RecogniserScorer:
    """Read a recogniser folder (config.json, model.safetensors).

    Raises:
        FileNotFoundError: a file is missing.
    """
    return shared(Path(config.path), device)


def shared(folder: Path, device: torch.device | str = "cpu") -> RecogniserScorer:
    """The recogniser of a folder, one for all scorers in use that read it: they need the same features of an image.

    Raises:
        FileNotFoundError: a file is missing.
    """
    model, labels = load_recogniser(folder, device)
    digest = sha256(folder / "model.safetensors"), sha256(folder / "config.json"), str(device)
    return IN_USE.setdefault(digest, RecogniserScorer(model, labels, device))
