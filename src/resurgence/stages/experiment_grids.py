"""An experiment that shows images: base, erased and fine-tuned models side by side on the same seeds."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from PIL import Image

from resurgence.config.scorers import metrics
from resurgence.figures.image_grids import first_rows, sample_grid
from resurgence.scorers import read_scores
from resurgence.stages.experiment_words import Result
from resurgence.stages.grids import last_images
from resurgence.stages.job import Job


def largest_changes(metric: str, erased: Path, finetuned: Path) -> list[str]:
    """Concepts in the order of how much their metric changes by fine-tuning, the largest change first.

    Args:
        erased, finetuned: folders of scores.
    """
    column = metrics()[metric].column
    means = []
    for folder in (erased, finetuned):
        rows, _ = read_scores(sorted(folder.glob("step-*"))[-1])
        means.append(rows[rows["role"] == "erase"].groupby("concept")[column].mean())
    return list((means[1] - means[0]).abs().sort_values(ascending=False, kind="stable").index)


def grid(job: Job) -> Result:
    """Grids of images one below the other: base, erased and fine-tuned models side by side on the same seeds."""
    settings, parts, shown = job.settings, [], []
    largest = settings["choose"] == "largest"
    # settings are sorted by key, so that 10 people come before 5; grids and columns have the order of the experiment
    names = (*settings["tasks"], *settings["erasers"], *settings["finetunes"])
    places = {name: place for place, name in enumerate(names)}

    def in_order(labelled: dict) -> dict:
        return dict(sorted(labelled.items(), key=lambda item: [places.get(part, -1) for part in item[0].split(", ")]))

    for title, models in in_order(settings["columns"]).items():
        columns = in_order(models)
        roles, most = tuple(settings["roles"]), None if largest else settings["samples"]
        sets = {name: last_images(folder, roles, most) for name, folder in columns.items()}
        if largest:
            concepts = largest_changes(settings["metric"], *map(Path, settings["scores"][title]))
            ranks = {concept: rank for rank, concept in enumerate(concepts)}
            for name, (prompts, images) in sets.items():
                order = prompts["concept"].map(ranks).fillna(len(ranks)).argsort(kind="stable").to_numpy()
                sets[name] = (prompts.iloc[order].reset_index(drop=True), images[order])
        prompts = next(iter(sets.values()))[0]
        for role in settings["roles"]:
            parts.append(sample_grid(sets, role, settings["samples"], f"{title}: {role}"))
            rows = prompts.iloc[first_rows(prompts, role, settings["samples"])]
            shown.append(rows[["concept", "prompt", "seed"]].assign(shown=title, role=role))
    canvas = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), "white")
    top = 0
    for part in parts:
        canvas.paste(part, (0, top))
        top += part.height
    rule = "the concepts that fine-tuning changed most" if largest else "the first concepts"
    heading = f"Shown by rule: {rule}, the first image of the first template of each, the same seed in a row."
    return Result(pd.concat(shown, ignore_index=True), canvas, heading=[heading])
