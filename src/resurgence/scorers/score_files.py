"""Score image sets block by block, so that batches do not depend on how the set is split into files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import pandas as pd
import torch

from resurgence.config.task import Task
from resurgence.diffusion.image_sets import PAIR, RESAMPLED, ahead, image_files, read_image_set
from resurgence.scorers import LoadedScorer, score_images

BLOCK = 512  # images that are scored at once
Block = tuple[pd.DataFrame, torch.Tensor]


def blocks(files: Sequence[Path], size: int = BLOCK) -> Iterator[Block]:
    """Read an image set `size` rows at a time, across its files.

    Yields:
        Prompts, and images uint8 (N, 3, H, W); the last block may be shorter.
    """
    rest: Block | None = None
    for file in files:
        rows, images = read_image_set(file)
        rows = rows.drop(columns=RESAMPLED, errors="ignore")  # not every file of a set has it
        if rest is not None:
            rows, images = pd.concat([rest[0], rows], ignore_index=True), torch.cat([rest[1], images])
        while len(rows) > size:
            yield rows.iloc[:size], images[:size]
            rows, images = rows.iloc[size:].reset_index(drop=True), images[size:]
        rest = rows, images
    yield rest


def paired_blocks(
    files: Sequence[Path], base: Sequence[Path] | None, size: int = BLOCK
) -> Iterator[tuple[pd.DataFrame, torch.Tensor, torch.Tensor | None]]:
    """Read the image set of a model together with that of the base, whose files may be split at other rows.

    Args:
        files: of the model's set. base: of the base's set of the same prompts; None: it is not read.

    Yields:
        Prompts, images of the model and images of the base, uint8 (N, 3, H, W) both; None instead of the latter
        without `base`.

    Raises:
        ValueError: the two sets differ in prompts, seeds or their order.
    """
    if base is None:
        yield from ((rows, images, None) for rows, images in blocks(files, size))
        return
    empty = pd.DataFrame(columns=PAIR), torch.empty(0)
    start = 0
    for (rows, images), (base_rows, base_images) in zip_longest(
        blocks(files, size), blocks(base, size), fillvalue=empty
    ):
        pairs = zip_longest(rows[PAIR].itertuples(index=False), base_rows[PAIR].itertuples(index=False))
        if (place := next((i for i, (row, base_row) in enumerate(pairs) if row != base_row), None)) is not None:
            raise ValueError(
                f"{files[0]} and {base[0]} (the base's images) differ in prompt or seed from row {start + place} on; "
                "sample both models from the same prompt set"
            )
        yield rows, images, base_images
        start += len(rows)


def score_files(
    files: Sequence[Path],
    task: Task,
    scorers: Mapping[str, LoadedScorer],
    keep_features: Collection[str],
    base: Sequence[Path] | None = None,
    size: int = BLOCK,
) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
    """Score an image set block by block, and read the next block meanwhile; see `scorers.score_images`.

    Args:
        base: files of the base's image set of the same prompts, for scorers that read it.
        size: images that are scored at once.

    Raises:
        ValueError: a column of lists has other labels in one block than in another.
    """
    parts = [
        score_images(images, rows, task, scorers, keep_features, base_images)
        for rows, images, base_images in ahead(paired_blocks(files, base, size))
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
    return sets.popitem()[1]
