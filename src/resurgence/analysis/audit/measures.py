"""Measures with intervals from estimates, and the scores of the models of an audit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from resurgence.analysis.audit.evidence import Evidence, evidence
from resurgence.analysis.audit.result import CurvePoint, Measure, ModelImages
from resurgence.analysis.intervals import exact_limits, interval
from resurgence.analysis.random_effects import Estimate
from resurgence.analysis.score_folders import by_step
from resurgence.analysis.score_sets import ImageSet, image_set
from resurgence.config.model_path import ModelPath
from resurgence.config.scorers import metrics
from resurgence.scorers import read_scores

EXACT = "Clopper-Pearson at the effective number of images (Korn and Graubard 1998)"
COMBINED = "MOVER from exact limits (Newcombe 1998; Zou and Donner 2008)"


@dataclass(frozen=True, eq=False)
class ModelScores:
    """The scores of one model, by the step of its checkpoints; 0 where it is not fine-tuned."""

    base: str
    path: ModelPath
    steps: dict[int, ImageSet]

    @property
    def last(self) -> int:
        """The last step."""
        return max(self.steps)

    @property
    def seed(self) -> int | None:
        """Of the fine-tuning; None without one."""
        step = self.path.last("finetune")
        return None if step is None else step.seed

    def images(self, role: str) -> ModelImages:
        """Where its images and the scores of its last step lie."""
        place = f"{self.base}/{self.path}"
        scores = f"results/scores/{place}/scores/step-{self.last:06d}"
        return ModelImages(str(self.path), self.last, f"results/images/{place}/images", scores, self.seed, role)


def shown(scores: pd.DataFrame, metric: str, retained_metric: str | None) -> pd.DataFrame:
    """Scores whose column of the metric says of every image whether its concept is there: 1, 0, or no value.

    Args:
        retained_metric: of the images of retained concepts, where another one.

    Raises:
        ValueError: the scores lack a column, or it holds other values.
    """
    column = metrics()[metric].column or ""
    of_retained = column if retained_metric is None else metrics()[retained_metric].column or ""
    if lacking := [name for name in (column, of_retained) if name not in scores]:
        raise ValueError(f"the table has no column {lacking[0]}; score its images with the scorer of {metric}")
    values = scores[column].where(scores["role"] != "retain", scores[of_retained]).astype(float)
    if not values.dropna().isin((0.0, 1.0)).all():
        raise ValueError(f"{column} holds other values than 0 and 1; judge by a metric that says yes or no of an image")
    return scores.assign(**{column: values})


def read_model(base: str, name: str, metric: str, retained_metric: str | None = None) -> ModelScores:
    """Read the scores of a model, as `shown` has them.

    Raises:
        FileNotFoundError: they are missing. ValueError: see `shown`.
    """
    path = ModelPath.parse(name)
    entry = {"base": base, **path.columns(), "path": f"results/scores/{base}/{path}/scores"}
    steps = {
        each.get("step", 0): image_set(each, shown(read_scores(Path(each["path"]))[0], metric, retained_metric))
        for each in by_step([entry])
    }
    return ModelScores(base, path, steps)


def of_models(models: Sequence[ModelScores], column: str, role: str = "erase", step: int | None = None) -> Evidence:
    """The evidence of the models of one update, one a seed, at a step; None: the last."""
    ordered = sorted(models, key=lambda model: -1 if model.seed is None else model.seed)
    return evidence([model.steps[model.last if step is None else step] for model in ordered], column, role)


def measure(estimate: Estimate, level: float) -> Measure:
    """A value with its interval."""
    low, high = interval(estimate, level)
    method = EXACT if len(estimate.parts) == 1 else COMBINED
    images = max(part.images for part in estimate.parts)
    finite = not math.isnan(low)
    return Measure(estimate.value, low if finite else None, high if finite else None, images, method)


def measure_of_count(shown: float, images: int, level: float) -> Measure:
    """The share of independent images, with its interval; `shown` may be a mean of counts."""
    low, high = (100 * end for end in exact_limits(shown / images, images, level))
    return Measure(100 * shown / images, low, high, images, EXACT)


def curve(models: Sequence[ModelScores], column: str, role: str, level: float) -> tuple[CurvePoint, ...]:
    """Erased and retained shares at every checkpoint of an update; none for one that is not trained."""
    if models[0].seed is None:
        return ()
    points = {step: of_models(models, column, role, step) for step in sorted(models[0].steps)}
    return tuple(
        CurvePoint(step, measure(point.erased, level), measure(point.retained, level))
        for step, point in points.items()
        if point.retained is not None
    )


def concepts(evidence: Evidence, level: float) -> Mapping[str, Measure]:
    """Each erased concept's own share."""
    return {name: measure(estimate, level) for name, estimate in evidence.concepts.items()}
