"""Scorers: each turns the images of one image set into columns, one value for each image.

A scorer is a declaration and a loader. The declaration is a `ScorerConfig`: its fields are the settings below
`scorers.NAME`, its class attributes the columns, the metrics, what it needs, and the name of the loader. It is read
without importing torch. The loader, called as (config, device), reads the weights and returns a `Scorer`. Scorers of
other packages are entry points of the group `resurgence.scorers`, name = "module:ConfigClass" (docs/adding.md).
Aggregates are computed from the written rows by resurgence.analysis, which sees no image.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from resurgence.config.scorers import (
    AGREEMENT,
    BLANK,
    COMMON,
    FALSE_ALARM,
    OF_CONCEPT,
    Metric,
    ScorerConfig,
    loader,
    metrics,
    ranked,
    ranked_names,
    scorer_class,
    scorer_config,
)
from resurgence.files import atomic_file
from resurgence.scorers.configs import (
    CelebrityConfig,
    ClipConfig,
    FrechetConfig,
    InceptionConfig,
    RecogniserConfig,
    ReferenceConfig,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from resurgence.config.task import Task

__all__ = [
    "OF_CONCEPT", "CelebrityConfig", "ClipConfig", "FrechetConfig", "InceptionConfig", "LabelValues", "LoadedScorer",
    "Metric", "RecogniserConfig", "ReferenceConfig", "Scorer", "ScorerConfig", "feature_names", "load_scorers",
    "metrics", "ranked", "read_scores", "score_images", "write_scores",
]  # fmt: skip
log = logging.getLogger(__name__)
SCORES, FEATURES = "scores.parquet", "features.safetensors"
LABELS = "labels"  # of a column, as JSON in the metadata of its Parquet field


class LabelValues(NamedTuple):
    """Values of one column, one a label: probabilities of concepts, for example. Stored as a column of lists."""

    labels: Sequence[str]  # (L,), the same for all images of a set
    values: np.ndarray  # (N, L)


class Scorer(Protocol):
    """What a loader returns; `features` only where the declaration says gives_features."""

    def score(
        self, images: torch.Tensor, prompts: pd.DataFrame, task: Task, base: torch.Tensor | None = None
    ) -> Mapping[str, Sequence[Any] | LabelValues]:
        """Score some images of a set.

        Args:
            images: uint8 (N, 3, H, W), on the CPU.
            prompts: N rows; columns prompt, concept ("" without one), role (erase, retain, synonym, general), template
                and seed.
            task: name, kind, erased and retained concepts, and labels of the task.
            base: the base's images of the same rows, of the type and shape of images; None unless some scorer of the
                study declares reads_base.

        Returns:
            Every declared column -> N values: numbers (NaN where the score is undefined; it then does not count in a
            mean) or texts, or `LabelValues`. An empty mapping for a task that the scorer does not apply to.
        """

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features (N, F) float32 on the CPU; images uint8 (N, 3, H, W)."""


class LoadedScorer(NamedTuple):
    """A declaration, the scorer that it loaded, and the device that it was loaded for."""

    config: ScorerConfig
    scorer: Scorer
    device: torch.device | str = "cpu"


def load_scorers(
    settings: Mapping[str, Mapping[str, Any]], device: torch.device | str = "cpu"
) -> dict[str, LoadedScorer]:
    """Load the scorers of the block `scorers` of the configuration, except those that only need stored features.

    Raises:
        ConfigError: an unknown scorer or setting. ValueError: `features` of a scorer that is not loaded or has none.
    """
    configs = {name: scorer_config(name, block) for name, block in settings.items()}
    featured = sorted(name for name, config in configs.items() if config.gives_features)
    for name in feature_names(settings):
        if name not in featured:
            raise ValueError(f"features = {name!r}: not a loaded scorer with features of images; "
                             f"known: {', '.join(featured) or 'none'}")  # fmt: skip
    return {n: LoadedScorer(c, loader(c)(c, device), device) for n, c in configs.items() if c.loader}


def feature_names(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The scorers whose features are to be stored, because another needs them."""
    return sorted({f for name, block in settings.items() for f in scorer_config(name, block).features_of})


def score_images(
    images: torch.Tensor,
    prompts: pd.DataFrame,
    task: Task,
    scorers: Mapping[str, LoadedScorer],
    keep_features: Collection[str] = (),
    base: torch.Tensor | None = None,
) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
    """Score some images: columns of the prompt set, `blank`, every scorer's columns, those that compare the detectors;
    and the features to be stored.

    Args:
        images: uint8 (N, 3, H, W), in the order of prompts. base: those of the base, of the same rows.

    Returns:
        The table, in whose attrs["labels"] are the labels of each column of lists; name of a scorer -> features (N, F).

    Raises:
        ValueError: images of another type or number than the prompts, no images of the base for a scorer that reads
            them, or columns other than the declared ones.
    """
    import pandas as pd

    from resurgence.diffusion.device import exact

    if len(images) != len(prompts) or images.ndim != 4 or str(images.dtype) != "torch.uint8":
        raise ValueError(
            f"images {images.dtype} {tuple(images.shape)} for {len(prompts)} prompts; expected uint8 (N, 3, H, W)"
        )
    prompts = prompts.reset_index(drop=True)
    table, features, labels = [prompts, pd.DataFrame({BLANK: blank(images)}, index=prompts.index)], {}, {}
    for name, (config, scorer, device) in scorers.items():
        start = time.monotonic()
        if config.reads_base and base is None:
            raise ValueError(f"scorer {name} reads the base's images of the same rows; give them (--base-images)")
        if config.columns:
            with exact(device):
                values = scorer.score(images, prompts, task, base)
            table.append(columns_table(name, config, values, pd.concat(table, axis=1)))
            labels |= {c: list(value.labels) for c, value in values.items() if isinstance(value, LabelValues)}
        if name in keep_features:
            with exact(device):
                features[name] = scorer.features(images)
        log.info("%s: %d images, %.1f s", name, len(images), time.monotonic() - start)
    scores = compared(pd.concat(table, axis=1), task.erase, list(scorers))
    scores.attrs = {LABELS: labels} if labels else {}
    return scores, features


def compared(scores: pd.DataFrame, erase: Collection[str], names: Collection[str]) -> pd.DataFrame:
    """The scores with `false_alarm` and `agreement`, where the scorers allow them.

    The detectors are the scorers whose accuracies have the lowest and the highest rank, as in H_c and H_o; the first
    that does not choose among the task's labels is asked for false alarms. NaN: an image of an erased concept, or one
    whose prompt names no concept.

    Args:
        erase: the erased concepts of the task. names: of the scorers.
    """
    import numpy as np

    accuracies = [m.column for m in ranked().values() if m.accuracy and m.column in scores]
    detectors = [name for name in ranked_names() if name in names and not scorer_class(name).among_labels]
    tops = [f"{name}_top1" for name in detectors if f"{name}_top1" in scores]
    if tops:
        erased = {concept.lower() for concept in erase}  # as the celebrity detector compares its names
        seen, others = scores[tops[0]].str.lower().isin(erased), ~scores["concept"].isin(erase)
        scores[FALSE_ALARM] = np.where(others, seen, np.nan)
    if len(accuracies) > 1:
        first, last = scores[accuracies[0]], scores[accuracies[-1]]
        scores[AGREEMENT] = np.where(first.notna() & last.notna(), first == last, np.nan)
    return scores


def blank(images: torch.Tensor) -> np.ndarray:
    """Which images are blank: 1.0 or 0.0, (N,). Each channel's standard deviation is below 1 of 255.

    Args:
        images: uint8 (N, 3, H, W).
    """
    import numpy as np

    deviations = [part.flatten(2).float().std(2, correction=0).amax(1).cpu().numpy() for part in images.split(64)]
    return (np.concatenate(deviations) < 1).astype(np.float64)


def columns_table(name: str, config: ScorerConfig, values: Mapping[str, Any], table: pd.DataFrame) -> pd.DataFrame:
    """The columns that a scorer returned, in the declared order.

    Args:
        table: the N rows of the prompt set with the columns of the scorers before this one.

    Raises:
        ValueError: other columns than the declared ones, one that another scorer wrote, one of another length, or an
            infinite value, which means would leave out as if there were none.
    """
    import numpy as np
    import pandas as pd

    if len(values) and set(values) != set(config.columns):
        raise ValueError(f"scorer {name} returned the columns {sorted(values)} and declares {sorted(config.columns)}; "
                         "let `columns` name what `score` returns")  # fmt: skip
    columns = {}
    for column in config.columns if len(values) else ():
        if column in table or column in COMMON:
            raise ValueError(f"scorer {name}: the column {column!r} is there already; rename it")
        value, expected = values[column], (len(table),)
        if isinstance(value, LabelValues):
            value, expected = np.asarray(value.values), (len(table), len(value.labels))
        if np.shape(value) != expected:
            raise ValueError(f"scorer {name}: the column {column!r} has the shape {np.shape(value)}; "
                             f"expected {expected}")  # fmt: skip
        if (array := np.asarray(value)).dtype.kind == "f" and np.isinf(array).any():
            raise ValueError(f"scorer {name}: the column {column!r} holds infinity; return NaN where it has no value")
        columns[column] = list(value) if len(expected) == 2 else value
    return pd.DataFrame(columns, index=table.index)


def write_scores(folder: Path, scores: pd.DataFrame, features: Mapping[str, torch.Tensor]) -> None:
    """Write scores.parquet and, when there are any, features.safetensors, each whole or not at all.

    Labels of the columns of lists go to the metadata of their Parquet fields, as the JSON text `labels`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.torch import save_file

    folder = Path(folder)
    plain = scores.copy(deep=False)
    plain.attrs = {}
    table = pa.Table.from_pandas(plain, preserve_index=False)
    for column, labels in scores.attrs.get(LABELS, {}).items():
        index = table.schema.get_field_index(column)
        field = table.schema.field(index).with_metadata({LABELS: json.dumps(labels, ensure_ascii=False)})
        table = table.set_column(index, field, table.column(index))
    with atomic_file(folder / SCORES) as temporary:
        pq.write_table(table, temporary, compression="snappy")
    if features:
        with atomic_file(folder / FEATURES) as temporary:
            save_file({name: value.cpu().contiguous() for name, value in features.items()}, temporary)


def read_scores(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a scores folder.

    Returns:
        The rows, with the labels of columns of lists in attrs["labels"] where there are any; and name of a scorer ->
        its features, numpy arrays (N, F), empty without a file.

    Raises:
        FileNotFoundError: there are no scores; names the command that writes them.
        ValueError: scores and features of different length.
    """
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    folder = Path(folder)
    if not (folder / SCORES).is_file():
        raise FileNotFoundError(f"no {SCORES} in {folder}; run the score stage (`resurgence score`) first")
    table = pq.read_table(folder / SCORES)
    scores = table.to_pandas()
    key = LABELS.encode()
    labels = {f.name: json.loads(f.metadata[key]) for f in table.schema if key in (f.metadata or {})}
    scores.attrs = {LABELS: labels} if labels else {}
    features = load_file(folder / FEATURES) if (folder / FEATURES).is_file() else {}
    for name, value in features.items():
        if len(value) != len(scores):
            raise ValueError(f"{folder / FEATURES}: {len(value)} rows of {name}, {len(scores)} scores; score again")
    return scores, features
