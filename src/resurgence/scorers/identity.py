"""Identity similarity of ArcFace: whether the face in an image is the person in the base's image of the same row.

MTCNN (facenet-pytorch) finds the most probable face and its five points, and ArcFace's embeddings of both faces are
compared by their cosine (faces.py). Only tasks of kind person have columns:
  identity_similarity  cosine to the face of the base's image; NaN where one of the two has no face
  identity_no_face     1 without a face where the base's image has one; NaN where that has none
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from resurgence.scorers.celebrity import build_detector
from resurgence.scorers.faces import DIMENSIONS, embedding
from resurgence.scorers.onnx_models import Network, load_network

if TYPE_CHECKING:
    import pandas as pd
    from facenet_pytorch import MTCNN

    from resurgence.config.task import Task
    from resurgence.scorers.erasure_configs import IdentityConfig


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
                if face is not None:
                    vectors[number] = embedding(self.network, pictures[number], face[0])
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
