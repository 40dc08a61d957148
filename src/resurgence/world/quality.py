"""Is the miniature world good ground? Recogniser accuracy on held-out transformations and on the base's own images.

Writes two tables, one row a concept: `drawings.csv` (top-1 under transformations that training never used:
backgrounds, angles, shears of size and noise outside its ranges or from other seeds) and `base.csv` (top-1 on images that the base
makes of the concept, n seeds each at the study's guidance).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from resurgence.world.recogniser import Recogniser
from resurgence.world.scenes import affine, uniform


def held_out(drawings: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Transform drawings in ways that training never used: checkered backgrounds, anisotropic size, hue shift.

    Args:
        drawings: uint8 RGBA (B, 4, H, W).

    Returns:
        Images in [-1, 1], (B, 3, H, W).
    """
    n, _, height, width = drawings.shape
    rgba = drawings.float() / 255
    alpha = rgba[:, 3:]
    stretch = uniform((2,), 0.85, 1.0, generator)
    size = [round(height * float(stretch[0])), round(width * float(stretch[1]))]
    small = F.interpolate(torch.cat([rgba[:, :3] * alpha, alpha], 1), size=size, mode="bilinear", antialias=True)
    pad = [(width - size[1]) // 2, width - size[1] - (width - size[1]) // 2]
    pad += [(height - size[0]) // 2, height - size[0] - (height - size[0]) // 2]
    moved = affine(F.pad(small, pad), generator, degrees=12, scale=(0.75, 1.0), shift=0.06)
    cells = torch.arange(height)[:, None] // 8 + torch.arange(width)[None] // 8
    colours = uniform((n, 2, 3, 1, 1), 0.75, 1.0, generator)
    checker = torch.where((cells % 2 == 0)[None, None], colours[:, 0], colours[:, 1])
    tint = uniform((n, 3, 1, 1), 0.9, 1.1, generator)
    return ((moved[:, :3] * tint).clamp(0, 1) + checker * (1 - moved[:, 3:])).clamp(0, 1) * 2 - 1


@torch.no_grad()
def accuracy_on_drawings(
    model: Recogniser, classes: list[str], rgba: torch.Tensor, names: list[str], copies: int, seed: int
) -> list[dict]:
    """Top-1 accuracy per concept under held-out transformations, `copies` of each drawing."""
    labels = torch.tensor([classes.index(name) for name in names])
    right = torch.zeros(len(names))
    for copy in range(copies):
        generator = torch.Generator().manual_seed(seed + copy)
        images = held_out(rgba, generator)
        right += torch.cat([model(part).argmax(1) for part in images.split(128)]).eq(labels).float()
    rows = []
    for name in dict.fromkeys(names):
        mask = torch.tensor([other == name for other in names])
        rows.append({"concept": name, "n": int(mask.sum()) * copies, "accuracy": float(right[mask].mean() / copies)})
    return rows
