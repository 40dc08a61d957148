"""The subject before a plain background: distance from the background in Lab, Otsu's threshold, holes filled."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.filters import threshold_otsu
from skimage.measure import label


def background(lab: np.ndarray, border: float) -> np.ndarray:
    """The background of the whole image, fitted to its frame: each Lab channel linear in x and y, (H, W, 3).

    Fitted twice: the second fit leaves out the half of the frame with the larger residuals, where the subject may touch
    the edge.
    """
    height, width = lab.shape[:2]
    edge = max(1, round(border * min(height, width)))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    terms = np.stack([np.ones_like(x), x, y], -1)  # (H, W, 3)
    frame = np.ones((height, width), bool)
    frame[edge:-edge, edge:-edge] = False
    design, colours = terms[frame], lab[frame]
    centre = np.median(colours, 0)
    far = np.linalg.norm(colours - centre, axis=1)
    for _ in range(2):
        keep = far <= np.median(far)
        plane = np.linalg.lstsq(design[keep], colours[keep], rcond=None)[0]
        far = np.linalg.norm(colours - design @ plane, axis=1)
    return terms @ plane


def foreground(image: torch.Tensor, border: float, contrast: float, smallest: float) -> torch.Tensor:
    """Mask the subject of one image on a plain or softly graded background.

    Otsu's threshold is computed on log(1 + distance), so that pale parts of a subject are not lost beside dark ones.

    Args:
        image: (3, H, W) in [-1, 1]. border, contrast, smallest: see MaskConfig.

    Returns:
        (H, W) bool; all False where nothing differs from the background by `contrast`.
    """
    lab = rgb2lab(((image.float() + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy())
    distance = np.linalg.norm(lab - background(lab, border), axis=-1)
    threshold = max(contrast, float(np.expm1(threshold_otsu(np.log1p(distance)))))
    filled = ndimage.binary_fill_holes(distance > threshold)
    parts = label(filled, connectivity=2)
    areas = np.bincount(parts.ravel())
    areas[0] = 0  # the background
    return torch.from_numpy((areas >= max(1, smallest * areas.max()))[parts])
