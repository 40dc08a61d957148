"""Image sets: prompts and lossless images in Parquet, in Hugging Face's convention, in one file or in shards.

Files have bounded size: `step-000300.parquet`, or shards such as `step-000300.0002-of-0005.parquet`. An interrupted job
continues after its last shard: shards are written atomically, and the noise of an image does not depend on the shard.
torch is imported where images are decoded: the page of a study reads prompts and stored images alone.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from resurgence.diffusion.pictures import read_picture
from resurgence.files import atomic_file

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
ROW_GROUP = 256  # images in a row group of the Parquet file
PAIR = ["prompt", "seed"]  # columns that identify the image of a row
RESAMPLED = "resampled_fp32"
"""Bool column of an image set of which an image was sampled again in fp32; and the key of that image's `info`."""


def threads() -> ThreadPoolExecutor:
    """Threads that encode or decode images."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items in their order, each computed by a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        iterator, end = iter(items), object()
        following = pool.submit(next, iterator, end)
        while (item := following.result()) is not end:
            following = pool.submit(next, iterator, end)
            yield item


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

    The column `resampled_fp32` is added only if an image has this mark, so that other sets keep their bytes.

    Args:
        images: (position of the row, image), in any order, each row once; for example what `sample` yields.

    Raises:
        ValueError: a row without image, or with two.
    """
    schema, pending = image_schema(prompts), dict[int, Future[bytes]]()
    written, received, resampled = 0, set(), set()

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

    with atomic_file(path) as file:
        with threads() as pool, pq.ParquetWriter(file, schema) as writer:
            for row, image in images:
                if row in received or not 0 <= row < len(prompts):
                    raise ValueError(
                        f"image set {path}: row {row} has two images, or is not among the {len(prompts)} prompts"
                    )
                received.add(row)
                if image.info.get(RESAMPLED):
                    resampled.add(row)
                pending[row] = pool.submit(png, image)
                write_ready(writer, last=False)
            if missing := sorted(set(range(len(prompts))) - received):
                count = f"{len(missing)} of {len(prompts)} rows have no image"
                raise ValueError(f"image set {path}: {count}, as {missing[0]}")
            write_ready(writer, last=True)
        if resampled:
            add_resampled(file, prompts.assign(**{RESAMPLED: [row in resampled for row in range(len(prompts))]}))


def add_resampled(file: Path, prompts: pd.DataFrame) -> None:
    """Write the file of an image set again with the last column of its prompt set, `resampled_fp32`, added."""
    schema, source, column = image_schema(prompts), pq.ParquetFile(file), prompts[RESAMPLED].to_numpy()
    start = 0
    with atomic_file(file) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for group in range(source.num_row_groups):
            table = source.read_row_group(group)
            values = pa.array(column[start : start + len(table)])
            table = table.add_column(len(table.column_names) - 1, RESAMPLED, values)
            writer.write_table(table.cast(schema))
            start += len(table)


def resampled_count(files: Iterable[Path]) -> int:
    """The number of images in the files of an image set that were sampled again in fp32."""
    columns = [pq.read_table(file, columns=[RESAMPLED]) for file in files if RESAMPLED in pq.read_schema(file).names]
    return sum(int(np.sum(table.column(RESAMPLED).to_numpy())) for table in columns)


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
    """Decode images of one size, uint8 (N, 3, H, W); `path` is for messages."""
    import torch

    with threads() as pool:
        names = (f"image {number} of {path}" for number in range(len(cells)))
        images = list(pool.map(lambda data, name: np.asarray(read_picture(data or b"", name)), cells, names))
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"image set {path}: the images have different sizes; sample all of them with one size")
    stacked = np.stack(images) if images else np.zeros((0, 1, 1, 3), np.uint8)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


NAME = re.compile(r"(.+?)(?:\.(\d{4})-of-(\d{4}))?\.parquet")


def shard_rows(rows: int, most: int | None, batch: int = 1) -> list[range]:
    """The rows of each file: at most `most`; None: all in one.

    Shards end between batches, so that a row is computed in a batch of the same size whatever `most` is: sums of
    another shape round differently. Only a shard smaller than a batch makes smaller batches.
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
    sets: dict[str, list[Path]] = {}
    for file in sorted(Path(folder).glob("*.parquet")):
        name, _, count = NAME.fullmatch(file.name).groups()
        shards = int(count or 1)
        sets[name] = [shard_file(Path(folder), name, number, shards) for number in range(shards)]
    if not sets:
        raise FileNotFoundError(f"{folder} holds no image set; run the step that samples it")
    for file in itertools.chain(*sets.values()):
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing; run the step that writes the images again")
    return sets


def read_rows(
    files: Sequence[Path], choose: Callable[[pd.DataFrame], Sequence[int]]
) -> tuple[pd.DataFrame, torch.Tensor]:
    """Read some rows of an image set and their images, uint8 (n, 3, H, W), holding one row group of it at a time.

    Args:
        choose: positions of the wanted rows in the whole prompt set.
    """
    prompts = read_prompts(files)
    wanted = sorted(set(choose(prompts)))
    return prompts.iloc[wanted].reset_index(drop=True), decode_images(list(stored_images(files, wanted)), files[0])


def read_prompts(files: Sequence[Path]) -> pd.DataFrame:
    """The prompt set of an image set, without reading its images."""
    columns = [name for name in pq.read_schema(files[0]).names if name not in ("image", RESAMPLED)]
    return pd.concat([pq.read_table(file, columns=columns).to_pandas() for file in files], ignore_index=True)


def stored_images(files: Sequence[Path], rows: Iterable[int]) -> Iterator[bytes]:
    """Yield the stored PNG of some rows of an image set in their order, holding one row group at a time.

    Args:
        rows: positions in the whole prompt set, ascending.
    """
    wanted, start = list(rows), 0
    for source in map(pq.ParquetFile, files):
        for group in range(source.num_row_groups):
            size = source.metadata.row_group(group).num_rows
            if inside := [row - start for row in wanted if start <= row < start + size]:
                images = source.read_row_group(group, columns=["image"]).column("image")
                yield from (cell["bytes"] for cell in images.take(inside).to_pylist())
            start += size
