"""The pictures of a folder and their captions, in the conventions of diffusers, `datasets` and kohya's trainers."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from resurgence.diffusion.pictures import PictureFiles, picture_files
from resurgence.files import read_lines, read_rows, read_text

log = logging.getLogger(__name__)
CAPTION_KEYS = ("text", "prompt", "caption")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SIDECARS = (".txt", ".caption")
TABLES = (*SIDECARS, ".json", ".jsonl", ".csv", ".tsv")  # suffixes of files that may hold captions
LETTER = re.compile(r"[^\W\d_]")
REPEATS = re.compile(r"(\d+)_.*")  # in kohya's names of sub-folders, how often an epoch has each picture

LeftOut = dict[str, list[str]]  # reason -> names of what is not used


class Source(NamedTuple):
    """A picture before it is read: file or content, name for messages, caption, and concept where the set has it."""

    picture: Path | bytes
    name: str
    caption: str
    concept: str = ""


def caption_of(row: Mapping[str, Any], name: str, left_out: LeftOut) -> str:
    """The caption of a row of metadata or of a Parquet set; "" without one.

    Raises:
        ValueError: it is not text, or two columns have different ones.
    """
    texts = {key: text_of(row[key], name, left_out) for key in CAPTION_KEYS if row.get(key)}
    if len(set(texts.values())) > 1:
        pairs = ", ".join(f"{key} {text!r}" for key, text in texts.items())
        raise ValueError(f"{name} has different captions, {pairs}; keep one of these columns")
    return next(iter(texts.values()), "")


def text_of(value: Any, name: str, left_out: LeftOut) -> str:
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


def folder_sources(folder: Path, left_out: LeftOut) -> list[Source]:
    """The pictures of a folder with their captions.

    Raises:
        ValueError: unreadable metadata, two captions of a picture that differ, or captions in a file that is not read.
        FileNotFoundError: metadata names a missing file.
    """
    files = picture_files(folder)
    beside = sidecar_captions(folder, files, left_out)
    tables = [file for file in files.others if file.name in METADATA]
    rows = [row for file in tables for row in metadata_rows(file, left_out)]
    for file, caption in rows:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is in the metadata of {folder} and missing; add it or remove its row")
        if beside.get(file, caption) != caption:
            raise ValueError(f"{file} has two captions, {caption!r} and {beside[file]!r}; remove one of them")
    if tables or beside:
        named = rows + [(file, caption) for file, caption in beside.items() if file not in dict(rows)]
    else:
        named = names_as_captions(folder, files)
    captioned = {file for file, _ in named}
    note_unused(folder, files, captioned, left_out)
    return [Source(file, str(file), caption) for file, caption in named]


def note_unused(folder: Path, files: PictureFiles, captioned: set[Path], left_out: LeftOut) -> None:
    """Add to `left_out` which files of a folder are not used."""
    plain = [file for file in files.others if file.name not in METADATA and file.suffix.lower() not in SIDECARS]
    numbers = {file.parent: match[1] for file in captioned if (match := REPEATS.fullmatch(file.parent.name))}
    unused: dict[str, Sequence[Path]] = {
        "without caption": [file for file in files.pictures if file not in captioned],
        "not a picture": [file for file in plain if file not in captioned],
        "hidden": files.hidden,
        "repeats in names of sub-folders": sorted(numbers) if len(set(numbers.values())) > 1 else [],
    }
    for reason, paths in unused.items():
        if paths:
            left_out[reason] = [path.relative_to(folder).as_posix() for path in paths]


def names_as_captions(folder: Path, files: PictureFiles) -> list[tuple[Path, str]]:
    """Pictures and their names without suffix and trailing _<number>, which the authors of the study have as captions.

    Raises:
        ValueError: a file that may hold captions, or names without a letter.
    """
    unread = [file for file in files.others if file.suffix.lower() in TABLES]
    if files.pictures and unread:
        remedy = (
            f"write {' or '.join(METADATA[:2])} with file_name and text, or NAME.txt beside NAME.png, or move it away"
        )
        raise ValueError(f"{unread[0]} may hold captions, and is not read; {remedy}")
    named = [(file, re.sub(r"_\d+$", "", file.stem)) for file in files.pictures]
    if without := [file for file, caption in named if not LETTER.search(caption)]:
        raise ValueError(
            f"{without[0]} has no caption, as {len(without)} of {len(named)} pictures, and its name has no letter; "
            "write its caption in a .txt file of its name, or in metadata.jsonl"
        )
    if named:
        log.warning("%s: no captions; the names of the files stand for them, such as %r", folder, named[0][1])
    return named


def metadata_rows(file: Path, left_out: LeftOut) -> list[tuple[Path, str]]:
    """Picture and caption of each row of metadata.jsonl, .csv or .parquet that has a caption.

    Raises:
        ValueError: a second metadata file in the folder, a row without file name or caption, or a picture elsewhere.
    """
    if len(files := [file.with_name(name) for name in METADATA if file.with_name(name).is_file()]) > 1:
        raise ValueError(f"{file.parent} holds {', '.join(f.name for f in files)}; remove all but one")
    try:
        if file.suffix == ".jsonl":
            rows = [json.loads(line) for line in read_text(file).split("\n") if line.strip()]
        elif file.suffix == ".csv":
            rows = list(read_rows(file))
        else:
            rows = pq.read_table(file).to_pylist()
    except (json.JSONDecodeError, pa.ArrowException) as error:
        raise ValueError(f"{file} cannot be read ({error}); write one object a line, or a table") from error
    captions = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not row.get("file_name") or all(row.get(k) is None for k in CAPTION_KEYS):
            raise ValueError(f"{file}, row {number}: {row}; it needs file_name and one of {', '.join(CAPTION_KEYS)}")
        name = os.path.normpath(str(row["file_name"]))
        if os.path.isabs(name) or name.startswith(os.pardir):
            raise ValueError(f"{file}, row {number}: {name} lies outside of its folder; name files below {file.parent}")
        if caption := caption_of(row, str(file.parent / name), left_out):
            captions.append((file.parent / name, caption))
    return captions


def sidecar_captions(folder: Path, files: PictureFiles, left_out: LeftOut) -> dict[Path, str]:
    """Picture -> caption from the text file beside it.

    Raises:
        ValueError: two text files of one picture, two pictures of one text file, or an empty one.
    """
    by_stem: dict[Path, list[Path]] = {}
    for picture in files.pictures:
        by_stem.setdefault(picture.with_suffix(""), []).append(picture)
    captions: dict[Path, str] = {}
    for file in files.others:
        if file.suffix.lower() not in SIDECARS:
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
