"""The styles of the second miniature: pure functions on whole pictures, one entry of STYLES each.

A style takes pictures in [0, 1], (B, 3, H, W), and returns pictures of the same shape and range. Lengths are fractions
of the picture, so 64 and 128 pixels show the same. Lines and dots are drawn at SUPERSAMPLING times the size, then
averaged, so their edges are smooth. Only `mosaic` draws random numbers, from the generator argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from resurgence.config.fields import known

Style = Callable[[torch.Tensor, torch.Generator], torch.Tensor]

SUPERSAMPLING = 3
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
SEPIA = ((0.22, 0.11, 0.03), (1.0, 0.87, 0.64))  # darkest and lightest tone
INK, PAPER = (0.10, 0.05, 0.05), (0.93, 0.85, 0.68)  # of woodcuts
GRAPHITE, SHEET = 0.22, 0.97  # grey of pencil lines and of their paper
LINES = 16  # of a woodcut, one each four pixels of 64: textures repeat in each 8 x 8 square that a latent encodes
DIAGONALS = 8 * math.sqrt(2)  # of hatching and of halftone dots
GROUT = (0.36, 0.36, 0.38)


def luminance(images: torch.Tensor) -> torch.Tensor:
    """Brightness of each pixel, (B, 1, H, W) in [0, 1]."""
    return (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur; sigma in pixels."""
    radius = max(1, math.ceil(2.5 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).to(images).repeat(images.shape[1], 1)
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    rows = F.conv2d(padded, weights[:, None, None], groups=images.shape[1])
    return F.conv2d(rows, weights[:, None, :, None], groups=images.shape[1])


def edges(images: torch.Tensor) -> torch.Tensor:
    """Contrast across each pixel, the largest of the three channels: (B, 1, H, W), 1 for a step from 0 to 1."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]).abs()
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]).abs()
    return torch.maximum(across, down).amax(1, keepdim=True)


def smooth_step(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """0 below `low`, 1 above `high`, a cubic between."""
    share = ((values - low) / (high - low)).clamp(0, 1)
    return share * share * (3 - 2 * share)


def enlarge(images: torch.Tensor) -> torch.Tensor:
    """Pictures at SUPERSAMPLING times their size."""
    return F.interpolate(images, scale_factor=SUPERSAMPLING, mode="bilinear", align_corners=False)


def reduce(images: torch.Tensor) -> torch.Tensor:
    """The inverse of `enlarge`: averages of squares of pixels."""
    return F.avg_pool2d(images, SUPERSAMPLING)


def coordinates(images: torch.Tensor, degrees: float, periods: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two turned coordinates of the pixels, (H, W) each, that count `periods` across the picture."""
    axis = (torch.arange(images.shape[-1]).to(images) + 0.5) / images.shape[-1] * periods
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return axis[None, :] * cos + axis[:, None] * sin, axis[:, None] * cos - axis[None, :] * sin


def tone(shade: torch.Tensor, dark: Sequence[float], light: Sequence[float]) -> torch.Tensor:
    """Colours between `dark`, where the shade (B, 1, H, W) is 0, and `light`, where it is 1."""
    low, high = (shade.new_tensor(colour).view(1, 3, 1, 1) for colour in (dark, light))
    return low + (high - low) * shade


def pencil(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Grey outlines on white paper, dark parts hatched."""
    large = enlarge(images)
    line = smooth_step(edges(large), 0.015, 0.07)
    _, across = coordinates(large, 45, DIAGONALS)
    stroke = smooth_step(torch.cos(2 * math.pi * across), 0.1, 0.8)
    hatch = 0.5 * stroke * smooth_step(1 - luminance(large), 0.3, 0.75)
    grey = SHEET - (SHEET - GRAPHITE) * torch.maximum(line, hatch)
    return reduce(grey).expand(-1, 3, -1, -1)


def sepia(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Brown tones that darken towards the corners, as in old photographs."""
    x, y = coordinates(images, 0, 2)
    radius = torch.sqrt((x - 1) ** 2 + (y - 1) ** 2)
    return tone(luminance(images) * (1 - 0.45 * smooth_step(radius, 0.7, 1.4)), *SEPIA)


def mosaic(images: torch.Tensor, generator: torch.Generator, tiles: int = 16) -> torch.Tensor:
    """Square tiles of one colour each, slightly brighter or darker by chance, with dark joints between."""
    batch, _, height, width = images.shape
    colours = F.adaptive_avg_pool2d(images, tiles)
    shade = 1 + 0.16 * (torch.rand((batch, 1, tiles, tiles), generator=generator).to(images) - 0.5)
    middle = (colours - 0.5) * 1.15 + 0.5
    plane = F.interpolate((middle * shade).clamp(0, 1), size=(height, width), mode="nearest")
    joint = torch.arange(width) * tiles % width < tiles
    grid = (joint[None, :] | joint[:, None]).to(images)
    return plane + 0.75 * grid * (images.new_tensor(GROUT).view(1, 3, 1, 1) - plane)


def neon(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Glowing outlines in saturated colours on black."""
    size = images.shape[-1]
    colour = -F.max_pool2d(-images, 3, 1, 1)  # of the darker side of an edge, the drawing on its light background
    low, high = colour.amin(1, keepdim=True), colour.amax(1, keepdim=True)
    chroma = (colour - low) / (high - low).clamp(min=0.08)
    grey = smooth_step(high - low, 0.05, 0.2)
    cyan = images.new_tensor((0.2, 0.9, 1.0)).view(1, 3, 1, 1)
    tube = smooth_step(edges(blur(images, size / 110)), 0.04, 0.22)
    light = tube * (cyan + (chroma - cyan) * grey)
    glow = blur(light, size / 32)
    return (0.02 + light * 0.95 + 0.9 * glow + 0.25 * tube * tube).clamp(0, 1)


def halftone(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Dots of ink on white, larger where the picture is darker, in the colours of print."""
    large = enlarge(blur(images, images.shape[-1] / 64))
    u, v = coordinates(large, 45, DIAGONALS)
    dot = 0.5 + 0.25 * (torch.cos(2 * math.pi * u) + torch.cos(2 * math.pi * v))
    dark = (1 - large.amin(1, keepdim=True) + 4 * (edges(large) - 0.01).clamp(0, 0.1)).clamp(max=1)
    cover = smooth_step(dot - 0.88 + 0.75 * dark, -0.08, 0.08)
    return reduce(1 - cover * (1 - (large - 0.35 * dark).clamp(0, 1)))


def woodcut(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Black ink on brown paper: thick outlines, and wavy lines that are wider where the picture is darker."""
    large = enlarge(blur(images, images.shape[-1] / 100))
    u, v = coordinates(large, 0, 1)
    wave = 0.5 + 0.5 * torch.cos(2 * math.pi * (LINES * v + 0.3 * torch.sin(2 * math.pi * 4 * u)))
    dark = 1 - luminance(large)
    line = smooth_step(wave - 1.02 + 1.1 * dark, -0.1, 0.1)
    outline = smooth_step(edges(large), 0.015, 0.06)
    return reduce(tone(1 - torch.maximum(line, outline), INK, PAPER))


STYLES: Mapping[str, Style] = {
    "pencil": pencil,
    "sepia": sepia,
    "mosaic": mosaic,
    "neon": neon,
    "halftone": halftone,
    "woodcut": woodcut,
}


def draw_styles(n: int, names: Sequence[str], styled: float, generator: torch.Generator) -> list[str | None]:
    """Draw the style of n pictures: with the probability `styled` one of the names, each as likely, else None."""
    has_style = (torch.rand(n, generator=generator) < styled).tolist()
    picks = torch.randint(max(1, len(names)), (n,), generator=generator).tolist()
    return [names[pick] if names and styles else None for pick, styles in zip(picks, has_style, strict=True)]


def apply_styles(images: torch.Tensor, styles: Sequence[str | None], generator: torch.Generator) -> torch.Tensor:
    """Show each picture in its style; None leaves it as it is.

    Args:
        images: in [-1, 1], (B, 3, H, W). styles: keys of STYLES, one a picture.

    Raises:
        ConfigError: for a style that is not in STYLES.
    """
    result = images.clone()
    for name in dict.fromkeys(style for style in styles if style is not None):
        known("styles", name, STYLES)
        rows = torch.tensor([style == name for style in styles], device=images.device)
        result[rows] = STYLES[name]((images[rows] + 1) / 2, generator) * 2 - 1
    return result


def draw_and_apply_styles(
    images: torch.Tensor, world: dict, styled: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Show a share `styled` of pictures in [-1, 1], (B, 3, H, W), in the world's styles; a world may have none.

    Returns:
        The pictures, and the index of each one's style among the world's, -1 for none: int64 (B,).
    """
    names = [style["name"] for style in world.get("styles", [])]
    if not names:
        return images, torch.full((len(images),), -1)
    styles = draw_styles(len(images), names, styled, generator)
    indices = torch.tensor([-1 if style is None else names.index(style) for style in styles])
    return apply_styles(images, styles, generator), indices
