"""Top-1 accuracy of the GIPHY Celebrity Detector: MTCNN finds the face, a ResNet-50 names one of 2,307 people.

MACE's script and the study's use it, as published at Giphy/celeb-detection-oss; here it runs on current PyTorch:
  detection  MTCNN (Zhang et al. 2016) with thresholds 0.6, 0.7, 0.7, factor 0.709 and faces from 20 pixels; the
             networks are those of facenet-pytorch, ports of the same published weights.
  crop       the box with a margin of 20 % of its sides, half of it on each side, clipped to the image; bilinear to
             224 x 224; values in [0, 1] without further normalisation.
  names      softmax over fc2(fc1(ResNet-50 features)), fc1 with 256 outputs; text of the label before "_[", lower case.

Columns, one row an image, only for tasks of kind person; an image without concept has no value:
  celebrity_face         1 when MTCNN detects a face
  celebrity_top1         the most probable name; empty without a face
  celebrity_correct      1 when that is the concept; NaN without a face: its mean is the accuracy of the papers
  celebrity_correct_all  the same, but 0 without a face, so that its mean is defined for an eraser that removes faces
  celebrity_no_face      1 - celebrity_face
  celebrity_probability  softmax probability of the concept; NaN without a face

If MTCNN detects several faces, the most probable one counts. (The published script groups the faces of an image by a
Gaussian mixture, multiplies the probabilities in a group and takes the first group; for one face that is the same.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from resurgence.files import GET_PACKAGES, read_json, read_text
from resurgence.pretrained.loading import check_file, fill, read_tensors

if TYPE_CHECKING:
    import pandas as pd
    from facenet_pytorch import MTCNN

    from resurgence.config.task import Task
    from resurgence.scorers.configs import CelebrityConfig

CONFIG, WEIGHTS, LABELS = "config.json", "model.safetensors", "labels.txt"
ARCHITECTURE = "resnet50-256"  # in config.json
EMBEDDING, SIZE, MARGIN = 256, 224, 0.2


def build_classifier(classes: int) -> nn.Module:
    """ResNet-50 whose last layer is replaced by the detector's two linear layers: (B, 3, 224, 224) -> (B, classes)."""
    from torchvision.models import resnet50

    model = resnet50(weights=None)
    model.fc = nn.Sequential(nn.Linear(model.fc.in_features, EMBEDDING), nn.Linear(EMBEDDING, classes))
    return model.eval()


def crop_face(image: np.ndarray, box: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """Crop an image (H, W, 3) to a box (x0, y0, x1, y1) with its margin, and resize it: uint8 (224, 224, 3)."""
    height, width = image.shape[:2]
    x, y = (int(side * margin) / 2 for side in (box[2] - box[0], box[3] - box[1]))
    left, top = (int(max(low, 0)) for low in (box[0] - x, box[1] - y))
    right, bottom = int(min(box[2] + x, width)), int(min(box[3] + y, height))
    crop = Image.fromarray(image[top : max(bottom, top + 1), left : max(right, left + 1)])
    return np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def columns(
    probabilities: np.ndarray, faces: np.ndarray, labels: list[str], concepts: list[str]
) -> dict[str, np.ndarray]:
    """The columns from the class probabilities of faces; labels of the same name count as one person.

    Args:
        probabilities: (F, C), of the images with a face. faces: (N,) bool, which images have one.
        labels: (C,). concepts: (N,), "" without one.

    Raises:
        ValueError: a concept that is no label.
    """
    names = np.array([label.lower() for label in labels])
    for concept in sorted({c for c in concepts if c and c.lower() not in names}):
        raise ValueError(
            f"concept {concept!r} is not among the {len(labels)} people that the celebrity detector knows; leave "
            "`celebrity` out of `scorers`, or name a person of its labels.txt"
        )
    top, probability = np.full(len(faces), "", dtype=object), np.full(len(faces), np.nan)
    for i, face in zip(np.flatnonzero(faces), probabilities, strict=True):
        top[i] = labels[int(face.argmax())]
        if concepts[i]:
            probability[i] = face[names == concepts[i].lower()].sum()
    has_concept = np.array([bool(concept) for concept in concepts])
    correct = np.array([name.lower() == concept.lower() for name, concept in zip(top, concepts, strict=True)])
    return {
        "celebrity_face": faces.astype(np.float64),
        "celebrity_top1": top.astype(str),
        "celebrity_correct": np.where(has_concept & faces, correct, np.nan),
        "celebrity_correct_all": np.where(has_concept, correct, np.nan),
        "celebrity_no_face": np.where(has_concept, ~faces, np.nan),
        "celebrity_probability": probability,
    }


@dataclass
class CelebrityScorer:
    """Face detector, classifier and its labels."""

    faces: MTCNN
    classifier: nn.Module
    labels: list[str]
    device: torch.device | str = "cpu"
    batch: int = 16

    def boxes(self, images: np.ndarray) -> list[np.ndarray | None]:
        """The box of the most probable face in each image (N, H, W, 3), None in those without a face."""
        boxes, _ = self.faces.detect(images)
        return [None if faces is None else np.asarray(faces[0], dtype=np.float64) for faces in boxes]

    @torch.inference_mode()
    def probabilities(self, crops: list[np.ndarray]) -> np.ndarray:
        """Class probabilities (F, C) of crops (224, 224, 3) uint8."""
        x = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float().div(255)
        parts = [self.classifier(part.to(self.device)).float().softmax(1).cpu() for part in x.split(self.batch)]
        return torch.cat(parts).numpy()

    def score(
        self, images: torch.Tensor, prompts: pd.DataFrame, task: Task, base: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Columns celebrity_*, one row an image; images uint8 (N, 3, H, W). No column for a task of another kind."""
        if task.kind != "person":
            return {}
        faces: list[bool] = []
        probabilities = [np.zeros((0, len(self.labels)), np.float32)]
        for batch in images.split(self.batch):
            pictures = batch.permute(0, 2, 3, 1).contiguous().cpu().numpy()
            boxes = self.boxes(pictures)
            crops = [crop_face(picture, box) for picture, box in zip(pictures, boxes, strict=True) if box is not None]
            faces += [box is not None for box in boxes]
            probabilities += [self.probabilities(crops)] if crops else []
        concepts = prompts["concept"].fillna("").tolist()
        return columns(np.concatenate(probabilities), np.array(faces, dtype=bool), self.labels, concepts)


def build_detector(device: torch.device | str, key: str = "scorers.celebrity") -> MTCNN:
    """MTCNN with the settings of the published detector; orders faces by probability.

    Args:
        key: the scorer's block of the configuration, for the message.

    Raises:
        ModuleNotFoundError: facenet-pytorch is not installed; says how to install it.
    """
    try:
        from facenet_pytorch import MTCNN
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{key} needs facenet-pytorch, which is not installed; {GET_PACKAGES}") from error
    # numpy images are resampled by torch, the same on every device
    return MTCNN(select_largest=False, keep_all=True, device=torch.device(device)).eval()


def load(config: CelebrityConfig, device: torch.device | str = "cpu") -> CelebrityScorer:
    """Read a folder that `resurgence.scorers.celebrity_convert` wrote.

    Raises:
        FileNotFoundError, ValueError: a missing file or one that does not fit, by name.
    """
    folder, key, fetch = Path(config.path), "scorers.celebrity.path", config.fetch
    for name in (CONFIG, LABELS):
        check_file(folder / name, None, key, fetch)
    stored = read_json(folder / CONFIG)
    labels = read_text(folder / LABELS).splitlines()
    if stored.get("architecture") != ARCHITECTURE:
        raise ValueError(f"{key}: {folder / CONFIG} says architecture = {stored.get('architecture')!r}, not "
                         f"{ARCHITECTURE!r}; {fetch}")  # fmt: skip
    file = check_file(folder / WEIGHTS, config.sha256 or stored["sha256"], key, fetch)
    classifier = build_classifier(len(labels))
    fill(classifier, read_tensors(file, key, fetch), key, fetch)
    return CelebrityScorer(build_detector(device), classifier.to(device), labels, device)
