"""Whole sets of images at once, for tests; the program reads them in parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from resurgence.data.image_folder import LeftOut
from resurgence.data.training_images import read_sources, training_set
from resurgence.diffusion.image_sets import read_image_set


class TrainingImages(NamedTuple):
    """Pictures (N, 3, size, size) in [-1, 1], their captions, and what is left out."""

    images: torch.Tensor
    captions: list[str]
    left_out: LeftOut


def read_training_images(path: Path, size: int) -> TrainingImages:
    """All pictures that have a caption, scaled and cropped to squares of `size` pixels."""
    sources, left_out = training_set(path)
    return TrainingImages(read_sources(sources, size), [source.caption for source in sources], left_out)


def read_sets(files: Sequence[Path]) -> tuple[pd.DataFrame, torch.Tensor]:
    """An image set in several files."""
    rows, images = zip(*map(read_image_set, files), strict=True)
    return pd.concat(rows, ignore_index=True), torch.cat(images)
