"""Nearest centroid of reference pictures, for concepts that no classifier knows.

With f the features of a picture, of length 1, and c_g the mean over the pictures of group g, scaled to length 1:
  reference_top1              the group with the largest f . c_g: a concept, or a group of others.
  reference_correct           1 when that is the concept of the row.
  reference_similarity        100 f . c of the concept.
  reference_hit_rate          share of the concept's own reference pictures that are nearest to it,
  reference_false_alarm_rate  and of all other reference pictures; each picture is left out of its own centroid.
  reference_other_pictures    number of these others.
The last three are properties of the reference pictures, equal for all rows of a concept: an accuracy below the false
alarm rate shows nothing. Rows without a concept have no value but top1.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from resurgence.config.fields import ConfigError, known
from resurgence.diffusion.device import exact
from resurgence.diffusion.pictures import read_picture
from resurgence.pretrained.loading import check_file, fill, read_tensors
from resurgence.scorers.configs import ClipConfig
from resurgence.scorers.reference_pictures import is_other, reference_pictures

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd

    from resurgence.config.task import Task
    from resurgence.scorers.configs import ReferenceConfig

log = logging.getLogger(__name__)


class Features(Protocol):
    """A model that gives features."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features (N, F) float32 on the CPU; images uint8 (N, 3, H, W)."""


class Rates(NamedTuple):
    """Errors on the reference pictures, each left out of its own centroid."""

    hits: int  # pictures of the concept that are nearest to it
    pictures: int  # of the concept
    false_alarms: int  # other pictures that are nearest to it
    others: int  # pictures of other concepts and of others


def nearest(features: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    """The group whose centroid is nearest to each picture, which is left out of its own centroid, (N,).

    Args:
        features: (N, F), of length 1. groups: (N,) in [0, count), each at least twice.
    """
    sums = torch.zeros(count, features.shape[1], dtype=features.dtype).index_add_(0, groups, features)
    cosines = features @ F.normalize(sums, dim=1).T
    others = F.normalize(sums[groups] - features, dim=1)
    cosines[torch.arange(len(groups)), groups] = (features * others).sum(1)
    return cosines.argmax(1)


def error_rates(features: torch.Tensor, groups: torch.Tensor, names: list[str]) -> dict[str, Rates]:
    """The errors of each group; see `nearest`."""
    nearest_groups, rates = nearest(features, groups, len(names)), {}
    for number, name in enumerate(names):
        is_shown, is_nearest = groups == number, nearest_groups == number
        counts = (is_shown & is_nearest, is_shown, ~is_shown & is_nearest, ~is_shown)
        rates[name] = Rates(*(int(part.sum()) for part in counts))
    return rates


@dataclass
class Groups:
    """Centroids of the groups of reference pictures, and the errors of the concepts."""

    names: list[str]  # of the groups: concepts, then others
    centroids: torch.Tensor  # (G, F), of length 1
    rates: Mapping[str, Rates]  # concept -> its errors

    def columns(self, features: torch.Tensor, concepts: list[str]) -> dict[str, Any]:
        """The columns of the module without their prefix, one row an image.

        Args:
            features: (N, F), of length 1. concepts: (N,), "" without one.

        Raises:
            ConfigError: a concept without reference pictures.
        """
        if unknown := sorted(set(concepts) - {"", *self.rates}):
            raise ConfigError("concept", unknown[0], "has no folder of reference pictures; add one")
        cosines = (features @ self.centroids.T).double().numpy()  # (N, G)
        has_concept = np.array([bool(concept) for concept in concepts])
        place = np.array([self.names.index(concept) if concept else 0 for concept in concepts], dtype=np.int64)
        rates = [self.rates[self.names[at]] for at in place]
        columns = {
            "correct": cosines.argmax(1) == place,
            "similarity": 100.0 * cosines[np.arange(len(place)), place],
            "hit_rate": np.array([r.hits / r.pictures for r in rates]),
            "false_alarm_rate": np.array([r.false_alarms / r.others for r in rates]),
            "other_pictures": np.array([float(r.others) for r in rates]),
        }
        top1 = [self.names[at] for at in cosines.argmax(1)]
        return {"top1": top1, **{c: np.where(has_concept, v, np.nan) for c, v in columns.items()}}


@dataclass
class ReferenceScorer(Groups):
    """The groups, and the model that gives their features."""

    model: Features

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features of length 1, (N, F) float32 on the CPU; images uint8 (N, 3, H, W)."""
        return F.normalize(self.model.features(images), dim=1)

    def score(
        self, images: torch.Tensor, prompts: pd.DataFrame, task: Task, base: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Columns reference_*, one row an image; images uint8 (N, 3, H, W).

        Raises:
            ConfigError: a concept without reference pictures.
        """
        columns = self.columns(self.features(images), prompts["concept"].fillna("").tolist())
        return {f"reference_{name}": values for name, values in columns.items()}


@dataclass
class TorchvisionFeatures:
    """A classifier of torchvision without its last layer, with its published preprocessing."""

    model: torch.nn.Module
    preprocess: Callable[[torch.Tensor], torch.Tensor]
    device: torch.device | str = "cpu"
    batch: int = 64

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The inputs of the last layer, (N, F) float32 on the CPU; images uint8 (N, 3, H, W)."""
        parts = (self.model(self.preprocess(part.to(self.device))) for part in images.split(self.batch))
        return torch.cat([part.float().cpu() for part in parts])


def load_torchvision(config: ReferenceConfig, device: torch.device | str) -> TorchvisionFeatures:
    """A classifier of torchvision from a local file.

    Raises:
        ConfigError: an unknown architecture. FileNotFoundError, ValueError: a missing file or one that does not fit.
    """
    from torchvision import models

    key, fetch, name = "scorers.reference.path", config.fetch, str(config.architecture)
    known("scorers.reference.architecture", name, models.list_models(module=models))
    tensors = read_tensors(check_file(Path(config.path or ""), config.sha256, key, fetch), key, fetch)
    model = models.get_model(name, weights=None)
    fill(model, tensors, key, fetch)
    *_, last = (module for module, layer in model.named_modules() if isinstance(layer, torch.nn.Linear))
    model.set_submodule(last, torch.nn.Identity())
    return TorchvisionFeatures(model.eval().to(device), models.get_model_weights(name).DEFAULT.transforms(), device)


def load_model(config: ReferenceConfig, device: torch.device | str) -> Features:
    """The model that gives the features.

    Raises:
        ConfigError: a model of open_clip that cannot be loaded. FileNotFoundError, ValueError: see `load_torchvision`.
    """
    if config.architecture is not None:
        return load_torchvision(config, device)
    from resurgence.scorers import clip

    try:
        return clip.load(ClipConfig(path=config.path, name=config.name, pretrained=config.pretrained), device)
    except (FileNotFoundError, ValueError) as error:
        remedy = (
            f"cannot be loaded by open_clip ({error}); name another, or give `architecture` with torchvision's weights"
        )
        raise ConfigError("scorers.reference", config.path or config.name, remedy) from error


def picture_features(
    pictures: Mapping[str, list[Path]], model: Features, device: torch.device | str
) -> tuple[torch.Tensor, list[Path]]:
    """Features (N, F) of the pictures of all groups, and their files."""
    files, parts = [file for group in pictures.values() for file in group], []
    for file in files:  # one by one: of different sizes
        pixels = torch.from_numpy(np.array(read_picture(file, str(file)))).permute(2, 0, 1)[None]
        with exact(device):
            parts.append(model.features(pixels))
    return torch.cat(parts), files


def group(features: torch.Tensor, pictures: Mapping[str, list[Path]], others: str) -> Groups:
    """Centroids and errors; the errors are logged.

    Args:
        features: (N, F), of length 1, of the pictures of all groups. others: name of the groups that show no concept.
    """
    names = list(pictures)
    groups = torch.tensor([number for number, name in enumerate(names) for _ in pictures[name]])
    rates = {n: r for n, r in error_rates(features, groups, names).items() if not is_other(n, others)}
    for name, rate in rates.items():
        log.info("pictures of %s, each left out: %d of %d recognised, %d of %d others taken for it", name, *rate)
    centroids = F.normalize(torch.stack([features[groups == g].mean(0) for g in range(len(names))]), dim=1)
    return Groups(names, centroids, rates)


def load(config: ReferenceConfig, device: torch.device | str = "cpu") -> ReferenceScorer:
    """Load the model, and compute the centroids and errors of the reference pictures.

    Raises:
        ConfigError, FileNotFoundError, ValueError: pictures or model that are missing or do not fit.
    """
    pictures = reference_pictures(Path(config.pictures), config.others)
    model = load_model(config, device)
    features, _ = picture_features(pictures, model, device)
    return ReferenceScorer(**vars(group(F.normalize(features, dim=1), pictures, config.others)), model=model)
