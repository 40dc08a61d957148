"""The settings of the jobs that present a study: tables, figures, grids, experiments, cost.

They name artefacts by their folders; see job_settings.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

from resurgence.config.comparisons import differences
from resurgence.config.experiment import Claim
from resurgence.config.experiment_cells import NOT_TUNED, cells_of, models_of, row_of, setting_of
from resurgence.config.finetune_sets import MAKERS, OtherBase
from resurgence.config.model_path import method_name
from resurgence.config.study import Cell, Erasure, Study
from resurgence.workflow.job_settings import has_loras, loras_of, reads, without_kinds


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


def searched(study: Study) -> dict[str, str]:
    """Name of a picture -> folder of the erased model, of the first seed, with the words of sensitive.json."""
    configs = [(erasure, study.erasers[erasure.eraser].config) for erasure in first_erasures(study)]
    with_words = [erasure for erasure, config in configs if config is not None and config.has_words]
    return {f"{e.task}_{study.name_of(e)}": study.folder(e, "delta") for e in with_words}


def figures(study: Study) -> dict[str, Any]:
    """All figures but the grids."""
    settings = {"metrics": study.figures.metrics, "weights": weights(study), "tasks": study.tasks.names}
    return settings | {"searched": searched(study)}


def claim_settings(claim: Claim) -> dict[str, Any]:
    """A claim; without metric, words and concept where it has none, as before there were these."""
    of_words = ("words", "place")
    settings = {key: v for key, v in dataclasses.asdict(claim).items() if claim.words or key not in of_words}
    places = [settings, *(cells for key in ("of", "against") if (cells := settings[key]))]
    for place, key in zip(places, ("metric", "concept", "concept"), strict=False):
        if place[key] is None:
            del place[key]
    return settings


def experiment(study: Study, name: str) -> dict[str, Any]:
    """One figure or table of the study."""
    shown, cells = study.experiments[name], cells_of(study, name)
    fields = ("title", "kind", "along", "metric", "roles", "choose", "note", "tasks", "erasers", "finetunes")
    settings: dict[str, Any] = {key: getattr(shown, key) for key in fields} | {
        "name": name,
        "base": study.base.name,
        "statistics": dataclasses.asdict(study.statistics),
        "controls": controls(study),
        "claims": [claim_settings(claim) for claim in shown.claims],
        "differences": [differences(study, name, claim) for claim in shown.claims],
        "samples": study.figures.samples,
    }
    settings |= {key: value for key in ("metrics", "each_concept", "over_tasks") if (value := getattr(shown, key))}
    if shown.kind == "tuning":
        return settings | tuning(study, name)
    if shown.kind == "similarity":
        erased = [concept for task in shown.tasks for concept in study.task(task).erase]
        return settings | {"words": shown.words, "texts": (*dict.fromkeys((*erased, *shown.texts)),),
                           "clip": without_kinds(study, "clip")}  # fmt: skip
    if shown.kind != "members":
        tuned = [cell for cell in cells if cell.finetune != NOT_TUNED]
        settings |= makers(study, tuned) | changed_objectives(study, (cell.erasure for cell in cells))
    if shown.kind == "grid":
        settings["columns"], settings["scores"] = {}, {}
        first = first_cells(study) if shown.finetunes else [c for c in cells if c.erasure.seed == study.seeds.erase[0]]
        for cell in (cell for cell in first if cell in cells):
            erasure = cell.erasure
            models: dict[str, str | Erasure | Cell] = {"base": erasure.task, "erased": seen_as(study, erasure)}
            models |= {"fine-tuned": cell} if shown.finetunes else {}
            title = ", ".join(filter(None, row_of(study, cell).values()))
            settings["columns"][title] = {key: study.folder(item, "images") for key, item in models.items()}
            if shown.choose == "largest":
                settings["scores"][title] = [study.folder(item, "scores") for item in list(models.values())[1:]]
    elif shown.kind == "words":
        settings["words"] = words(study, cells)
    elif shown.kind != "members":
        settings["models"] = models_of(study, name)
    if shown.kind == "line":
        settings["x"] = {row_of(study, c)["eraser"]: setting_of(study, c, shown.along, name) for c in cells}
    return settings


def words(study: Study, cells: Iterable[Cell]) -> dict[str, str]:
    """Task and eraser -> folder of the erased model, of the first seed, whose words are shown."""
    first = [cell for cell in cells if cell.erasure.seed == study.seeds.erase[0]]
    return {", ".join(list(row_of(study, cell).values())[:2]): study.folder(cell.erasure, "delta") for cell in first}


def tuning(study: Study, name: str) -> dict[str, Any]:
    """The models of an experiment that tunes, and the settings of its erasers as the study writes them."""
    erasures = [cell.erasure for cell in cells_of(study, name)]
    written = {}
    for erasure in erasures:
        method = study.erasers[erasure.eraser]
        written[study.name_of(erasure)] = {**method.settings, **method.variants[erasure.variant].settings}
    return {"models": models_of(study, name), "settings": written, **changed_objectives(study, erasures)}


def experiment_reads(study: Study, name: str) -> list[str]:
    """Folders of the artefacts that an experiment reads: scores, images of a grid, or the terciles of its sets."""
    shown = study.experiments[name]
    if shown.kind == "similarity":
        return []
    if shown.kind == "members":
        return [study.folder(task, f"terciles/{set_name}") for task in shown.tasks for set_name in shown.sets]
    if shown.kind == "words":
        return list(words(study, cells_of(study, name)).values())
    if shown.kind == "grid":
        settings = experiment(study, name)
        groups = [*(columns.values() for columns in settings["columns"].values()), *settings["scores"].values()]
        return list(dict.fromkeys(itertools.chain.from_iterable(groups)))
    cells = cells_of(study, name)
    tuned = [cell for cell in cells if cell.finetune != NOT_TUNED]
    items = [*shown.tasks, *(seen_as(study, cell.erasure) for cell in cells), *tuned]
    folders = [study.folder(item, "scores") for item in items]
    if shown.kind == "weights":
        folders += [study.folder(cell, "geometry") for cell in cells if study.erasers[cell.erasure.eraser].config]
    return list(dict.fromkeys(folders))


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
    for erasure in first_erasures(study):
        name = study.name_of(erasure)
        shown: dict[str, str | Erasure | Cell] = {"base": erasure.task, f"erased: {name}": seen_as(study, erasure)}
        cells = (cell for cell in first_cells(study) if cell.erasure == erasure)
        shown |= {f"fine-tuned: {method_name(cell.finetune, cell.variant)}": cell for cell in cells}
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
    for task in study.tasks.names:
        items.append(task)
        for erasure in (erasure for erasure in first_erasures(study) if erasure.task == task):
            items += [seen_as(study, erasure), *(cell for cell in first_cells(study) if cell.erasure == erasure)]
    names = list(dict.fromkeys(str(study.model(item)) for item in items))
    settings = {"study": study.study, "base": study.base.name, "models": names, "level": study.statistics.level}
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
