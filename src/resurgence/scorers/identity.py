"""Identity similarity of ArcFace: whether the face in an image is the person in the base's image of the same row.

MTCNN (facenet-pytorch) finds the most probable face and its five points, a similarity transform maps these to ArcFace's
template of 112 x 112 pixels (Deng et al. 2019), and the embeddings of both faces are compared by their cosine. The
network is MobileFaceNet trained on WebFace600K (w600k_mbf.onnx): about 0.5 for two photographs of one person, 0 for two
people. Only tasks of kind person have columns:
  identity_similarity  cosine to the face of the base's image; NaN where one of the two has no face
  identity_no_face     1 without a face where the base's image has one; NaN where that has none
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from skimage.transform import warp

from resurgence.scorers.celebrity import build_detector
from resurgence.scorers.onnx_models import Network, load_network

if TYPE_CHECKING:
    import pandas as pd
    from facenet_pytorch import MTCNN

    from resurgence.config.task import Task
    from resurgence.scorers.erasure_configs import IdentityConfig

TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)  # (x, y) of eyes, nose and corners of the mouth in the aligned face
SIZE, DIMENSIONS = 112, 512


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


@dataclass
class IdentityScorer:
    """Detector of faces, and the network of their embeddings: (1, 3, 112, 112) -> (1, 512)."""

    faces: MTCNN
    network: Network
    batch: int = 16

    def embeddings(self, images: torch.Tensor) -> np.ndarray:
        """Embeddings of length 1, (N, 512), of the most probable face in images uint8 (N, 3, H, W); NaN without one."""
        rows = []
        for part in images.split(self.batch):
            pictures = part.permute(0, 2, 3, 1).contiguous().cpu().numpy()
            _, _, points = self.faces.detect(pictures, landmarks=True)
            vectors = np.full((len(pictures), DIMENSIONS), np.nan)
            for number, face in enumerate(points):
                if face is not None:  # one after the other: the graph declares a batch of 1
                    e = self.network(aligned(pictures[number], face[0])[None])[0].astype(np.float64)
                    vectors[number] = e / np.linalg.norm(e)
            rows.append(vectors)
        return np.concatenate(rows)

    def score(
        self, images: torch.Tensor, prompts: pd.DataFrame, task: Task, base: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Columns identity_*, one row an image; images and base uint8 (N, 3, H, W). None for tasks of other kinds."""
        if task.kind != "person":
            return {}
        return columns(self.embeddings(images), self.embeddings(base))


def columns(faces: np.ndarray, base: np.ndarray) -> dict[str, np.ndarray]:
    """The columns from embeddings of length 1, (N, d); NaN without a face."""
    has_face = ~np.isnan(base[:, 0])
    return {
        "identity_similarity": (faces * base).sum(1),
        "identity_no_face": np.where(has_face, np.isnan(faces[:, 0]), np.nan),
    }


def load(config: IdentityConfig, device: torch.device | str = "cpu") -> IdentityScorer:
    """Read the network, which runs on the CPU, and MTCNN.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: see `load_network` and `build_detector`.
    """
    network = load_network(config.path, config.sha256, "scorers.identity", config.fetch)
    return IdentityScorer(build_detector(device, "scorers.identity"), network)
