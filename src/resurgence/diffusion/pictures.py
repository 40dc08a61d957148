"""Read pictures as they look in a viewer: upright, opaque, in 8-bit sRGB.

Training pictures, the reference pictures of the Fréchet distance and the images of image sets are read here.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from resurgence.files import LFS_POINTER, files_below

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM")  # others of Pillow's run programs, such as EPS
MOST = 89_478_485  # pixels, Pillow's own limit for pictures that are not attacks: about 9,459 x 9,459
# of Pillow's readers; libavif's is RuntimeError
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, RuntimeError, struct.error, zlib.error)
GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow's name of 2 and 4 bits -> 255 over the largest value
TIFF_BITS, TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0


class PictureFiles(NamedTuple):
    """Files below a folder, sorted: pictures by their suffix, others, hidden pictures, as in .ipynb_checkpoints."""

    pictures: list[Path]
    others: list[Path]
    hidden: list[Path]


def picture_files(folder: Path) -> PictureFiles:
    """The files below a folder; links to folders are followed. Hidden files that are not pictures are in none."""
    kinds = PictureFiles([], [], [])
    for path in files_below(folder):
        is_picture = path.suffix.lower() in SUFFIXES
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            (kinds.pictures if is_picture else kinds.others).append(path)
        elif is_picture:
            kinds.hidden.append(path)
    return kinds


def read_picture(source: Path | bytes, name: str) -> Image.Image:
    """Read a picture as 8-bit sRGB; the first frame of an animation.

    Orientation follows EXIF, transparent parts become white, 9 to 16 bits of grey are scaled to 8, and an embedded
    colour profile other than sRGB is applied to colours.

    Args:
        source: the file, or its content. name: of the picture, for messages.

    Raises:
        FileNotFoundError, PermissionError: there is no such file, or it cannot be read.
        ValueError: not a picture, a damaged one, one of more than 89 megapixels, or pixels without a range (32 bits).
    """
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} is missing; correct the name, or remove it from the captions") from error
    except UnidentifiedImageError as error:
        check_content(source, name)
        raise ValueError(f"{name} cannot be read as a picture; convert it to PNG or JPEG, or remove it") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large ({error}); scale it down") from error
    except PermissionError:
        raise
    except DAMAGE as error:
        raise ValueError(f"{name} is damaged ({error}); replace it by a whole copy, or remove it") from error
    with image:
        if image.width * image.height > MOST:
            size = f"{image.width} x {image.height} pixels, at most {MOST:,}"
            raise ValueError(f"{name} is too large ({size}); scale it down")
        try:
            scale_transparent_value(image)
            ImageOps.exif_transpose(image, in_place=True)  # decodes
        except DAMAGE as error:
            raise ValueError(
                f"{name} is damaged or truncated ({error}); replace it by a whole copy, or remove it"
            ) from error
        return as_srgb(image, name)


def check_content(source: Path | bytes, name: str) -> None:
    """Raise ValueError for a file that is no picture for a reason that can be named."""
    if isinstance(source, bytes):
        head = source[: len(LFS_POINTER)]
    else:
        with open(source, "rb") as file:
            head = file.read(len(LFS_POINTER))
    if not head:
        raise ValueError(f"{name} is empty; replace it by a whole copy, or remove it")
    if head == LFS_POINTER:
        raise ValueError(f"{name} is a Git LFS pointer, not the picture itself; run git lfs pull there")


def scale_transparent_value(image: Image.Image) -> None:
    """Bring the transparent colour of a PNG to 8 bits as its pixels will be; Pillow leaves it at the file's depth."""
    stored, value = image.tile[0].args if image.tile else None, image.info.get("transparency")
    if isinstance(value, int) and isinstance(stored, str) and stored in GREY_STEPS:
        image.info["transparency"] = value * GREY_STEPS[stored]
    elif isinstance(value, tuple) and stored == "RGB;16B":
        image.info["transparency"] = tuple(part >> 8 for part in value)


def as_srgb(image: Image.Image, name: str) -> Image.Image:
    """An upright image of any mode as 8-bit sRGB on white."""
    if image.mode.startswith("I;16"):
        image = eight_bits(image)
    if image.mode in ("I", "F", "LAB"):
        raise ValueError(f"{name} has pixels of the mode {image.mode!r}; save it with 8 or 16 bits a channel")
    profile = image.info.get("icc_profile") if image.mode not in ("1", "L", "LA") else None
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode != "CMYK":
        image = image.convert("RGB")
    if profile:
        image = converted(image, profile, name)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 9 to 16 bits, scaled to 8; with alpha if one of its values stands for transparency."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    highest = 2 ** tags.get(TIFF_BITS, (16,))[0] - 1
    grey = np.round(values * (255 / highest)).astype(np.uint8)
    if tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow inverts 8 bits only
        grey = 255 - grey
    scaled = Image.fromarray(grey)
    if (transparent := image.info.get("transparency")) is not None:
        alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
        scaled = Image.merge("LA", [scaled, alpha])
    return scaled


def converted(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """The image with its colour profile applied; unchanged with sRGB."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode != "CMYK" and "sRGB" in ImageCms.getProfileDescription(source):
            return image
        mode = "RGB" if image.mode == "CMYK" else image.mode
        result = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError) as error:
        remedy = "remove the profile, or save the picture as sRGB"
        raise ValueError(f"{name} has a colour profile that cannot be applied ({error}); {remedy}") from error
    assert result is not None  # None only if it is done in place
    return result


def square(image: Image.Image, size: int, name: str) -> np.ndarray:
    """Scale the short side to `size` (bilinear) and crop the centre, as the authors' training does: (size, size, 3).

    Raises:
        ValueError: a picture so narrow that it would have more than MOST pixels when it is scaled.
    """
    scale = size / min(image.size)
    if image.size != (size, size):
        sides = [max(size, round(side * scale)) for side in image.size]
        if sides[0] * sides[1] > MOST:
            raise ValueError(f"{name} is too narrow ({image.width} x {image.height} pixels); crop it, or remove it")
        image = image.resize(sides, Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))
