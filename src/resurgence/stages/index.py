"""The page on which the study opens, results/index.html: the answer, tables, bars, curves, and images to compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from resurgence.analysis.base_concepts import LEAST, shares, warning
from resurgence.analysis.headline import SMALL, blank_warning, changed_note
from resurgence.config.model_path import ModelPath
from resurgence.figures.charts import HEIGHT, WIDTH
from resurgence.figures.explorer import explorer_data, image_sets
from resurgence.figures.numbers import Numbers
from resurgence.figures.page import LIMIT, context, render
from resurgence.files import write_text
from resurgence.scorers import read_scores
from resurgence.stages.job import Job, start

EMPTY = {"tasks": [], "images": [], "order": []}


def by_task(models: list[str]) -> dict[str, list[str]]:
    """Task -> its models, in their order."""
    tasks: dict[str, list[str]] = {}
    for model in models:
        tasks.setdefault(ModelPath.parse(model).task, []).append(model)
    return tasks


def warnings(cells: pd.DataFrame, scores: Mapping[str, pd.DataFrame]) -> list[str]:
    """What makes the answer doubtful: blank images, and concepts that the base hardly draws.

    Args:
        cells: cells.csv. scores: task -> scores of the base's images.
    """
    weak = {}
    for task, rows in scores.items():
        values = shares(rows)
        if len(low := values[values < LEAST]):
            weak[task] = low.to_dict()
    texts = [blank_warning(cells), warning(weak) if weak else ""]
    return [text for text in texts if text]


def notes(settings: Mapping[str, Any]) -> list[str]:
    """What the numbers are about beside the names: who made the images of fine-tuning sets, and changed objectives."""
    makers = settings.get("makers", {}).items()
    texts = [f"Fine-tune {name}: images of the set {images}, made by {maker}." for name, (images, maker) in makers]
    return [text for text in [*texts, changed_note(settings.get("changed_objectives", {}))] if text]


def erased(rows: pd.DataFrame) -> list[str]:
    """The erased concepts of a task, from its scores."""
    return rows.loc[rows["role"] == "erase", "concept"].unique().tolist()


def make(job: Job) -> None:
    """Write results/index.html."""
    settings, page = job.settings, job.out.parents[1] / "index.html"
    base, models = settings["base"], by_task(settings["models"])
    numbers = Numbers(job.out.parents[1] / "tables")
    scores = {task: read_scores(image_sets(base, [task])[0].scores)[0] for task in models}
    facts = {
        "study": settings["study"], "base": base, "level": f"{100 * settings['level']:g}", "small": f"{100 * SMALL:g}",
        "models": set(settings["models"]), "width": WIDTH, "height": HEIGHT,
        "notes": notes(settings), "warnings": warnings(numbers.cells, scores),
        "erased": {task: erased(rows) for task, rows in scores.items()},
    }  # fmt: skip
    values = context(numbers, facts)
    without = len(render("index.html", values, EMPTY).encode())
    explorer = explorer_data(base, models, LIMIT - without, settings.get("sensitive", ()))
    write_text(page, render("index.html", values, explorer))
    job.write_made("index", [page])


if __name__ == "__main__":
    make(start())
