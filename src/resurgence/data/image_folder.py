"""Images and captions of a fine-tuning set: an image set in Parquet, or a folder of image files."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from resurgence.diffusion.image_sets import read_image_set
from resurgence.files import read_lines

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION_KEYS = ("text", "prompt", "caption")


def square(image: Image.Image, size: int) -> np.ndarray:
    """Scale the short side to `size` (bilinear) and crop the centre, as the authors' training does: (size, size, 3)."""
    image = image.convert("RGB")
    scale = size / min(image.size)
    if image.size != (size, size):
        image = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def captions_of(folder: Path) -> dict[str, str]:
    """Return file name -> caption, from metadata.jsonl or metadata.csv as in Hugging Face's image folders.

    Without metadata the caption is the file name without suffix and trailing _<number>, as the authors of the study
    name their images.

    Raises:
        ValueError: metadata without file_name, or without text, prompt or caption.
    """
    lines, table = folder / "metadata.jsonl", folder / "metadata.csv"
    if lines.exists():
        rows = [json.loads(line) for line in read_lines(lines)]
    elif table.exists():
        with open(table, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
        return {name: re.sub(r"_\d+$", "", Path(name).stem) for name in names}
    captions = {}
    for row in rows:
        key = next((k for k in CAPTION_KEYS if row.get(k) is not None), None)
        if key is None or not row.get("file_name"):
            raise ValueError(f"{folder}: metadata row {row} needs file_name and one of {', '.join(CAPTION_KEYS)}")
        captions[row["file_name"]] = row[key]
    return captions


def read_folder(folder: Path, size: int) -> tuple[torch.Tensor, list[str]]:
    """Read a folder of pictures; see `read_training_images`."""
    captions = captions_of(folder)
    if not captions:
        raise FileNotFoundError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}) and no metadata")
    pictures = []
    for name in captions:
        try:
            with Image.open(folder / name) as image:
                pictures.append(square(image, size))
        except (FileNotFoundError, UnidentifiedImageError) as error:
            raise ValueError(f"{folder / name} cannot be read as a picture ({type(error).__name__})") from error
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), list(captions.values())


def read_training_images(path: Path, size: int) -> tuple[torch.Tensor, list[str]]:
    """Read images (N, 3, size, size) in [-1, 1] and their captions.

    Args:
        path: a Parquet image set (caption: the prompt), a folder with one, or a folder of pictures.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    path = Path(path)
    sets = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if len(sets) > 1:
        raise ValueError(f"{path} holds {len(sets)} image sets; name one of {', '.join(s.name for s in sets)}")
    if not sets:
        pixels, captions = read_folder(path, size)
    else:
        rows, pixels = read_image_set(sets[0])
        captions = rows["prompt"].tolist()
        if pixels.shape[-2:] != (size, size):
            pictures = [square(Image.fromarray(p.permute(1, 2, 0).numpy()), size) for p in pixels]
            pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return pixels.float() / 127.5 - 1, captions
