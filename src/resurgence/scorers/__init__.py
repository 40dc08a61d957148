"""Scorers: one file a metric. A scorer turns the images of one image set into columns, one value an image.

To add one: write a file with `load(..., device) -> Scorer`, and add an entry to SCORERS that names its metrics. A
scorer of whole sets (Fréchet) has `distance(features, features)` instead and works on the stored features of another.
Aggregates are computed from the written rows by tables.py, which never sees an image.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from resurgence.config.task import Task

log = logging.getLogger(__name__)
SCORES, FEATURES = "scores.parquet", "features.safetensors"


class Metric(NamedTuple):
    """A metric that is the mean of a column times a factor."""

    column: str
    scale: float = 1.0


class Entry(NamedTuple):
    """A scorer's module and the metrics made of its columns."""

    module: str
    metrics: dict[str, Metric]


SCORERS = {
    "recogniser": Entry(
        "resurgence.scorers.recogniser",
        {"recogniser_accuracy": Metric("recogniser_correct", 100.0)},
    ),
    "clip": Entry(
        "resurgence.scorers.clip",
        {
            "clip_accuracy": Metric("clip_correct", 100.0),
            "clip_probability": Metric("clip_probability", 100.0),
            "clip_score": Metric("clip_score"),
        },
    ),
    "celebrity": Entry(
        "resurgence.scorers.celebrity",
        {
            "celebrity_accuracy": Metric("celebrity_correct", 100.0),
            "celebrity_accuracy_all": Metric("celebrity_correct_all", 100.0),
            "celebrity_no_face": Metric("celebrity_no_face", 100.0),
        },
    ),
    "inception": Entry("resurgence.scorers.inception", {}),
    "frechet": Entry("resurgence.scorers.frechet", {}),
}
METRICS = {name: metric for entry in SCORERS.values() for name, metric in entry.metrics.items()}


class Scorer(Protocol):
    """What a scorer's `load` returns."""

    def score(self, images: torch.Tensor, prompts: pd.DataFrame, task: Task) -> pd.DataFrame:
        """Columns of this scorer, one row an image in the order of prompts; images uint8 (N, 3, H, W)."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features (N, F) float32 on the CPU; images uint8 (N, 3, H, W)."""


def load_scorers(settings: Mapping[str, Mapping[str, Any]], device: torch.device | str = "cpu") -> dict[str, Scorer]:
    """Load the scorers of the block `scorers` of the configuration.

    Raises:
        ValueError: a name that SCORERS does not have, or `features` of a scorer that is not loaded.
    """
    for name in settings:
        if name not in SCORERS:
            raise ValueError(f"scorers.{name}: no such scorer; known: {', '.join(sorted(SCORERS))}")
    modules = {name: importlib.import_module(SCORERS[name].module) for name in settings}
    loaded = {name: m.load(device=device, **settings[name]) for name, m in modules.items() if hasattr(m, "load")}
    for name in feature_names(settings):
        if name not in loaded:
            raise ValueError(f"features = {name!r}: not a loaded scorer; known: {', '.join(sorted(loaded)) or 'none'}")
        if not hasattr(loaded[name], "features"):
            raise ValueError(f"features = {name!r}: this scorer has no features of images; use inception or recogniser")
    return loaded


def feature_names(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The scorers whose features are to be stored, because another asks for them."""
    return sorted({block["features"] for block in settings.values() if "features" in block})


def score_images(
    images: torch.Tensor,
    prompts: pd.DataFrame,
    task: Task,
    scorers: Mapping[str, Scorer],
    keep_features: Collection[str] = (),
) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
    """Score one image set: the prompt-set columns with every scorer's columns, and the features to be stored.

    Args:
        images: uint8 (N, 3, H, W), in the order of prompts.

    Raises:
        ValueError: images of another type or number than the prompts.
    """
    import pandas as pd

    if len(images) != len(prompts) or images.ndim != 4 or str(images.dtype) != "torch.uint8":
        raise ValueError(
            f"images {images.dtype} {tuple(images.shape)} for {len(prompts)} prompts; expected uint8 (N, 3, H, W)"
        )
    table, features = [prompts.reset_index(drop=True)], {}
    for name, scorer in scorers.items():
        start = time.monotonic()
        columns = scorer.score(images, table[0], task)
        if len(columns) != len(prompts):
            raise ValueError(f"scorer {name} returned {len(columns)} rows for {len(prompts)} images")
        table.append(columns.reset_index(drop=True))
        if name in keep_features:
            features[name] = scorer.features(images)
        log.info("%s: %d images, %.1f s", name, len(images), time.monotonic() - start)
    return pd.concat(table, axis=1), features


def write_scores(folder: Path, scores: pd.DataFrame, features: Mapping[str, torch.Tensor]) -> None:
    """Write scores.parquet and, when there are any, features.safetensors, each under a temporary name first."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{SCORES}.tmp"
    scores.to_parquet(temporary, index=False)
    temporary.rename(folder / SCORES)
    if features:
        temporary = folder / f".{FEATURES}.tmp"
        save_file({name: value.cpu().contiguous() for name, value in features.items()}, temporary)
        temporary.rename(folder / FEATURES)


def read_scores(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a scores folder: the rows, and the features as numpy arrays (empty without a file).

    Raises:
        FileNotFoundError: there are no scores; says which command writes them.
    """
    import pandas as pd
    from safetensors.numpy import load_file

    folder = Path(folder)
    if not (folder / SCORES).is_file():
        raise FileNotFoundError(f"no {SCORES} in {folder}; run the score stage (`resurgence score`) first")
    scores = pd.read_parquet(folder / SCORES)
    features = load_file(folder / FEATURES) if (folder / FEATURES).is_file() else {}
    for name, value in features.items():
        if len(value) != len(scores):
            raise ValueError(f"{folder / FEATURES}: {len(value)} rows of {name}, {len(scores)} scores; score again")
    return scores, features
