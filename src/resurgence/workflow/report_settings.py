"""The blocks of settings of what presents a study: tables, figures, grids, experiments, cost.

They name artefacts by their folders; how a block is made and compared is told in blocks.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from resurgence.config.experiment_cells import cells_of, models_of, row_of, setting_of, shown_cells
from resurgence.config.model_path import method_name
from resurgence.config.study import Cell, Erasure, Study
from resurgence.workflow.job_settings import has_loras, loras_of, reads


def models(study: Study) -> list[str]:
    """Every model by its name in paths."""
    items: list[str | Erasure | Cell] = [*study.tasks.names, *study.erasures(), *study.cells()]
    return [str(study.model(item)) for item in items]


def seen_as(study: Study, erasure: Erasure) -> str | Erasure:
    """Whose images show an erased model: its own, or the base's for the eraser that changes nothing."""
    return erasure if study.erasers[erasure.eraser].config else erasure.task


def tables(study: Study) -> dict[str, Any]:
    """All tables. Models are given by name only: the command line of a large study would be too long."""
    controls = [name for name, method in study.erasers.items() if method.config is None]
    block = {"base": study.base.name, "models": models(study), "controls": controls}
    return block | {"statistics": dataclasses.asdict(study.statistics)}


def weights(study: Study) -> dict[str, str]:
    """Title -> folder of every training that is drawn: those of the first seeds."""
    found = {}
    for erasure in study.erasures():
        if erasure.seed == study.seeds.erase[0] and has_loras(study, erasure.eraser):
            owner = loras_of(study, erasure)
            found[f"{owner.task}: LoRAs of {method_name(owner.eraser, owner.variant)}"] = study.folder(owner, "loras")
        config = study.erasers[erasure.eraser].config
        if erasure.seed == study.seeds.erase[0] and config is not None and config.has_curve:
            title = f"{erasure.task}: {method_name(erasure.eraser, erasure.variant)}"
            found[title] = study.folder(erasure, "delta")
    for cell in first_cells(study):
        names = method_name(cell.erasure.eraser, cell.erasure.variant), method_name(cell.finetune, cell.variant)
        found[f"{cell.erasure.task}: {' + '.join(names)}"] = study.folder(cell, "weights")
    return found


def first_cells(study: Study) -> list[Cell]:
    """The cells of the first seeds."""
    first = (study.seeds.erase[0], study.seeds.finetune[0])
    return [cell for cell in study.cells() if (cell.erasure.seed, cell.seed) == first]


def searched(study: Study) -> dict[str, str]:
    """Name of a picture -> folder of the erased model, of the first seed, with the words of sensitive.json."""
    first = [e for e in study.erasures() if e.seed == study.seeds.erase[0]]
    chosen = [e for e in first if (config := study.erasers[e.eraser].config) is not None and config.has_words]
    return {f"{e.task}_{method_name(e.eraser, e.variant)}": study.folder(e, "delta") for e in chosen}


def figures(study: Study) -> dict[str, Any]:
    """All figures; the grids are apart."""
    block = {"metrics": study.figures.metrics, "weights": weights(study), "tasks": study.tasks.names}
    return block | {"searched": searched(study)}


def experiment(study: Study, name: str) -> dict[str, Any]:
    """One figure or table of the study."""
    one = study.experiments[name]
    block: dict[str, Any] = {"name": name, "base": study.base.name}
    block |= {"statistics": dataclasses.asdict(study.statistics)}
    block |= {key: getattr(one, key) for key in ("title", "kind", "along", "metric", "roles", "choose", "note")}
    block |= {key: getattr(one, key) for key in ("tasks", "erasers", "finetunes")}
    block |= {"controls": [key for key, method in study.erasers.items() if method.config is None]}
    block |= {"claims": [dataclasses.asdict(claim) for claim in one.claims], "samples": study.figures.samples}
    if one.kind == "grid":
        block["columns"], block["scores"] = {}, {}
        for cell in shown_cells(study, name, first_cells(study)):
            own = {"base": cell.erasure.task, "erased": seen_as(study, cell.erasure), "fine-tuned": cell}
            title = ", ".join(row_of(study, cell).values())
            block["columns"][title] = {key: study.folder(item, "images") for key, item in own.items()}
            if one.choose == "largest":
                block["scores"][title] = [study.folder(item, "scores") for item in list(own.values())[1:]]
    elif one.kind != "members":
        block["models"] = models_of(study, name)
    if one.kind == "line":
        found = cells_of(study, name)
        block["x"] = {row_of(study, c)["eraser"]: setting_of(study, c, one.along, name) for c in found}
    return block


def experiment_reads(study: Study, name: str) -> list[str]:
    """Folders of the artefacts that an experiment reads: scores, images of a grid, or the terciles of its sets."""
    one, block = study.experiments[name], experiment(study, name)
    if one.kind == "members":
        return [study.folder(task, f"terciles/{chosen}") for task in one.tasks for chosen in one.sets]
    if one.kind == "grid":
        found = [folder for columns in block["columns"].values() for folder in columns.values()]
        return list(dict.fromkeys(found + [folder for folders in block["scores"].values() for folder in folders]))
    cells = cells_of(study, name)
    items = [*one.tasks, *(seen_as(study, cell.erasure) for cell in cells), *cells]
    found = [study.folder(item, "scores") for item in items]
    if one.kind == "weights":
        found += [study.folder(cell, "geometry") for cell in cells if study.erasers[cell.erasure.eraser].config]
    return list(dict.fromkeys(found))


def results(study: Study) -> dict[str, Any]:
    """All experiments in their order."""
    return {"study": study.study, "base": study.base.name, "experiments": list(study.experiments)}


def cost(study: Study) -> dict[str, Any]:
    """What the study cost, and erasers compared."""
    return {"metrics": study.figures.metrics}


def grids(study: Study) -> dict[str, Any]:
    """Grids of images: for each erased model of the first seed its base, itself and its fine-tuned models."""
    columns: dict[str, dict[str, str]] = {}
    for erasure in study.erasures():
        if erasure.seed == study.seeds.erase[0]:
            name = method_name(erasure.eraser, erasure.variant)
            shown: dict[str, str | Erasure | Cell] = {"base": erasure.task, f"erased: {name}": seen_as(study, erasure)}
            for cell in first_cells(study):
                if cell.erasure == erasure:
                    shown[f"fine-tuned: {method_name(cell.finetune, cell.variant)}"] = cell
            columns[f"{erasure.task}/{name}"] = {title: study.folder(item, "images") for title, item in shown.items()}
    masked = {erasure.task for erasure in study.erasures() if "masks" in reads(study, erasure)}
    parts = ("concept_images", "masks")
    masks = {task: [study.folder(task, p) for p in parts] for task in study.tasks.names if task in masked}
    return {"columns": columns, "masks": masks, "samples": study.figures.samples}


def report(study: Study) -> dict[str, Any]:
    """The whole configuration, for the Snakemake that makes the report; the device makes no difference to it."""
    base = {key: value for key, value in study.given["base"].items() if key != "device"}
    return {**study.given, "base": base}


Picture = tuple[str, str, str, dict[str, str]]
"""Path, category and caption of a picture of the report, and its labels."""


def pictures(study: Study) -> dict[str, list[Picture]]:
    """The pictures that the report shows, by the rule that draws them."""
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
    return {"figures": figures, "cost": cost, "grids": images}
