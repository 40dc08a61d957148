"""Scores of every image set of a model, one row an image, by all scorers of the study."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from resurgence.bases import resolve_device
from resurgence.config import Task
from resurgence.sample import read_image_set
from resurgence.scorers import Scorer, feature_names, load_scorers, score_images, write_scores
from resurgence.shards import image_files
from resurgence.stages.job import Job, main

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


def make(job: Job, folder: Path) -> dict:
    """Write step-NNNNNN/scores.parquet, and features.safetensors where a distance needs them."""
    settings, task, count = job.block["scorers"], job.task(), 0
    scorers = load_scorers(settings, resolve_device(job.device))
    for name, files in image_files(job.folder("image set")).items():
        scores, features = score_files(files, task, scorers, feature_names(settings))
        write_scores(folder / name, scores, features)
        count += len(scores)
    return {"images": count}


if __name__ == "__main__":
    main("scores", make)
