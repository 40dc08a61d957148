"""Read pictures as they look in a viewer: upright, opaque, in 8-bit sRGB.

Training pictures and the reference pictures of the Fréchet distance are read here.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
MOST = 89_478_485  # pixels, Pillow's own limit for pictures that are not attacks: about 9,459 x 9,459
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
)  # of Pillow's readers


def picture_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Pictures and other files below a folder, sorted, without hidden ones; a picture is known by its suffix."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES]
    return pictures, [path for path in files if path.suffix.lower() not in SUFFIXES]


def read_picture(source: Path | bytes, name: str) -> Image.Image:
    """Read a picture as 8-bit sRGB; the first frame of an animation.

    Orientation follows EXIF, transparent parts become white, 16 bits of grey are scaled to 8, and an embedded colour
    profile other than sRGB is applied.

    Args:
        source: the file, or its content. name: of the picture, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a picture, a damaged one, one of more than 89 megapixels, or pixels without a range (32 bits).
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            check_size(image.size, name)
            image.load()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} is missing; correct the name, or remove it from the captions") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} cannot be read as a picture; convert it to PNG or JPEG, or remove it") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large ({error}); scale it down") from error
    except TooLarge:
        raise
    except DAMAGE as error:
        raise ValueError(
            f"{name} is damaged or truncated ({error}); replace it by a whole copy, or remove it"
        ) from error
    return as_srgb(ImageOps.exif_transpose(image), name)


class TooLarge(ValueError):
    """A picture with more pixels than are read."""


def check_size(size: tuple[int, int], name: str) -> None:
    """Raise TooLarge for a picture of more than 89 megapixels, before it is decoded."""
    if size[0] * size[1] > MOST:
        raise TooLarge(f"{name} is too large ({size[0]} x {size[1]} pixels, at most {MOST:,}); scale it down")


def as_srgb(image: Image.Image, name: str) -> Image.Image:
    """An upright image of any mode as 8-bit sRGB on white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("I", "F", "LAB"):
        raise ValueError(f"{name} has pixels of the mode {image.mode!r}; save it with 8 or 16 bits a channel")
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "RGBA", "CMYK"):
        image = converted(image, profile, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def converted(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """The image with its colour profile applied; unchanged with sRGB."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        mode = "RGB" if image.mode == "CMYK" else image.mode
        result = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError) as error:
        remedy = "remove the profile, or save the picture as sRGB"
        raise ValueError(f"{name} has a colour profile that cannot be applied ({error}); {remedy}") from error
    assert result is not None  # None only if it is done in place
    return result


def square(image: Image.Image, size: int) -> np.ndarray:
    """Scale the short side to `size` (bilinear) and crop the centre, as the authors' training does: (size, size, 3)."""
    scale = size / min(image.size)
    if image.size != (size, size):
        image = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))
