"""Faces by published networks on the CPU: SCRFD finds the face and its five points, ArcFace embeds it.

SCRFD (Guo et al. 2021, arXiv 2105.04714) of 0.5 GFLOP with points, scrfd_500m_bnkps.onnx, reads an image in the corner
of a black square of 640 x 640 pixels, larger ones reduced to it, as (x - 127.5) / 128. On grids of every 8, 16 and 32
pixels it gives for each place, with two anchors each, the probability of a face and the offsets of five points in units
of the grid. The most probable face counts, from 0.5, the published threshold.

ArcFace (Deng et al. 2019, arXiv 1801.07698) reads a face whose points a similarity transform has moved to its template
of 112 x 112 pixels. The network is MobileFaceNet trained on WebFace600K, w600k_mbf.onnx: the cosine of two embeddings
is about 0.5 for two photographs of one person, 0 for two people.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from skimage.transform import warp

from resurgence.scorers.onnx_models import Network

TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)  # (x, y) of eyes, nose and corners of the mouth in the aligned face
SIZE, DIMENSIONS = 112, 512
SIDE, STRIDES, ANCHORS, LEAST = 640, (8, 16, 32), 2, 0.5  # of SCRFD


def similarity(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The similarity transform (3, 3) that takes points (K, 2) nearest to targets (K, 2), by least squares."""
    x, y = points.T.astype(np.float64)
    ones, zeros = np.ones_like(x), np.zeros_like(x)
    rows = np.concatenate([np.stack([x, -y, ones, zeros], 1), np.stack([y, x, zeros, ones], 1)])
    a, b, right, down = np.linalg.lstsq(rows, targets.T.reshape(-1), rcond=None)[0]
    return np.array([[a, -b, right], [b, a, down], [0, 0, 1]])


def aligned(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A face as the network reads it, float32 (3, 112, 112) in [-1, 1], black outside the image.

    Args:
        image: uint8 (H, W, 3). points: (5, 2), x and y of the points of TEMPLATE.
    """
    face = warp(image.astype(np.float64), np.linalg.inv(similarity(points, TEMPLATE)), output_shape=(SIZE, SIZE))
    return ((face - 127.5) / 127.5).transpose(2, 0, 1).astype(np.float32)


def embedding(network: Network, image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The embedding (512,) of a face, of length 1; for the arguments see `aligned`. The graph declares a batch of 1."""
    e = network(aligned(image, points)[None])[0].astype(np.float64)
    return np.asarray(e / np.linalg.norm(e))


def to_square(image: np.ndarray) -> tuple[np.ndarray, float]:
    """What SCRFD reads, float32 (1, 3, 640, 640), and the factor by which an image uint8 (H, W, 3) was reduced."""
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    square = np.zeros((SIDE, SIDE, 3), np.float32)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    square[: size[1], : size[0]] = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return ((square - 127.5) / 128).transpose(2, 0, 1)[None], scale


def likeliest(outputs: Sequence[np.ndarray]) -> tuple[float, np.ndarray]:
    """Probability and points (5, 2), in pixels of the square, of the most probable face.

    Args:
        outputs: of SCRFD, (1, K, C) for each of STRIDES: probabilities (C = 1), distances to the sides of the box (4)
            and offsets of the points (10); a grid row by row, both anchors of a place one after the other.
    """
    probabilities, offsets = outputs[: len(STRIDES)], outputs[-len(STRIDES) :]
    grid = int(np.argmax([p.max() for p in probabilities]))
    place, stride = int(probabilities[grid].argmax()), STRIDES[grid]
    row, column = divmod(place // ANCHORS, SIDE // stride)
    points = np.array([column, row]) + offsets[grid].reshape(-1, 5, 2)[place].astype(np.float64)
    return float(probabilities[grid].max()), points * stride


@dataclass
class FaceFeatures:
    """SCRFD, (1, 3, 640, 640) -> its nine outputs, and ArcFace, (1, 3, 112, 112) -> (1, 512)."""

    detector: Callable[[np.ndarray], Sequence[np.ndarray]]
    network: Network

    def points(self, image: np.ndarray) -> np.ndarray | None:
        """The points (5, 2), in pixels, of the most probable face in an image uint8 (H, W, 3); None without one."""
        square, scale = to_square(image)
        probability, points = likeliest(self.detector(square))
        return points / scale if probability >= LEAST else None

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings of length 1, (N, 512) float32, of images uint8 (N, 3, H, W); NaN without a face."""
        rows = torch.full((len(images), DIMENSIONS), torch.nan)
        for row, image in zip(rows, images.permute(0, 2, 3, 1).contiguous().cpu().numpy(), strict=True):
            if (points := self.points(image)) is not None:
                row.copy_(torch.from_numpy(embedding(self.network, image, points)))
        return rows
