"""Image sets in files of bounded size: `step-000300.parquet`, or `step-000300.0002-of-0005.parquet` and its kin.

A shard is also what an interrupted job goes on from: it is written under a temporary name and renamed, so one that is
there is whole, and the noise of an image does not depend on where it was sampled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch

from resurgence.sample import decode_images, read_image_set

NAME = re.compile(r"(.+?)(?:\.(\d{4})-of-(\d{4}))?\.parquet")


def shard_rows(rows: int, most: int | None, batch: int = 1) -> list[range]:
    """The rows of each file: at most `most`; None: all in one.

    Cut between batches, so that a row is computed in a batch of the same size whatever `most` is: sums of another shape
    round differently. Only a shard smaller than a batch makes smaller batches.
    """
    size = max(1, rows if most is None else most - most % batch or most)
    return [range(low, min(low + size, rows)) for low in range(0, max(1, rows), size)]


def shard_file(folder: Path, name: str, number: int, count: int) -> Path:
    """The file of a shard, numbered from 0; a set of one shard has no number."""
    return folder / (f"{name}.parquet" if count == 1 else f"{name}.{number + 1:04d}-of-{count:04d}.parquet")


def image_files(folder: Path) -> dict[str, list[Path]]:
    """Name of each image set of a folder -> its files in the order of the rows.

    Raises:
        FileNotFoundError: no image set, or a shard is missing, which it names.
    """
    found: dict[str, list[Path]] = {}
    for file in sorted(Path(folder).glob("*.parquet")):
        name, _, count = NAME.fullmatch(file.name).groups()
        files = found.setdefault(name, [])
        files.append(file)
        expected = shard_file(Path(folder), name, len(files) - 1, int(count or 1))
        if file != expected:
            raise FileNotFoundError(f"{expected} is missing; run the step that writes the images again")
        if (
            count
            and len(files) == 1
            and not (last := shard_file(Path(folder), name, int(count) - 1, int(count))).exists()
        ):
            raise FileNotFoundError(f"{last} is missing; run the step that writes the images again")
    if not found:
        raise FileNotFoundError(f"{folder} holds no image set; run the step that samples it")
    return found


def read_rows(
    files: Sequence[Path], choose: Callable[[pd.DataFrame], Sequence[int]]
) -> tuple[pd.DataFrame, torch.Tensor]:
    """Read some rows of an image set and their images, uint8 (n, 3, H, W), without holding the others.

    Args:
        choose: positions of the wanted rows in the whole prompt set.
    """
    columns = [name for name in pq.read_schema(files[0]).names if name != "image"]
    tables = [pq.read_table(file, columns=columns).to_pandas() for file in files]
    prompts = pd.concat(tables, ignore_index=True)
    wanted, start, data = sorted(set(choose(prompts))), 0, {}
    for file, table in zip(files, tables, strict=True):
        inside = [row - start for row in wanted if start <= row < start + len(table)]
        if inside:
            source, first = pq.ParquetFile(file), 0
            for group in range(source.num_row_groups):
                size = source.metadata.row_group(group).num_rows
                own = [row - first for row in inside if first <= row < first + size]
                if own:
                    cells = source.read_row_group(group, columns=["image"]).column("image").take(own)
                    data |= dict(zip((start + first + row for row in own), cells.to_pylist(), strict=True))
                first += size
        start += len(table)
    pixels = decode_images([data[row]["bytes"] for row in wanted], files[0])
    return prompts.iloc[wanted].reset_index(drop=True), pixels


def read_sets(files: Sequence[Path]) -> tuple[pd.DataFrame, torch.Tensor]:
    """Read a whole image set; see `sample.read_image_set`."""
    read = [read_image_set(file) for file in files]
    rows = pd.concat([rows for rows, _ in read], ignore_index=True)
    return rows, torch.from_numpy(np.concatenate([images.numpy() for _, images in read]))
