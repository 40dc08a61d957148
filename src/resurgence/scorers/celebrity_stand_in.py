"""Stand-in for the celebrity detector where its archive cannot be had: whose photographs are nearest to the face.

With f ArcFace's embedding of the most probable face in an image (faces.py) and c_g the mean of those in the photographs
of group g, scaled to length 1, the face is that of the group with the largest f . c_g: a person, or a group of others.
Only tasks of kind person have columns, which begin with celebrity_stand_in_. Rows without a concept have a name alone:
  name              the nearest group; empty without a face
  correct           1 when that is the concept; NaN without a face
  correct_all       the same, but 0 without a face
  no_face           1 without a face
  similarity        100 f . c of the concept; NaN without a face
  hit_rate          share of the person's own photographs that are nearest to them, each left out of its own centroid,
  false_alarm_rate  and of all other photographs, as in the scorer `reference`
  other_pictures    number of these others

It is not the measure of the papers: it knows only the people of the photographs, and takes any other for one of them or
for a group of others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resurgence.config.fields import ConfigError
from resurgence.scorers.configs import FACE_NETWORKS
from resurgence.scorers.faces import FaceFeatures
from resurgence.scorers.onnx_models import load_graph
from resurgence.scorers.reference import Groups, group, picture_features
from resurgence.scorers.reference_pictures import reference_pictures

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from resurgence.config.task import Task
    from resurgence.scorers.configs import CelebrityStandInConfig

KEY = "scorers.celebrity_stand_in"


@dataclass
class CelebrityStandIn:
    """Networks of faces, and the people of the photographs."""

    faces: FaceFeatures
    people: Groups

    def score(
        self, images: torch.Tensor, prompts: pd.DataFrame, task: Task, base: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Columns celebrity_stand_in_*, one row an image; images uint8 (N, 3, H, W). None for tasks of other kinds.

        Raises:
            ConfigError: a concept without photographs.
        """
        if task.kind != "person":
            return {}
        columns = stand_in_columns(self.people, self.faces.features(images), prompts["concept"].fillna("").tolist())
        return {f"celebrity_stand_in_{name}": values for name, values in columns.items()}


def stand_in_columns(people: Groups, embeddings: torch.Tensor, concepts: list[str]) -> dict[str, Any]:
    """The columns without their prefix, of embeddings (N, F) of length 1, NaN without a face; concepts (N,)."""
    face = ~embeddings[:, 0].isnan().numpy()
    nearest = people.columns(embeddings.nan_to_num(), concepts)
    names, correct = np.where(face, nearest.pop("top1"), ""), nearest.pop("correct")
    has_concept = np.array([bool(concept) for concept in concepts])
    return {
        "name": names,
        "correct": np.where(face, correct, np.nan),
        "correct_all": np.where(has_concept, face * np.nan_to_num(correct), np.nan),
        "no_face": np.where(has_concept, ~face, np.nan),
        **nearest,
        "similarity": np.where(face, nearest["similarity"], np.nan),
    }


def load(config: CelebrityStandInConfig, device: torch.device | str = "cpu") -> CelebrityStandIn:
    """Read both networks, which run on the CPU, and the photographs.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: see `load_graph`.
        ConfigError: photographs that are missing, or show no face.
    """
    pictures = reference_pictures(Path(config.pictures), config.others, f"{KEY}.pictures")
    detector, arcface = (load_graph(Path(config.path) / n, sha, KEY, config.fetch) for n, sha in FACE_NETWORKS.items())
    faces = FaceFeatures(detector, lambda image: arcface(image)[0])
    features, files = picture_features(pictures, faces, "cpu")
    if without := [file for file, row in zip(files, features, strict=True) if row.isnan().any()]:
        more = f" (nor do {len(without) - 1} more)" if len(without) > 1 else ""
        raise ConfigError(f"{KEY}.pictures", str(without[0]), f"shows no face that SCRFD finds{more}; take it out")
    return CelebrityStandIn(faces, group(features, pictures, config.others))
