"""Image sets: prompts and lossless images in Parquet, in Hugging Face's convention, in one file or in shards.

Files have bounded size: `step-000300.parquet`, or `step-000300.0002-of-0005.parquet` and its kin. A shard is also what
an interrupted job continues from: it is written under a temporary name and renamed, so one that is there is whole, and
the noise of an image does not depend on where it was sampled.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

ROW_GROUP = 256  # images in a row group of the Parquet file


def png(image: Image.Image) -> bytes:
    """Encode an image without loss."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def image_schema(prompts: pd.DataFrame) -> pa.Schema:
    """Return the columns of the prompt set and `image: {bytes, path}`, marked as Hugging Face datasets does."""
    kinds = {"i": pa.int64(), "f": pa.float64(), "b": pa.bool_()}
    fields = [pa.field(name, kinds.get(prompts[name].dtype.kind, pa.string())) for name in prompts]
    features = {f.name: {"dtype": str(f.type).replace("double", "float64"), "_type": "Value"} for f in fields}
    note = json.dumps({"info": {"features": {**features, "image": {"_type": "Image"}}}})
    image = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    return pa.schema([*fields, image], metadata={"huggingface": note})


def write_image_set(path: Path, prompts: pd.DataFrame, images: Iterable[tuple[int, Image.Image]]) -> None:
    """Write images and prompt set as one Parquet file, in the order of the rows, as the images arrive.

    Args:
        images: (position of the row, image), in any order, each row once; for example what `sample` yields.

    Raises:
        ValueError: a row without image, or with two.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, schema = path.with_name(path.name + ".tmp"), image_schema(prompts)
    pending: dict[int, Future[bytes]] = {}
    written, seen = 0, set()

    def write_ready(writer: pq.ParquetWriter, last: bool) -> None:
        """Write the row groups that are complete; the last may be short."""
        nonlocal written
        while written < len(prompts):
            rows = range(written, min(written + ROW_GROUP, len(prompts)))
            if not last and not all(row in pending and pending[row].done() for row in rows):
                return
            cells = [{"bytes": pending.pop(row).result(), "path": f"{row:06d}.png"} for row in rows]
            part = {name: prompts[name].iloc[rows.start : rows.stop].tolist() for name in prompts}
            writer.write_table(pa.table({**part, "image": cells}, schema=schema))
            written = rows.stop

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, pq.ParquetWriter(temporary, schema) as writer:
        for row, image in images:
            if row in seen or not 0 <= row < len(prompts):
                raise ValueError(f"image set {path}: row {row} came twice, or is not one of {len(prompts)} prompts")
            seen.add(row)
            pending[row] = pool.submit(png, image)
            write_ready(writer, last=False)
        if missing := sorted(set(range(len(prompts))) - seen):
            raise ValueError(f"image set {path}: {len(missing)} of {len(prompts)} rows have no image, as {missing[0]}")
        write_ready(writer, last=True)
    temporary.rename(path)


def read_image_set(path: Path) -> tuple[pd.DataFrame, torch.Tensor]:
    """Read the prompt set and the images, uint8 (N, 3, H, W).

    Raises:
        FileNotFoundError, ValueError: a missing or damaged file, or images of different sizes.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"image set {path} is missing; run resurgence sample")
    try:
        table = pq.read_table(path)
        cells = table.column("image").combine_chunks().field("bytes").to_pylist()
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(f"image set {path} is damaged ({error}); delete it and run resurgence sample again") from error
    return table.drop_columns("image").to_pandas(), decode_images(cells, path)


def decode_images(cells: Sequence[bytes], path: Path) -> torch.Tensor:
    """Decode PNGs of one size, uint8 (N, 3, H, W); `path` is for messages."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        images = list(pool.map(lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), cells))
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"image set {path}: the images have different sizes; make it with one size")
    stacked = np.stack(images) if images else np.zeros((0, 1, 1, 3), np.uint8)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


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
