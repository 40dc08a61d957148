"""Score image sets block by block, so that batches do not depend on how the files are cut."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import pandas as pd
import torch

from resurgence.config.task import Task
from resurgence.diffusion.image_sets import image_files, read_image_set
from resurgence.scorers import LoadedScorer, score_images

BLOCK = 512  # images that are scored at once
PAIR = ["prompt", "seed"]  # what names the image of a row
Block = tuple[pd.DataFrame, torch.Tensor]


def blocks(files: Sequence[Path], size: int = BLOCK) -> Iterator[Block]:
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


def paired_blocks(
    files: Sequence[Path], base: Sequence[Path] | None, size: int = BLOCK
) -> Iterator[tuple[pd.DataFrame, torch.Tensor, torch.Tensor | None]]:
    """Read the image set of a model, and in step with it that of the base, whose files may be cut at other rows.

    Args:
        files: of the model's set. base: of the base's set of the same prompts; None: it is not read.

    Yields:
        Prompts, images of the model and images of the base, uint8 (N, 3, H, W) both; None for those of no base.

    Raises:
        ValueError: the two sets differ in prompts, seeds or their order.
    """
    if base is None:
        yield from ((rows, images, None) for rows, images in blocks(files, size))
        return
    empty = pd.DataFrame(columns=PAIR), torch.empty(0)
    start = 0
    for (rows, images), (others, theirs) in zip_longest(blocks(files, size), blocks(base, size), fillvalue=empty):
        if (place := first_difference(rows[PAIR], others[PAIR])) is not None:
            raise ValueError(
                f"{files[0]} and {base[0]} (the base's images) differ in prompt or seed from row {start + place} on; "
                "sample both models from the same prompt set"
            )
        yield rows, images, theirs
        start += len(rows)


def first_difference(rows: pd.DataFrame, others: pd.DataFrame) -> int | None:
    """The first position at which two tables with the same columns differ; None where they are equal."""
    if rows.equals(others):
        return None
    common = min(len(rows), len(others))
    differ = (rows.iloc[:common].to_numpy() != others.iloc[:common].to_numpy()).any(axis=1)
    return int(differ.argmax()) if differ.any() else common


def score_files(
    files: Sequence[Path],
    task: Task,
    scorers: Mapping[str, LoadedScorer],
    keep_features: Collection[str],
    base: Sequence[Path] | None = None,
    size: int = BLOCK,
) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
    """Score an image set block by block; see `scorers.score_images`.

    Args:
        base: files of the base's image set of the same prompts, for scorers that read it.
        size: images that are scored at once.

    Raises:
        ValueError: a column of lists has other labels in one block than in another.
    """
    parts = [
        score_images(images, rows, task, scorers, keep_features, theirs)
        for rows, images, theirs in paired_blocks(files, base, size)
    ]
    labels = parts[0][0].attrs
    if any(scores.attrs != labels for scores, _ in parts):
        raise ValueError(f"{files[0]}: the labels of a column of lists change; a scorer must return the same for a set")
    scores = pd.concat([scores for scores, _ in parts], ignore_index=True)
    scores.attrs = labels
    return scores, {key: torch.cat([part[key] for _, part in parts]) for key in parts[0][1]}


def base_files(folder: Path) -> list[Path]:
    """The files of the only image set of a folder, the base's.

    Raises:
        ValueError: several sets, such as the checkpoints of a fine-tuned model.
    """
    sets = image_files(folder)
    if len(sets) != 1:
        raise ValueError(f"{folder} holds the image sets {', '.join(sets)}; give the folder of the base, which has one")
    return next(iter(sets.values()))
