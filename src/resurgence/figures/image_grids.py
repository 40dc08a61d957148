"""Grids of images: samples of several models, masks. PNG, at most 1600 px and 400 kB.

Pure functions from uint8 arrays and labels to a picture. A fixed rule selects the images: the first image of the first
template of each concept (`first_rows`), with the same prompt and seed along a row. Small images are enlarged by integer
factors without smoothing, large ones are reduced.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from resurgence.files import atomic_file

if TYPE_CHECKING:
    import pandas as pd

Pixels = NDArray[np.uint8]
WIDTH, BYTES = 1600, 400_000
FONT, TITLE_FONT, GAP, MARGIN = 14, 17, 4, 10
LABEL_WIDTH = 190  # of the row labels
MASK_COLOUR = (0, 158, 115)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, so that a grid is the same on every machine."""
    return ImageFont.load_default(size)


def wrap(text: str, width: int, size: int = FONT) -> list[str]:
    """Break text at spaces into lines of at most `width` pixels; a longer word is truncated with '…' on a new line."""
    lines: list[str] = []
    for word in text.split():
        while len(word) > 1 and font(size).getlength(word) > width:
            word = word.removesuffix("…")[:-1] + "…"
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font(size).getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def line_height(size: int) -> int:
    """Height of a line of text in pixels."""
    ascent, descent = font(size).getmetrics()
    return ascent + descent


def to_rgb(image: ArrayLike) -> Pixels:
    """(3, H, W) uint8 -> (H, W, 3).

    Raises:
        ValueError: another type or shape.
    """
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"image {pixels.dtype} {pixels.shape}; expected uint8 (3, H, W)")
    return pixels.transpose(1, 2, 0)


def fit(image: ArrayLike, size: int) -> Image.Image:
    """An image resized to at most size x size: enlarged by an integer factor, or reduced."""
    picture = Image.fromarray(np.ascontiguousarray(to_rgb(image)))
    longest = max(picture.size)
    if longest <= size:
        factor = size // longest
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    scaled = [max(1, round(side * size / longest)) for side in picture.size]
    return picture.resize((scaled[0], scaled[1]), Image.Resampling.LANCZOS)


def cell_size(native: int, columns: int, label_width: int) -> int:
    """Pixels of a cell: at most 192, of five columns or more 128, or `native` if that is more; and so few that the grid
    is at most 1600 px wide. A multiple of `native` if possible."""
    room = (WIDTH - 2 * MARGIN - label_width) // columns - GAP
    size = max(16, min(room, max(192 if columns < 5 else 128, native)))
    return size - size % native if size >= native else size


def text_lines(draw: ImageDraw.ImageDraw, lines: Sequence[str], x: float, y: float, anchor: str, size: int) -> None:
    """Draw lines of text downwards from (x, y); anchor 'l' is left, 'm' is centred."""
    for number, line in enumerate(lines):
        draw.text((x, y + number * line_height(size)), line, fill="black", font=font(size), anchor=f"{anchor}a")


def grid(
    images: Sequence[Sequence[ArrayLike | None]], rows: Sequence[str], columns: Sequence[str], title: str = ""
) -> Image.Image:
    """Labelled grid.

    Args:
        images: rows of images uint8 (3, H, W); None leaves a cell empty.
        rows, columns: their labels; "" for rows without labels.

    Raises:
        ValueError: labels that do not match the images, or no image at all.
    """
    if len(images) != len(rows) or any(len(line) != len(columns) for line in images):
        lengths = [len(line) for line in images]
        raise ValueError(
            f"{len(rows)} row and {len(columns)} column labels for rows of {lengths} images; give one for each"
        )
    shapes = [np.shape(image) for line in images for image in line if image is not None]
    if not shapes:
        raise ValueError("a grid needs at least one image; give one")
    label_width = LABEL_WIDTH if any(rows) else 0
    native = max(max(shape[1:]) for shape in shapes)
    size = cell_size(native, len(columns), label_width)
    step = size + GAP
    heads = [wrap(text, size) for text in columns]
    # the height of a row is that of its images or of its label
    labels = [wrap(text, label_width - MARGIN) for text in rows]
    heights = [max(step, line_height(FONT) * len(lines) + GAP) for lines in labels]
    titles = wrap(title, max(240, label_width + step * len(columns)), TITLE_FONT)
    top = MARGIN + len(titles) * line_height(TITLE_FONT) + (GAP if titles else 0)
    body = top + line_height(FONT) * max(len(head) for head in heads) + GAP
    width = 2 * MARGIN + max(label_width + step * len(columns), 240 if titles else 0)
    canvas = Image.new("RGB", (width, body + sum(heights) + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    text_lines(draw, titles, MARGIN, MARGIN, "l", TITLE_FONT)
    for number, head in enumerate(heads):
        text_lines(draw, head, MARGIN + label_width + step * number + size / 2, top, "m", FONT)
    for line, label, height in zip(images, labels, heights, strict=True):
        text_lines(draw, label, MARGIN, body + max(0, (size - line_height(FONT) * len(label)) // 2), "l", FONT)
        for number, image in enumerate(line):
            if image is not None:
                canvas.paste(fit(image, size), (MARGIN + label_width + step * number, body))
        body += height
    return canvas


def first_rows(prompts: pd.DataFrame, role: str, most: int | None = None) -> list[int]:
    """Positions of the first image of the first template of each concept of a role, in the order of the rows; of
    general prompts, which may have no concept, of each prompt."""
    rows = prompts.reset_index(drop=True)
    different = "prompt" if role == "general" else "concept"
    return rows[rows["role"] == role].drop_duplicates(different).index.tolist()[:most]


def sample_grid(
    sets: Mapping[str, tuple[pd.DataFrame, ArrayLike]], role: str = "erase", most: int | None = 10, title: str = ""
) -> Image.Image:
    """Images of several models with the same prompts and seeds: rows are prompts, columns are models.

    Args:
        sets: label of the column -> prompt set and its images uint8 (N, 3, H, W).

    Raises:
        ValueError: models whose prompts or seeds differ, or no image of the role.
    """
    (first, (prompts, _)), *_ = sets.items()
    positions = first_rows(prompts, role, most)
    if not positions:
        raise ValueError(f"no image of role {role!r} among {sorted(set(prompts['role']))}; choose one of these")
    pairs = prompts.iloc[positions][["prompt", "seed"]].to_numpy().tolist()
    for name, (other, images) in sets.items():
        if len(other) != len(prompts) or other.iloc[positions][["prompt", "seed"]].to_numpy().tolist() != pairs:
            raise ValueError(f"the image sets {first!r} and {name!r} have other prompts or seeds; sample them again")
        if len(np.asarray(images)) != len(other):
            raise ValueError(f"image set {name!r}: {len(np.asarray(images))} images for {len(other)} prompts")
    lines = [[np.asarray(images)[position] for _, images in sets.values()] for position in positions]
    return grid(lines, [prompt for prompt, _ in pairs], list(sets), title)


def overlay(image: ArrayLike, mask: ArrayLike) -> Pixels:
    """The image faded to white outside of the mask, with the mask's edge in colour: (3, H, W) uint8.

    Args:
        image: uint8 (3, H, W). mask: bool (H, W) or (1, H, W).
    """
    pixels, inside = np.asarray(image).astype(np.float32), np.asarray(mask).astype(bool).reshape(np.shape(image)[1:])
    pixels = np.where(inside, pixels, 0.25 * pixels + 0.75 * 255)
    padded = np.pad(inside, 1)
    neighbours = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    pixels = np.where(inside & ~neighbours, np.array(MASK_COLOUR, np.float32)[:, None, None], pixels)
    return pixels.round().astype(np.uint8)


def mask_grid(
    images: Mapping[str, ArrayLike], masks: Mapping[str, ArrayLike], most: int = 4, title: str = ""
) -> Image.Image:
    """The first images of each concept, each followed by its mask.

    Args:
        images: concept -> uint8 (N, 3, H, W). masks: concept -> bool (N, 1, H, W).
    """
    if missing := sorted(set(images) - set(masks)):
        raise ValueError(f"no masks of {', '.join(missing)}; run the masks stage for all concepts")
    lines = []
    for concept, pictures in images.items():
        pairs = list(zip(np.asarray(pictures), np.asarray(masks[concept]), strict=True))[:most]
        line: list[ArrayLike | None] = [part for image, mask in pairs for part in (image, overlay(image, mask))]
        lines.append(line + [None] * (2 * most - len(line)))
    heads = [text for number in range(1, most + 1) for text in (f"image {number}", f"mask {number}")]
    return grid(lines, list(images), heads, title)


def encode(image: Image.Image, most: int = BYTES) -> bytes:
    """PNG of at most `most` bytes: in full colour, else in 256 colours, else reduced in size.

    Raises:
        ValueError: too large even at 64 pixels.
    """
    picture = image
    while True:
        for form in (picture, picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)):
            stream = io.BytesIO()
            form.save(stream, "png", optimize=True)
            if stream.tell() <= most:
                return stream.getvalue()
        if min(picture.size) < 64:
            raise ValueError(f"no legible PNG of {image.size} within {most} bytes; show fewer images")
        smaller = [round(0.85 * side) for side in picture.size]
        picture = image.resize((smaller[0], smaller[1]), Image.Resampling.LANCZOS)


def save(image: Image.Image, path: Path) -> None:
    """Write the PNG, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(encode(image))
