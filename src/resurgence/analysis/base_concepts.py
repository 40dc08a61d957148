"""Erased concepts that the base itself hardly draws: erasing one of them shows nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from resurgence.analysis.headline import number
from resurgence.analysis.score_folders import by_step, entry
from resurgence.config.model_path import ModelPath
from resurgence.config.scorers import ranked
from resurgence.scorers import read_scores

LEAST = 50.0  # percent of the base's images of a concept in which it is recognised


def shares(rows: pd.DataFrame) -> pd.Series:
    """Percent of the images of each erased concept in which the first accuracy of the reports finds it.

    Args:
        rows: scores of the base on a task. Without an accuracy the result is empty. An image without a value (no face,
            say) does not show its concept.
    """
    accuracies = (m for m in ranked().values() if m.accuracy and m.column in rows and rows[m.column].notna().any())
    if (metric := next(accuracies, None)) is None:
        return pd.Series(dtype=float)
    erased = rows[rows["role"] == "erase"]
    shown = erased.assign(shown=erased[metric.column].astype(float).fillna(0.0))
    return metric.scale * shown.groupby("concept", sort=False)["shown"].mean()


def hardly_drawn(settings: Mapping[str, Any], root: Path) -> dict[str, dict[str, float]]:
    """Task -> erased concept -> percent, of the concepts that the base draws in less than LEAST percent of its images.

    Args:
        settings: of the stage `tables`, with base, models and controls. root: the folder that has `results`.
    """
    bases = [entry(settings, model) for model in settings["models"] if ModelPath.parse(model).state == "base"]
    weak = {}
    for model in by_step({**base, "path": str(root / base["path"])} for base in bases):
        values = shares(read_scores(Path(model["path"]))[0])
        if len(low := values[values < LEAST]):
            weak[model["task"]] = {str(concept): float(value) for concept, value in low.items()}
    return weak


def warning(weak: Mapping[str, Mapping[str, float]]) -> str:
    """One line that names the concepts of `hardly_drawn`."""
    names = [f"{c!r} ({task}: {number(v)} %)" for task, values in weak.items() for c, v in values.items()]
    return (f"Warning: less than {LEAST:g} % of the base's own images show {', '.join(names)}: erasing what the base "
            "does not draw shows nothing; choose other concepts")  # fmt: skip
