"""Compose drawings on light backgrounds: the images of the miniature world.

Pure functions on tensors; all random numbers are drawn from the generator argument.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

PATTERNS = 4  # kinds of `pattern`


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """Uniform draws in [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def affine(
    images: torch.Tensor,
    generator: torch.Generator,
    degrees: float,
    scale: tuple[float, float],
    shift: float,
    stretch: float = 0.0,
) -> torch.Tensor:
    """Rotate, scale and shift each image by small random amounts.

    Args:
        images: (B, C, H, W), with premultiplied alpha so that edges blend correctly.
        degrees: largest rotation; scale: range of the size relative to the frame; shift: largest shift as a
            fraction of the frame; stretch: largest relative change of the width.
    """
    n = images.shape[0]
    angle = uniform((n,), -degrees, degrees, generator) * math.pi / 180
    inverse = 1 / uniform((n,), *scale, generator)
    cos, sin = torch.cos(angle) * inverse, torch.sin(angle) * inverse
    tx, ty = uniform((2, n), -2 * shift, 2 * shift, generator)
    width = uniform((n, 1), 1 - stretch, 1 + stretch, generator) if stretch else 1.0
    theta = torch.stack([torch.stack([cos, -sin, tx], 1) * width, torch.stack([sin, cos, ty], 1)], 1)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False)


def backgrounds(n: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Light backgrounds, gradients between two similar colours: (n, 3, size, size) in [0, 1]."""
    colour = uniform((n, 3, 1, 1), 0.78, 1.0, generator)
    end = (colour + uniform((n, 3, 1, 1), -0.10, 0.10, generator)).clamp(0.7, 1.0)
    angle = uniform((n, 1, 1), 0, 2 * math.pi, generator)
    axis = torch.linspace(-0.5, 0.5, size)
    ramp = (axis[None, None, :] * torch.cos(angle) + axis[None, :, None] * torch.sin(angle) + 0.5).clamp(0, 1)
    return colour + (end - colour) * ramp[:, None]


def compose(
    drawings: torch.Tensor,
    generator: torch.Generator,
    degrees: float = 8.0,
    scale: tuple[float, float] = (0.80, 0.98),
    shift: float = 0.04,
    stretch: float = 0.0,
    textured: float = 0.0,
) -> torch.Tensor:
    """Place RGBA drawings on light backgrounds.

    Args:
        drawings: uint8 (B, 4, H, W). textured: share of the images whose background has any colours: plain, a gradient
            or noise.

    Returns:
        Images in [-1, 1], float32 (B, 3, H, W).
    """
    rgba = drawings.float() / 255
    alpha = rgba[:, 3:]
    moved = affine(torch.cat([rgba[:, :3] * alpha, alpha], 1), generator, degrees, scale, shift, stretch)
    size = drawings.shape[-1]
    background = backgrounds(len(drawings), size, generator)
    if textured:
        kinds = torch.randint(PATTERNS, (len(drawings),), generator=generator).tolist()
        patterns = torch.stack([pattern(kind, size, generator) for kind in kinds]) / 2 + 0.5
        is_textured = torch.rand((len(drawings), 1, 1, 1), generator=generator) < textured
        background = torch.where(is_textured, patterns, background)
    return (moved[:, :3] + background * (1 - moved[:, 3:])).clamp(0, 1) * 2 - 1


def scene(low: list[float], high: list[float], n: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Images of a plain scene (sky, ground, street): a vertical gradient with faint texture, in [-1, 1]."""
    low_, high_ = torch.tensor(low).view(1, 3, 1, 1), torch.tensor(high).view(1, 3, 1, 1)
    ramp = torch.linspace(0, 1, size).view(1, 1, size, 1)
    shade = uniform((n, 1, 1, 1), -0.06, 0.06, generator)
    coarse = torch.randn((n, 1, size // 8, size // 8), generator=generator) * 0.04
    texture = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    return (low_ + (high_ - low_) * ramp + shade + texture).clamp(0, 1) * 2 - 1


def nothing(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures that show no concept, in [-1, 1]: (B, 3, H, W), as the images.

    Each is by chance a plain colour, a gradient of light or of any colours, noise of any size of grain, or one of the
    images with its parts (squares of an eighth or a quarter of the side) in random order.
    """
    n, _, size, _ = images.shape
    kinds = torch.randint(PATTERNS + 1, (n,), generator=generator).tolist()
    return torch.stack([
        pattern(kind, size, generator) if kind < PATTERNS else shuffled(image, size, generator)
        for kind, image in zip(kinds, images, strict=True)
    ])  # fmt: skip


def pattern(kind: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """A plain colour, a gradient of light, one of any colours, or noise, by kind; (3, size, size) in [-1, 1]."""
    if kind == 0:
        grey = torch.rand(1, generator=generator) < 0.5
        colour = torch.rand((1, 1, 1) if grey else (3, 1, 1), generator=generator)
        return (colour * 2 - 1).expand(3, size, size)
    if kind == 1:
        return backgrounds(1, size, generator)[0] * 2 - 1
    if kind == 2:
        low, high = torch.rand((2, 3), generator=generator).tolist()
        return scene(low, high, 1, size, generator)[0]
    grain = 2 ** int(torch.randint(int(math.log2(size)), (1,), generator=generator))
    mean, spread = uniform((3, 1, 1), -0.7, 0.7, generator), uniform((1,), 0.1, 1.0, generator)
    coarse = torch.randn((1, 3, size // grain, size // grain), generator=generator)
    fine = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)[0]
    return (mean + spread * fine).clamp(-1, 1)


def shuffled(image: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """The image with its parts, squares of an eighth or a quarter of the side, in random order."""
    side = size // (8 if torch.rand(1, generator=generator) < 0.5 else 4)
    tiles = F.unfold(image[None], side, stride=side)
    order = torch.randperm(tiles.shape[-1], generator=generator)
    return F.fold(tiles[..., order], (size, size), side, stride=side)[0]
