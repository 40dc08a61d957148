"""Top-1 accuracy of the GIPHY Celebrity Detector: MTCNN finds the face, a ResNet-50 names one of 2,307 people.

What MACE's script and the study's use (published at Giphy/celeb-detection-oss, and run here on current PyTorch):
  detection  MTCNN (Zhang et al. 2016) with thresholds 0.6, 0.7, 0.7, factor 0.709 and faces from 20 pixels; the
             networks are those of facenet-pytorch, ports of the same published weights.
  crop       the box with a margin of 20 % of its sides, half of it on each side, cut at the image's edge; bilinear to
             224 x 224; values in [0, 1] without further normalisation.
  names      softmax over fc2(fc1(ResNet-50 features)), 256 values between; the label's text before "_[", lower case.

Columns, one row an image, only for tasks of kind person; an image without concept has no value:
  celebrity_face         1 when a face was found
  celebrity_top1         the name it sees; empty without a face
  celebrity_correct      1 when that is the concept; NaN without a face: its mean is the accuracy of the papers
  celebrity_correct_all  the same, and 0 without a face: an eraser that removes faces does not become undefined
  celebrity_no_face      1 - celebrity_face
  celebrity_probability  softmax probability of the concept; NaN without a face

Where MTCNN finds several faces, the most probable one counts. (The published script groups the faces of an image by a
Gaussian mixture, multiplies the probabilities in a group and takes the first group; for one face that is the same.)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from resurgence.pretrained.loading import check_file, fill, read_tensors

if TYPE_CHECKING:
    import pandas as pd
    from facenet_pytorch import MTCNN

    from resurgence.config.task import Task
    from resurgence.scorers.configs import CelebrityConfig

CONFIG, WEIGHTS, LABELS = "config.json", "model.safetensors", "labels.txt"
EMBEDDING, SIZE, MARGIN = 256, 224, 0.2


def make_classifier(classes: int) -> nn.Module:
    """ResNet-50 with the detector's two linear layers in the place of its last: (B, 3, 224, 224) -> (B, classes)."""
    from torchvision.models import resnet50

    model = resnet50(weights=None)
    model.fc = nn.Sequential(nn.Linear(model.fc.in_features, EMBEDDING), nn.Linear(EMBEDDING, classes))
    return model.eval()


def crop_face(image: np.ndarray, box: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """Cut a box (x0, y0, x1, y1) with its margin out of an image (H, W, 3) and scale it: uint8 (224, 224, 3)."""
    height, width = image.shape[:2]
    x, y = (int(side * margin) / 2 for side in (box[2] - box[0], box[3] - box[1]))
    left, top = (int(max(low, 0)) for low in (box[0] - x, box[1] - y))
    right, bottom = int(min(box[2] + x, width)), int(min(box[3] + y, height))
    cut = Image.fromarray(image[top : max(bottom, top + 1), left : max(right, left + 1)])
    return np.asarray(cut.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def columns(
    probabilities: np.ndarray, faces: np.ndarray, labels: list[str], concepts: list[str]
) -> dict[str, np.ndarray]:
    """The columns from class probabilities (F, C) of the images with a face, and which images those are (N,) bool.

    Labels of the same name count as one person.

    Raises:
        ValueError: a concept that is no label.
    """
    names = [label.lower() for label in labels]
    places = {name: np.flatnonzero([n == name for n in names]) for name in {c.lower() for c in concepts if c}}
    for concept in sorted({c for c in concepts if c and not len(places[c.lower()])}):
        raise ValueError(
            f"concept {concept!r} is not among the {len(labels)} people that the celebrity detector knows; leave "
            "`celebrity` out of `scorers`, or name a person of its labels.txt"
        )
    where = np.cumsum(faces) - 1  # row of an image's face among the faces
    made = {name: np.full(len(concepts), np.nan) for name in ("correct", "correct_all", "no_face", "probability")}
    top = np.full(len(concepts), "", dtype=object)
    for i, concept in enumerate(concepts):
        if faces[i]:
            top[i] = labels[int(probabilities[where[i]].argmax())]
        if not concept:
            continue
        made["no_face"][i], made["correct_all"][i] = float(not faces[i]), 0.0
        if faces[i]:
            made["correct"][i] = made["correct_all"][i] = float(top[i].lower() == concept.lower())
            made["probability"][i] = probabilities[where[i], places[concept.lower()]].sum()
    table = {"celebrity_face": faces.astype(np.float64), "celebrity_top1": top.astype(str)}
    return table | {f"celebrity_{name}": values for name, values in made.items()}


@dataclass
class CelebrityScorer:
    """Face detector, classifier and its labels."""

    faces: MTCNN
    classifier: nn.Module
    labels: list[str]
    device: torch.device | str = "cpu"
    batch: int = 16

    def boxes(self, images: np.ndarray) -> list[np.ndarray | None]:
        """The most probable face's box of each image (N, H, W, 3) of one size, or None."""
        found, _ = self.faces.detect(images)
        return [None if boxes is None else np.asarray(boxes[0], dtype=np.float64) for boxes in found]

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
        faces, found = np.zeros(len(images), dtype=bool), []
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch].permute(0, 2, 3, 1).contiguous().cpu().numpy()
            own = self.boxes(part)
            crops = [crop_face(picture, box) for picture, box in zip(part, own, strict=True) if box is not None]
            faces[start : start + len(part)] = [box is not None for box in own]
            found += [self.probabilities(crops)] if crops else []
        seen = np.concatenate(found) if found else np.zeros((0, len(self.labels)))
        return columns(seen, faces, self.labels, prompts["concept"].fillna("").tolist())


def make_detector(device: torch.device | str) -> MTCNN:
    """MTCNN as the published detector sets it, its faces ordered by probability.

    Raises:
        ModuleNotFoundError: facenet-pytorch is not installed; says how.
    """
    try:
        from facenet_pytorch import MTCNN
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "scorers.celebrity needs facenet-pytorch; run `make weights`, or pip install --no-deps -r envs/weights.txt"
        ) from error
    # numpy images go through torch's resampling, the same on every device
    return MTCNN(select_largest=False, keep_all=True, device=torch.device(device)).eval()


def load(config: CelebrityConfig, device: torch.device | str = "cpu") -> CelebrityScorer:
    """Read a folder that `resurgence.scorers.celebrity_convert` wrote.

    Raises:
        FileNotFoundError, ValueError: naming the file and what does not fit.
    """
    folder, key, fetch = Path(config.path), "scorers.celebrity.path", config.fetch
    for name in (CONFIG, LABELS):
        check_file(folder / name, None, key, fetch)
    written = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    labels = (folder / LABELS).read_text(encoding="utf-8").splitlines()
    if written.get("architecture") != "resnet50-256":
        raise ValueError(f"{key}: {folder / CONFIG} says architecture = {written.get('architecture')!r}, not "
                         f"'resnet50-256'; {fetch}")  # fmt: skip
    file = check_file(folder / WEIGHTS, config.sha256 or written["sha256"], key, fetch)
    classifier = make_classifier(len(labels))
    fill(classifier, read_tensors(file, key, fetch), key, fetch)
    return CelebrityScorer(make_detector(device), classifier.to(device), labels, device)
