"""Pictures and captions to train on, in the conventions of diffusers, `datasets` and kohya's trainers.

- Parquet: a column `image` (bytes, or a struct of bytes and path) and one of `text`, `prompt`, `caption`; one file, the
  shards of one set in a folder, or the files of a pattern such as 'data/*.parquet'.
- A folder with metadata.jsonl, metadata.csv or metadata.parquet: `file_name` and one of `text`, `prompt`, `caption`.
- A folder with NAME.txt or NAME.caption beside the picture NAME.
- A folder with neither: the caption is the file name without suffix and trailing _<number>, as the authors of the study
  name their pictures.
- Several of these folders, as a pattern such as 'data/photos-*': each as if it were alone.

Folders are read with their sub-folders. What is left out is counted, by reason.
"""

from __future__ import annotations

import glob
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from resurgence.data.image_folder import LeftOut, Source, folder_sources
from resurgence.data.image_parquet import SUFFIX, parquet_files, parquet_sources
from resurgence.diffusion.image_sets import threads
from resurgence.diffusion.pictures import SUFFIXES, picture_files, read_picture, square

log = logging.getLogger(__name__)
SHOWN = 5  # names in a line of the log


class TrainingSet(NamedTuple):
    """Pictures to train on, before they are read. left_out: reason -> names of what is not used."""

    sources: list[Source]
    left_out: LeftOut


def set_paths(path: Path) -> list[Path]:
    """The path of a set, or the Parquet files or folders that it is a pattern of.

    Raises:
        FileNotFoundError: there is none. ValueError: a file that is not Parquet, or files beside folders.
    """
    paths = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not paths:
        raise FileNotFoundError(f"{path} is missing; give a Parquet file or a folder of pictures")
    files = [single for single in paths if single.is_file()]
    for single in files:
        if single.suffix.lower() != SUFFIX:
            raise ValueError(f"{single} is a single file; give a Parquet file or a folder of pictures")
    if files and len(files) < len(paths):
        raise ValueError(f"{path} names files and folders; let the pattern name Parquet files alone, or folders alone")
    return paths


def training_set(path: Path) -> TrainingSet:
    """List all pictures that have a caption, and log how many are left out; the pictures are not opened yet.

    Args:
        path: a Parquet file, a folder, or a pattern of Parquet files or of folders.

    Raises:
        FileNotFoundError, ValueError: naming the file, its fault and the remedy.
    """
    paths, left_out = set_paths(path), LeftOut()
    if paths[0].is_dir():
        sources = [source for folder in paths for source in sources_of(folder, left_out)]
    else:
        sources = list(parquet_sources(paths, left_out))
    place = f"{path if path.is_dir() else path.parent}/"  # a manifest holds no paths of a machine
    left_out = {reason: [name.removeprefix(place) for name in names] for reason, names in left_out.items()}
    reasons = "; ".join(f"{reason} ({shortened(names)})" for reason, names in left_out.items())
    number = sum(map(len, left_out.values()))
    log.info("%s: %d pictures; %d left out%s", path, len(sources), number, reasons and f": {reasons}")
    if not sources:
        remedy = f"give a Parquet file, or pictures ({', '.join(SUFFIXES)})"
        raise FileNotFoundError(f"{path} holds no pictures with captions{reasons and f': {reasons}'}; {remedy}")
    return TrainingSet(sources, left_out)


def sources_of(folder: Path, left_out: LeftOut) -> list[Source]:
    """The pictures of one folder; adds those that are not used to `left_out`, with the folder."""
    tables, own = parquet_files(folder), LeftOut()
    sources = list(parquet_sources(tables, own)) if tables else folder_sources(folder, own)
    if tables and (beside := picture_files(folder).pictures):
        own["beside a Parquet file"] = [picture.relative_to(folder).as_posix() for picture in beside]
    for reason, names in own.items():
        left_out.setdefault(reason, []).extend(f"{folder}/{name.removeprefix(f'{folder}/')}" for name in names)
    return sources


def shortened(names: list[str]) -> str:
    """The first names of a list, and the number of all."""
    return ", ".join(names[:SHOWN]) + (f", ... {len(names)} in all" if len(names) > SHOWN else "")


def read_sources(sources: list[Source], size: int) -> torch.Tensor:
    """Read pictures, scaled and cropped to squares: (N, 3, size, size) in [-1, 1]; raises as `squares`."""
    images = torch.from_numpy(np.stack(squares(sources, size))).permute(0, 3, 1, 2)
    if isinstance(
        sources[0].picture, bytes
    ):  # the memory layout changes the rounding of the VAE: as image sets have it
        images = images.contiguous()
    return images.float() / 127.5 - 1


def squares(sources: list[Source], size: int) -> list[np.ndarray]:
    """Read pictures, scaled and cropped to squares: uint8 (size, size, 3) each.

    Raises:
        FileNotFoundError, ValueError: each picture that cannot be read, its fault and the remedy.
    """

    def read(source: Source) -> np.ndarray | OSError | ValueError:
        try:
            return square(read_picture(source.picture, source.name), size, source.name)
        except (OSError, ValueError) as error:
            return error

    with threads() as pool:
        results = list(pool.map(read, sources))
    faults = [result for result in results if isinstance(result, Exception)]
    if len(faults) == 1:
        raise faults[0]
    if faults:
        shown = "; ".join(map(str, faults[:SHOWN])) + ("; ..." if len(faults) > SHOWN else "")
        raise ValueError(f"{len(faults)} of {len(sources)} pictures cannot be read; mend or remove them: {shown}")
    return [result for result in results if not isinstance(result, Exception)]
