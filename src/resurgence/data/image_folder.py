"""Pictures and captions to train on, in the conventions of diffusers, `datasets` and kohya's trainers.

- Parquet: a column `image` (bytes, or a struct of bytes and path) and one of `text`, `prompt`, `caption`; one file, or
  the shards of one set in a folder.
- A folder with metadata.jsonl, metadata.csv or metadata.parquet: `file_name` and one of `text`, `prompt`, `caption`.
- A folder with NAME.txt or NAME.caption beside the picture NAME.
- A folder with neither: the caption is the file name without suffix and trailing _<number>, as the authors of the study
  name their pictures.

Folders are read with their sub-folders. What is left out is counted, by reason.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from resurgence.data.pictures import SUFFIXES, picture_files, read_picture, square
from resurgence.diffusion.image_sets import threads
from resurgence.files import read_lines, read_rows

log = logging.getLogger(__name__)
CAPTION_KEYS = ("text", "prompt", "caption")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SIDECARS = (".txt", ".caption")
SHARD = re.compile(r"(.+?)[.-](\d{4,5})-of-(\d{4,5})\.parquet")  # of `datasets`, and of image sets
SHOWN = 5  # file names in a line of the log


class TrainingImages(NamedTuple):
    """Pictures to train on.

    images: (N, 3, size, size) in [-1, 1]. captions: N texts. left_out: reason -> names of what was not used.
    """

    images: torch.Tensor
    captions: list[str]
    left_out: dict[str, list[str]]


class Source(NamedTuple):
    """A picture before it is read: file or content, name for messages, caption."""

    picture: Path | bytes
    name: str
    caption: str


def read_training_images(path: Path, size: int) -> TrainingImages:
    """Read all pictures with a caption, scaled and cropped to squares of `size` pixels.

    Args:
        path: a Parquet file, or a folder.

    Raises:
        FileNotFoundError, ValueError: naming the file, its fault and the remedy.
    """
    path, left_out = Path(path), dict[str, list[str]]()
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; give a Parquet file or a folder of pictures")
    if path.is_file() and path.suffix != ".parquet":
        raise ValueError(f"{path} is a single file; give a Parquet file or a folder of pictures")
    tables = parquet_files(path)
    read = from_parquet(tables, left_out) if tables else from_folder(path, left_out)
    sources = list(read)
    if tables and path.is_dir() and (beside := picture_files(path)[0]):
        left_out["beside a Parquet file"] = [picture.relative_to(path).as_posix() for picture in beside]
    reasons = "; ".join(f"{reason} ({shortened(names)})" for reason, names in left_out.items())
    log.info(
        "%s: %d pictures; %d left out%s",
        path,
        len(sources),
        sum(map(len, left_out.values())),
        reasons and f": {reasons}",
    )
    if not sources:
        remedy = f"give a Parquet file, or pictures ({', '.join(SUFFIXES)})"
        raise FileNotFoundError(f"{path} holds no pictures with captions{reasons and f': {reasons}'}; {remedy}")
    with threads() as pool:
        pictures = list(pool.map(lambda source: square(read_picture(source.picture, source.name), size), sources))
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    if tables:  # as image sets are laid out in memory, by which the autoencoder's rounding differs
        pixels = pixels.contiguous()
    images = pixels.float() / 127.5 - 1
    return TrainingImages(images, [source.caption for source in sources], left_out)


def shortened(names: list[str]) -> str:
    """The first names of a list, and the number of all."""
    return ", ".join(names[:SHOWN]) + (f", ... {len(names)} in all" if len(names) > SHOWN else "")


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files of the set at a path, in order; none for a folder of pictures.

    Raises:
        ValueError: several sets. FileNotFoundError: a shard is missing.
    """
    if path.is_file():
        return [path]
    files = sorted(file for file in path.rglob("*.parquet") if file.name not in METADATA)
    shards = {file: match.groups() if (match := SHARD.fullmatch(file.name)) else (file.stem, "", "1") for file in files}
    names = {(file.parent, name): file.name for file, (name, _, _) in shards.items()}
    if len(names) > 1:
        raise ValueError(f"{path} holds {len(names)} image sets; name one of {', '.join(sorted(names.values()))}")
    if files and len(files) != (count := int(shards[files[0]][2])):
        raise FileNotFoundError(f"{path} holds {len(files)} of {count} shards of a set; fetch the others")
    return files


def from_parquet(files: list[Path], left_out: dict[str, list[str]]) -> Iterator[Source]:
    """The rows of a set in Parquet.

    Raises:
        ValueError: a damaged file, or one without pictures or captions.
    """
    for file in files:
        try:
            table = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file} is damaged ({error}); delete it and fetch or sample it again") from error
        key = next((key for key in CAPTION_KEYS if key in table.column_names), None)
        if key is None or "image" not in table.column_names:
            wanted = f"image and one of {', '.join(CAPTION_KEYS)}"
            raise ValueError(f"{file} has the columns {', '.join(table.column_names)}; it needs {wanted}")
        for row, (cell, caption) in enumerate(zip(table["image"].to_pylist(), table[key].to_pylist(), strict=True)):
            name, place = f"{file}, row {row}", cell
            if isinstance(cell, Mapping):
                place = cell["bytes"] or (file.parent / cell["path"] if cell.get("path") else None)
            if place is None or not caption:
                reason = "without picture" if place is None else "without caption"
                left_out.setdefault(reason, []).append(name)
            else:
                yield Source(place, name, text_of(caption, name, left_out))


def from_folder(folder: Path, left_out: dict[str, list[str]]) -> Iterator[Source]:
    """The pictures of a folder with their captions.

    Raises:
        ValueError: unreadable metadata, or two captions of a picture that differ. FileNotFoundError: metadata names a
            missing file.
    """
    pictures, others = picture_files(folder)
    beside = sidecar_captions(folder, pictures, others, left_out)
    rows = [row for file in others if file.name in METADATA for row in metadata_rows(file, left_out)]
    unused = [file for file in others if file.name not in METADATA and file.suffix not in SIDECARS]
    if unused:
        left_out["not a picture"] = [file.relative_to(folder).as_posix() for file in unused]
    for file, caption in rows:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is in the metadata of {folder} and missing; add it or remove its row")
        if beside.get(file, caption) != caption:
            raise ValueError(f"{file} has two captions, {caption!r} and {beside[file]!r}; remove one of them")
    named = rows or list(beside.items())
    if not named:
        named = [(file, re.sub(r"_\d+$", "", file.stem)) for file in pictures]
    elif without := [file for file in pictures if file not in dict(named) and file not in beside]:
        left_out["without caption"] = [file.relative_to(folder).as_posix() for file in without]
    named += [(file, caption) for file, caption in beside.items() if file not in dict(named)]
    yield from (Source(file, str(file), caption) for file, caption in named)


def metadata_rows(file: Path, left_out: dict[str, list[str]]) -> list[tuple[Path, str]]:
    """Picture and caption of each row of metadata.jsonl, .csv or .parquet.

    Raises:
        ValueError: a second metadata file in the folder, or a row without file name or caption.
    """
    if len(files := [file.with_name(name) for name in METADATA if file.with_name(name).is_file()]) > 1:
        raise ValueError(f"{file.parent} holds {', '.join(f.name for f in files)}; remove all but one")
    try:
        if file.suffix == ".jsonl":
            rows: list[dict[str, Any]] = [json.loads(line) for line in read_lines(file)]
        elif file.suffix == ".csv":
            rows = list(read_rows(file))
        else:
            rows = pq.read_table(file).to_pylist()
    except (json.JSONDecodeError, pa.ArrowException) as error:
        raise ValueError(f"{file} cannot be read ({error}); write one object a line, or a table") from error
    captions = []
    for number, row in enumerate(rows, 1):
        key = next((key for key in CAPTION_KEYS if isinstance(row, dict) and row.get(key) is not None), None)
        if key is None or not row.get("file_name"):
            raise ValueError(f"{file}, row {number}: {row}; it needs file_name and one of {', '.join(CAPTION_KEYS)}")
        picture = file.parent / str(row["file_name"])
        captions.append((picture, text_of(row[key], str(picture), left_out)))
    return captions


def sidecar_captions(
    folder: Path, pictures: list[Path], others: list[Path], left_out: dict[str, list[str]]
) -> dict[Path, str]:
    """Picture -> caption from the text file beside it.

    Raises:
        ValueError: two text files of one picture, two pictures of one text file, or an empty one.
    """
    by_stem: dict[Path, list[Path]] = {}
    for picture in pictures:
        by_stem.setdefault(picture.with_suffix(""), []).append(picture)
    captions: dict[Path, str] = {}
    for file in others:
        if file.suffix not in SIDECARS:
            continue
        owners = by_stem.get(file.with_suffix(""), [])
        if not owners:
            left_out.setdefault("text without a picture of its name", []).append(file.relative_to(folder).as_posix())
            continue
        if len(owners) > 1:
            raise ValueError(f"{file} belongs to {' and '.join(p.name for p in owners)}; rename one of them")
        if not (lines := read_lines(file)):
            raise ValueError(f"{file} is empty; write the caption of {owners[0].name}")
        caption = text_of(lines, str(file), left_out)
        if captions.setdefault(owners[0], caption) != caption:
            raise ValueError(f"{owners[0]} has two captions, in {' and '.join(SIDECARS)}; remove one of them")
    return captions


def text_of(value: Any, name: str, left_out: dict[str, list[str]]) -> str:
    """A caption; the first of several, the others being left out.

    Raises:
        ValueError: it is not text.
    """
    captions = value if isinstance(value, list) else [value]
    if not captions or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{name} has the caption {value!r}; write text")
    if len(captions) > 1:
        left_out.setdefault("further captions", []).extend([name] * (len(captions) - 1))
    return str(captions[0])
