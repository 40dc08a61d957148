"""The settings of the jobs that present a study: tables, figures, grids, experiments, cost.

They name artefacts by their folders; see job_settings.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from resurgence.config.experiment_cells import row_of
from resurgence.config.finetune_sets import MAKERS, OtherBase
from resurgence.config.model_path import method_name
from resurgence.config.study import Cell, Erasure, Study
from resurgence.workflow.job_settings import has_loras, loras_of, reads


def models(study: Study) -> list[str]:
    """Every model by its name in paths."""
    items: list[str | Erasure | Cell] = [*study.tasks.names, *study.erasures(), *study.cells()]
    return [str(study.model(item)) for item in items]


def seen_as(study: Study, erasure: Erasure) -> str | Erasure:
    """The model whose images stand for an erased model: itself, or the base for the eraser that changes nothing."""
    return erasure if study.erasers[erasure.eraser].config else erasure.task


def controls(study: Study) -> list[str]:
    """The erasers that change nothing."""
    return [name for name, method in study.erasers.items() if method.config is None]


def tables(study: Study) -> dict[str, Any]:
    """All tables. Models are listed by name only: the command line of a large study would be too long."""
    settings = {"base": study.base.name, "models": models(study), "controls": controls(study)}
    settings |= makers(study, study.cells()) | changed_objectives(study, study.erasures())
    return settings | {"statistics": dataclasses.asdict(study.statistics)}


def changed_objectives(study: Study, erasures: Iterable[Erasure]) -> dict[str, Any]:
    """Eraser -> the settings by which its objective, or that of an erasure before it, is not the published one; empty
    if every objective is."""
    changed = {}
    for erasure in erasures:
        configs = [study.eraser_config(step.task, step.eraser, step.variant) for step in study.chain(erasure)]
        texts = dict.fromkeys(config.changed_objective() for config in configs if config is not None)
        if text := "; ".join(filter(None, texts)):
            changed[study.name_of(erasure)] = text
    return {"changed_objectives": changed} if changed else {}


def makers(study: Study, cells: Iterable[Cell]) -> dict[str, Any]:
    """Who made the images of the fine-tuning set of each fine-tune; empty where the base made all."""
    rows = {}
    for finetune, variant in dict.fromkeys((cell.finetune, cell.variant) for cell in cells):
        images = study.finetune_sets[study.set_of(finetune, variant)]
        by = f" ({images.made_by.base})" if isinstance(images.made_by, OtherBase) else ""
        rows[method_name(finetune, variant)] = [study.set_of(finetune, variant), MAKERS[images.maker] + by]
    return {"makers": rows} if any(by != MAKERS["base"] for _, by in rows.values()) else {}


def weights(study: Study) -> dict[str, str]:
    """Title -> folder of every training whose curve is drawn: those of the first seeds."""
    folders = {}
    for erasure in first_erasures(study):
        if has_loras(study, erasure.eraser):
            owner = loras_of(study, erasure)
            folders[f"{owner.task}: LoRAs of {study.name_of(owner)}"] = study.folder(owner, "loras")
        config = study.erasers[erasure.eraser].config
        if config is not None and config.has_curve:
            title = f"{erasure.task}: {study.name_of(erasure)}"
            folders[title] = study.folder(erasure, "delta")
    for cell in first_cells(study):
        row = row_of(study, cell)
        folders[f"{row['task']}: {row['eraser']} + {row['finetune']}"] = study.folder(cell, "weights")
    return folders


def first_erasures(study: Study) -> list[Erasure]:
    """The erased models of the first seed."""
    return [erasure for erasure in study.erasures() if erasure.seed == study.seeds.erase[0]]


def first_cells(study: Study) -> list[Cell]:
    """The cells of the first seeds."""
    first = (study.seeds.erase[0], study.seeds.finetune[0])
    return [cell for cell in study.cells() if (cell.erasure.seed, cell.seed) == first]


def first_fine_tuned(study: Study) -> dict[Erasure, list[Cell]]:
    """Erased model -> its cells of the first seeds, where it has any."""
    cells: dict[Erasure, list[Cell]] = {}
    for cell in first_cells(study):
        cells.setdefault(cell.erasure, []).append(cell)
    return cells


def searched(study: Study) -> dict[str, str]:
    """Name of a picture -> folder of the erased model, of the first seed, with the words of sensitive.json."""
    configs = [(erasure, study.erasers[erasure.eraser].config) for erasure in first_erasures(study)]
    with_words = [erasure for erasure, config in configs if config is not None and config.has_words]
    return {f"{e.task}_{study.name_of(e)}": study.folder(e, "delta") for e in with_words}


def figures(study: Study) -> dict[str, Any]:
    """All figures but the grids."""
    settings = {"metrics": study.figures.metrics, "weights": weights(study), "tasks": study.tasks.names}
    return settings | {"searched": searched(study)}


def whole(study: Study) -> list[str]:
    """Files of the default target: the pages of a study, of one that fine-tunes nothing the page of its experiments."""
    if any(study.cells()):
        return ["results/index.html", "results/report.html"]
    return ["results/experiments/results.md"]


def results(study: Study) -> dict[str, Any]:
    """All experiments in their order."""
    level = study.statistics.level
    return {"study": study.study, "base": study.base.name, "experiments": list(study.experiments), "level": level}


def cost(study: Study) -> dict[str, Any]:
    """Cost of the study, and comparison of the erasers."""
    return {"metrics": study.figures.metrics}


def grids(study: Study) -> dict[str, Any]:
    """Grids of images: for each erased model of the first seed its base, itself and its fine-tuned models."""
    columns: dict[str, dict[str, str]] = {}
    cells = first_fine_tuned(study)
    for erasure in first_erasures(study):
        name = study.name_of(erasure)
        shown: dict[str, str | Erasure | Cell] = {"base": erasure.task, f"erased: {name}": seen_as(study, erasure)}
        shown |= {f"fine-tuned: {method_name(c.finetune, c.variant)}": c for c in cells.get(erasure, ())}
        columns[f"{erasure.task}/{name}"] = {title: study.folder(item, "images") for title, item in shown.items()}
    masked = {erasure.task for erasure in study.erasures() if "masks" in reads(study, erasure)}
    parts = ("concept_images", "masks")
    masks = {task: [study.folder(task, p) for p in parts] for task in study.tasks.names if task in masked}
    return {"columns": columns, "masks": masks, "samples": study.figures.samples}


def index(study: Study) -> dict[str, Any]:
    """The page on which the study opens: for each task its base, and each erased model followed by its fine-tuned ones.

    Models are of the first seeds, each once: a control that changes nothing is its base.
    """
    items: list[str | Erasure | Cell] = []
    cells = first_fine_tuned(study)
    for task in study.tasks.names:
        items.append(task)
        for erasure in (erasure for erasure in first_erasures(study) if erasure.task == task):
            items += [seen_as(study, erasure), *cells.get(erasure, ())]
    names = list(dict.fromkeys(str(study.model(item)) for item in items))
    named = {"study": study.study, "base": study.base.name, "models": names}
    settings: dict[str, Any] = {**named, "level": study.statistics.level}
    if blurred := [task for task in study.tasks.names if study.task(task).is_sensitive]:
        settings["sensitive"] = blurred
    return settings | makers(study, first_cells(study)) | changed_objectives(study, first_erasures(study))


def report(study: Study) -> dict[str, Any]:
    """The whole configuration, for the Snakemake that writes the report, without the device: it changes nothing."""
    base = {key: value for key, value in study.source["base"].items() if key != "device"}
    return {**study.source, "base": base}


Picture = tuple[str, str, str, dict[str, str]]
"""Path, category and caption of a picture or table of the report, and its labels."""


def pictures(study: Study) -> dict[str, list[Picture]]:
    """The pictures and tables of the report, by the rule that writes them."""
    metrics, shown, titles = study.figures.metrics, grids(study), weights(study)
    figures: list[Picture] = [
        (f"results/figures/{stem}_{metric}.png", category, caption, {"content": f"{title}, {metric.replace('_', ' ')}"})
        for stem, category, caption, title in (
            ("before_after", "Overview", "before_after", "before and after"),
            ("compare", "Overview", "compare", "all erasers"),
            ("resurgence", "Curves", "resurgence_steps", "resurgence over steps"),
            ("steps", "Curves", "steps", "metric over steps"),
        )
        for metric in metrics
    ]
    trained = [name for name in study.tasks.names if any(title.startswith(f"{name}: ") for title in titles)]
    figures += [(f"results/figures/training_{name}.png", "Training", "training", {"task": name}) for name in trained]
    figures += [
        (f"results/figures/sensitive_{name}.png", "Sensitive concepts", "sensitive", {"model": name})
        for name in searched(study)
    ]
    page = "results/tables/resurgence.html"
    figures.append((page, "Overview", "resurgence", {"content": "tables of all metrics"}))
    cost: list[Picture] = [("results/cost/cost.png", "Cost", "cost", {"content": "seconds by stage"})]
    for metric in metrics:
        content = f"all erasers: resurgence, seconds, size, {metric.replace('_', ' ')}"
        cost.append((f"results/cost/compare_{metric}.png", "Cost", "price", {"content": content}))
    images: list[Picture] = [
        (f"results/grids/{name}/{role}.png", "Samples", "samples", {"model": name, "concepts": concepts})
        for name in shown["columns"]
        for role, concepts in (("erase", "erased"), ("retain", "retained"))
    ]
    images += [(f"results/grids/{name}/masks.png", "Masks", "masks", {"task": name}) for name in shown["masks"]]
    stem, labels = "results/experiments/{experiment}/{experiment}", {"experiment": "{experiment}"}
    experiment: list[Picture] = [
        (f"{stem}.{kind}", "Experiments", "experiment", labels | {"file": name})
        for kind, name in (("png", "figure"), ("csv", "table"))
    ]
    return {"figures": figures, "cost": cost, "grids": images, "experiment": experiment}


def cost_files(study: Study) -> list[str]:
    """The tables of the cost, and the record of all runs."""
    compared = [f"compare_{metric}.{kind}" for metric in study.figures.metrics for kind in ("csv", "md")]
    return [f"results/cost/{name}" for name in ("cost.csv", *compared, "runs.json")]
