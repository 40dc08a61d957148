"""The data of the explorer of a page: models side by side at the same prompt and seed, with scores and sources.

A page has a limit, so a large study is shown in part: prompts are ranked, first the first image of each erased concept,
then of each retained one, then their second images, and so on, and those that fit are shown with the images of all
models.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2.utils import htmlsafe_json_dumps
from PIL import Image
from pyarrow.parquet import read_metadata

from resurgence.config.counting import counted
from resurgence.config.model_path import ModelPath
from resurgence.config.scorers import COMMON, metrics
from resurgence.diffusion.image_sets import PAIR, image_files, read_prompts, stored_images
from resurgence.diffusion.pictures import read_picture
from resurgence.scorers import SCORES, read_scores

SIDE = 128  # pixels, the longest side of a thumbnail
QUALITY = 88  # of WebP
LEAST = 300  # characters of a thumbnail in a page, at least; bounds how many images are read
ROLES = ("erase", "retain", "synonym")  # the first ones to be shown; then others in the order of the prompt set


@dataclass(frozen=True)
class Shown:
    """An image set of the explorer: a model at a step, with its files."""

    model: ModelPath
    step: int | None  # None: base or erased
    images: list[Path]
    scores: Path  # folder

    @property
    def name(self) -> str:
        """Name in addresses, such as ship/uce/s0/lora/f0@300."""
        return str(self.model) + (f"@{self.step}" if self.step is not None else "")

    @property
    def title(self) -> str:
        """Name on the page, such as uce, lora, 300 steps."""
        steps = [step.name for step in self.model.steps] or ["base"]
        return ", ".join([*steps, *([counted(self.step, "step")] if self.step is not None else [])])


@dataclass
class TaskSets:
    """The image sets of a task, of which all have the prompts and seeds of the first."""

    name: str
    sets: list[Shown]
    prompts: pd.DataFrame
    tables: list[pd.DataFrame]  # the scores of each set, row by row
    columns: list[str]  # of them that a page can show: numbers and names, not lists
    sensitive: bool = False  # the page blurs its images until they are clicked
    # of the rows on the page, one a set: base64 of WebP; the columns, then how much of the concept the image shows
    thumbnails: dict[int, list[str]] = field(default_factory=dict)
    scores: dict[int, list[list[Any]]] = field(default_factory=dict)


def image_sets(base: str, models: Iterable[str]) -> list[Shown]:
    """The image sets of models, in the order of their steps.

    Args:
        base: name of the base. models: as in paths.

    Raises:
        FileNotFoundError: a model without images, or an incomplete image set.
    """
    sets = []
    for model in map(ModelPath.parse, models):
        for name, files in image_files(Path("results/images", base, str(model), "images")).items():
            step = int(name.removeprefix("step-")) if model.state == "finetuned" else None
            sets.append(Shown(model, step, files, Path("results/scores", base, str(model), "scores", name)))
    return sets


def read_task(name: str, sets: list[Shown], sensitive: bool = False) -> TaskSets:
    """Prompts and scores of the image sets of a task.

    Raises:
        ValueError: an image set or scores with other prompts or seeds than the first image set.
    """
    prompts, tables = read_prompts(sets[0].images), []
    for shown in sets:
        rows = read_scores(shown.scores)[0]
        for place, table in ((shown.images[0], read_prompts(shown.images)), (shown.scores, rows)):
            if not table[PAIR].equals(prompts[PAIR]):
                raise ValueError(f"{place} and {sets[0].images[0]} have other prompts or seeds; sample and score again")
        tables.append(rows.drop(columns=list(prompts)))
    return TaskSets(name, sets, prompts, tables, shown_columns(tables), sensitive)


def thumbnail(png: bytes, name: str) -> str:
    """An image of at most SIDE pixels as WebP in base64."""
    image = read_picture(png, name)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=QUALITY, method=4)
    return base64.b64encode(stream.getvalue()).decode()


def ranked_rows(prompts: pd.DataFrame) -> list[tuple[tuple[int, int, int], int]]:
    """Rank and position of every row: first the first image of each concept, by role."""
    order = {role: number for number, role in enumerate(dict.fromkeys([*ROLES, *prompts["role"]]))}
    level = prompts.groupby(["role", "concept"], sort=False, dropna=False).cumcount()
    ranks = zip(level, prompts["role"].map(order), range(len(prompts)), strict=True)
    return sorted(((int(k), int(role), row), row) for k, role, row in ranks)


def choose_rows(tasks: Sequence[TaskSets], budget: int) -> None:
    """Read the thumbnails of the rows that fit into a number of characters, by rank over all tasks."""
    ranked = sorted((rank, number, row) for number, task in enumerate(tasks) for rank, row in ranked_rows(task.prompts))
    sizes = itertools.accumulate(len(tasks[number].sets) * LEAST for _, number, _ in ranked)
    possible = [(tasks[number], row) for (_, number, row), size in zip(ranked, sizes, strict=True) if size <= budget]
    for task in tasks:
        rows = sorted(row for owner, row in possible if owner is task)
        lines = [score_lines(table.iloc[rows], task.columns) for table in task.tables]
        task.scores = dict(zip(rows, map(list, zip(*lines, strict=True)), strict=True))
        task.thumbnails = read_thumbnails(task.sets, rows)
    used, images = length([task_data(task, [], {}) for task in tasks]), dict[str, int]()
    for number, (task, row) in enumerate(possible):
        before = len(images)
        used += length(row_data(task, row, images)) + sum(len(text) + 3 for text in list(images)[before:])
        if used > budget:
            for owner, left_out in possible[number:]:
                del owner.thumbnails[left_out]
            return


def read_thumbnails(sets: Sequence[Shown], rows: Sequence[int]) -> dict[int, list[str]]:
    """Row -> the thumbnails of all image sets."""
    thumbnails: dict[int, list[str]] = {row: [] for row in rows}
    for shown in sets:
        for row, png in zip(rows, stored_images(shown.images, rows), strict=True):
            thumbnails[row].append(thumbnail(png, f"image {row} of {shown.images[0]}"))
    return thumbnails


def length(value: Any) -> int:
    """Characters of a value in the page, with a comma."""
    return len(htmlsafe_json_dumps(value, separators=(",", ":"))) + 1


def shown_columns(tables: Iterable[pd.DataFrame]) -> list[str]:
    """The columns of scores that a page can show, of all image sets."""
    lists = list | np.ndarray
    return list(dict.fromkeys(name for table in tables for name in table if not isinstance(table[name].iloc[0], lists)))


def concept_columns() -> list[str]:
    """Columns between 0 and 1 that are larger, the more of its concept an image shows."""
    return [m.column for m in metrics().values() if m.column and m.share and m.shows_concept]


def score_lines(table: pd.DataFrame, columns: Sequence[str]) -> list[list[Any]]:
    """The scores of each row in these columns, and their mean over `concept_columns`; None for what is missing."""
    every, concept = table.reindex(columns=list(columns)), [name for name in concept_columns() if name in table]
    mean = every[concept].mean(axis=1) if concept else pd.Series(math.nan, table.index)
    return [[plain(value) for value in line] for line in zip(*(every[c] for c in columns), mean, strict=True)]


def plain(value: Any) -> Any:
    """A score as JSON: numbers with four digits, None for NaN."""
    if isinstance(value, str):
        return value
    return None if value is None or pd.isna(value) else float(f"{float(value):.4g}")


def places(files: Sequence[Path]) -> list[list[Any]]:
    """Each file of an image set and the position of its first row."""
    starts = itertools.accumulate((read_metadata(file).num_rows for file in files), initial=0)
    return [[file.as_posix(), start] for file, start in zip(files, starts, strict=False)]


def row_data(task: TaskSets, row: int, images: dict[str, int]) -> dict[str, Any]:
    """A row for the page; its images are added to `images`, base64 -> number."""
    prompt = task.prompts.iloc[row]
    return {
        "n": row, "prompt": prompt["prompt"], "seed": str(prompt["seed"]), "role": prompt["role"],
        "images": [images.setdefault(text, len(images)) for text in task.thumbnails[row]],
        "scores": task.scores[row],
    }  # fmt: skip


def task_data(task: TaskSets, rows: Sequence[int], images: dict[str, int]) -> dict[str, Any]:
    """A task for the page, with some of its rows; `sensitive` is there only where its images are blurred."""
    yes_or_no = {m.column for m in metrics().values() if m.accuracy} | set(COMMON)
    columns = [[name, name.replace("_", " "), name in yes_or_no] for name in task.columns]
    sets = [
        {"name": s.name, "title": s.title, "state": s.model.state, "images": places(s.images),
         "scores": (s.scores / SCORES).as_posix()}
        for s in task.sets
    ]  # fmt: skip
    left = len(task.prompts) - len(rows)
    drawn = [row_data(task, row, images) for row in rows]
    blurred = {"sensitive": True} if task.sensitive else {}
    return {"name": task.name, "columns": columns, "sets": sets, "rows": drawn, "left": left, **blurred}


def explorer_data(
    base: str, models: Mapping[str, list[str]], budget: int, sensitive: Collection[str] = ()
) -> dict[str, Any]:
    """Everything that the explorer shows, in a number of characters.

    Args:
        base: name of the base. models: task -> its models, the base first, as in paths.
        budget: characters of images and scores together. sensitive: tasks whose images are blurred until clicked.

    Raises:
        FileNotFoundError, ValueError: see `image_sets` and `read_task`.
    """
    tasks = [read_task(name, image_sets(base, names), name in sensitive) for name, names in models.items()]
    choose_rows(tasks, budget)
    images: dict[str, int] = {}
    data = [task_data(task, sorted(task.thumbnails), images) for task in tasks]
    return {"tasks": data, "images": list(images), "order": concept_columns()}
