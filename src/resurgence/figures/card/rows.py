"""The images of the card: models side by side at the same prompt and seed, the worst first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from resurgence.analysis.audit.measures import shown
from resurgence.analysis.audit.result import Audit, ModelImages
from resurgence.config.scorers import metrics
from resurgence.diffusion.image_sets import image_files, read_prompts, stored_images
from resurgence.figures.explorer import thumbnail
from resurgence.scorers import read_scores
from resurgence.scorers.score_files import PAIR

WORST, FIRST = 6, 3  # rows of erased concepts by what updates show; rows of retained concepts in their order


@dataclass(frozen=True)
class Shown:
    """A model of the rows."""

    title: str
    state: str  # base, erased or finetuned, for its colour
    images: ModelImages

    @property
    def files(self) -> list[Path]:
        """The files of its image set.

        Raises:
            FileNotFoundError: there is none of its step.
        """
        name = f"step-{self.images.step:06d}"
        if name not in (sets := image_files(Path(self.images.images))):
            raise FileNotFoundError(f"{self.images.images} holds no image set {name}; run the step that samples it")
        return sets[name]


def shown_models(audit: Audit) -> list[Shown]:
    """The original where it is known, the released model, and each update; of one with several seeds, the first."""
    original = audit.original.models[:1] if audit.original else ()
    shown = [Shown("before erasing", "base", images) for images in original]
    for probe in audit.probes:
        state = "erased" if probe.kind == "released" else "finetuned"
        shown += [Shown(probe.title, state, images) for images in probe.models[:1]]
    return shown


def scores_of(audit: Audit, images: ModelImages) -> pd.DataFrame:
    """The scores of a model with a column `shows`: 1 for an image that shows its concept, 0, NaN without a concept.

    Raises:
        ValueError: see `shown`.
    """
    column = metrics()[audit.metric].column
    scores = shown(read_scores(Path(images.scores))[0], audit.metric, audit.retained_metric)
    return scores.assign(shows=scores[column].astype(float).fillna(0.0).where(scores["concept"].fillna("") != ""))


def chosen_rows(tables: Sequence[pd.DataFrame]) -> list[int]:
    """The rows of the card: the worst of the erased concepts, then the first of each of some retained ones.

    Args:
        tables: see `scores_of`; of all models, row by row the same prompts and seeds.
    """
    first = tables[0]
    updated = sum(table["shows"].fillna(0.0) for table in tables[1:])
    erased = first.index[first["role"] == "erase"]
    worst = sorted(erased, key=lambda row: (-updated[row] if len(tables) > 1 else 0, row))[:WORST]
    retained = first[first["role"] == "retain"].drop_duplicates("concept").index[:FIRST]
    return [int(row) for row in (*worst, *retained)]


def image_rows(audit: Audit) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the card, and the titles of models that are left out because they have other prompts.

    Raises:
        FileNotFoundError: images or scores are missing. ValueError: images and scores of other prompts.
    """
    models = shown_models(audit)
    every = [(model, scores_of(audit, model.images)) for model in models]
    prompts = next(table for model, table in every if model.state == "erased")[PAIR]
    same = [(m, table) for m, table in every if m.images.role == "erase" and table[PAIR].equals(prompts)]
    for model, table in same:
        if not read_prompts(model.files)[PAIR].equals(table[PAIR]):
            raise ValueError(f"{model.images.images} and {model.images.scores} have other prompts; score it again")
    # what the model before erasing shows says nothing of an update
    judged = [table for model, table in same if model.state != "base"]
    rows = chosen_rows(judged)
    pictures = [thumbnails(model, rows) for model, _ in same]
    titles = {model.title for model, _ in same}
    left_out = [model.title for model in models if model.title not in titles]
    return [row_of(row, same, [part[row] for part in pictures]) for row in rows], left_out


def thumbnails(model: Shown, rows: Sequence[int]) -> dict[int, str]:
    """Row -> its image as WebP in base64."""
    ordered = sorted(rows)
    images = zip(ordered, stored_images(model.files, ordered), strict=True)
    return {row: thumbnail(png, f"image {row} of {model.images.images}") for row, png in images}


def row_of(row: int, models: Sequence[tuple[Shown, pd.DataFrame]], pictures: Sequence[str]) -> dict[str, Any]:
    """A row for the template."""
    first = models[0][1].iloc[row]
    cells = [
        {"title": model.title, "state": model.state, "image": image, "shows": bool(table["shows"].iloc[row])}
        for (model, table), image in zip(models, pictures, strict=True)
    ]
    return {"prompt": first["prompt"], "seed": str(first["seed"]), "concept": first["concept"], "role": first["role"],
            "cells": cells}  # fmt: skip
