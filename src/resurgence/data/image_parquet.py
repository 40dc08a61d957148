"""Pictures and captions of a set in Parquet, as `datasets` and this program write them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from resurgence.data.image_folder import CAPTION_KEYS, METADATA, LeftOut, Source, caption_of
from resurgence.files import files_below

SUFFIX = ".parquet"
SHARD = re.compile(r"(.+?)[.-]\d{4,5}-of-(\d{4,5})")  # of `datasets`, and of image sets
CONCEPT = "concept"  # column of the concept that a picture shows, in image sets and starter sets
NUMBER = re.compile(r"\d+")  # name of a shard as the Hub converts sets


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of the only set below a folder, in order; none for a folder of pictures.

    Raises:
        ValueError: several sets. FileNotFoundError: a shard is missing.
    """
    files = [file for file in files_below(folder) if file.suffix.lower() == SUFFIX and file.name not in METADATA]
    sets = {set_of(file): file for file in files}
    if len(sets) > 1:
        names = ", ".join(sorted(file.relative_to(folder).as_posix() for file in sets.values()))
        raise ValueError(
            f"{folder} holds {len(sets)} image sets; name one of {names}, or all by a pattern: '{folder}/**/*{SUFFIX}'"
        )
    for _, _, count in sets:
        if count and len(files) != count:
            raise FileNotFoundError(f"{folder} holds {len(files)} of {count} shards of a set; fetch the others")
    return files


def set_of(file: Path) -> tuple[Path, str, int]:
    """The set of a file: folder, name, and number of its files; 0 if its name does not say it."""
    if match := SHARD.fullmatch(file.stem):
        return file.parent, match[1], int(match[2])
    return (file.parent, "", 0) if NUMBER.fullmatch(file.stem) else (file.parent, file.stem, 1)


def parquet_sources(files: list[Path], left_out: LeftOut) -> Iterator[Source]:
    """The rows of a set in Parquet.

    Raises:
        ValueError: a damaged file, or one without pictures or captions.
    """
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                columns = table.schema_arrow.names
                wanted = [name for name in ("image", *CAPTION_KEYS, CONCEPT) if name in columns]
                rows = table.read(columns=wanted).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file} is damaged ({error}); delete it and fetch or sample it again") from error
        if "image" not in wanted or not set(CAPTION_KEYS) & set(wanted):
            needed = f"image and one of {', '.join(CAPTION_KEYS)}"
            raise ValueError(f"{file} has the columns {', '.join(columns)}; it needs {needed}")
        for number, row in enumerate(rows):
            name = f"{file}, row {number}"
            picture, caption = picture_of(row["image"], file, name), caption_of(row, name, left_out)
            if picture is None or not caption:
                reason = "without picture" if picture is None else "without caption"
                left_out.setdefault(reason, []).append(name)
            else:
                shown = name if isinstance(picture, bytes) else f"{name}: {picture}"
                yield Source(picture, shown, caption, str(row.get(CONCEPT) or ""))


def picture_of(cell: Any, file: Path, name: str) -> Path | bytes | None:
    """The content of a cell, or the file that it names from the folder of the Parquet file; None for an empty cell.

    Raises:
        ValueError: another kind of cell.
    """
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, None)
    if content is None:
        return file.parent / path if path else None
    if not isinstance(content, bytes):
        raise ValueError(
            f"{name} has an image of the type {type(content).__name__}; write bytes, or a struct of bytes and path"
        )
    return content
