"""Score image sets block by block, so that batches do not depend on how the files are cut."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from resurgence.config.task import Task
from resurgence.diffusion.image_sets import read_image_set
from resurgence.scorers import Scorer, score_images

BLOCK = 512  # images that are scored at once


def blocks(files: Sequence[Path], size: int = BLOCK) -> Iterator[tuple[pd.DataFrame, torch.Tensor]]:
    """Read an image set `size` rows at a time, across its files: what is computed in one batch does not depend on them.

    Yields:
        Prompts, and images uint8 (N, 3, H, W); the last block is the shorter one.
    """
    rows, images = read_image_set(files[0])
    for number in range(len(files)):
        if number:
            more, further = read_image_set(files[number])
            rows, images = pd.concat([rows, more], ignore_index=True), torch.cat([images, further])
        while len(rows) > size:
            yield rows.iloc[:size], images[:size]
            rows, images = rows.iloc[size:].reset_index(drop=True), images[size:]
    yield rows, images


def score_files(
    files: Sequence[Path], task: Task, scorers: Mapping[str, Scorer], keep_features: Collection[str]
) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
    """Score an image set block by block; see `scorers.score_images`."""
    parts = [score_images(images, rows, task, scorers, keep_features) for rows, images in blocks(files)]
    scores = pd.concat([scores for scores, _ in parts], ignore_index=True)
    return scores, {key: torch.cat([part[key] for _, part in parts]) for key in parts[0][1]}
