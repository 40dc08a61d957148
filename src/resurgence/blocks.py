"""The block of settings that each job gets: everything its result depends on, and nothing else.

A block is one JSON text with sorted keys. Snakemake compares it with that of the last run, and the manifest of the
result holds it, so a setting that a job does not read must not be in its block: changing it would run the job again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from resurgence.config import Task
from resurgence.declared import config_class, functions, needs
from resurgence.experiments import cells_of, models_of, row_of, setting_of, shown_cells
from resurgence.optimisation import Optimisation
from resurgence.study import Cell, Erasure, Study, printed

# settings of MACE that its LoRAs do not depend on: variants that differ in these alone share their LoRAs
FUSION = ("fuse_preserve_scale", "fusion", "preserve_retained", "max_relative_change")
LAST: list[Any] = []  # a study and its owners of LoRAs


def text(block: dict[str, Any]) -> str:
    """One line of JSON with sorted keys."""
    return json.dumps(block, sort_keys=True, ensure_ascii=False)


def base(study: Study) -> dict[str, Any]:
    """Which base a job loads."""
    return {"path": study.base.path, "revision": study.base.revision}


def part(task: Task, *keys: str) -> dict[str, Any]:
    """Some fields of a task."""
    return {key: getattr(task, key) for key in ("name", "kind", *keys)}


def prompts(study: Study, task: str) -> dict[str, Any]:
    """What is sampled in a task."""
    of = study.task(task)
    numbered = () if of.first_seed is None else ("first_seed",)
    general = {"general": path} if (path := study.general_of(task)) else {}
    return general | {"task": part(of, "erase", "retain", "synonyms", "templates", "seeds", *numbered)}


def prior_moments(study: Study) -> dict[str, Any]:
    """Second moment of the general captions."""
    return {"base": base(study), "corpus": "prior", "captions": study.moments.prior}


def domain_moments(study: Study, task: str) -> dict[str, Any]:
    """Second moment of the retain concepts in the caption templates."""
    of = study.task(task)
    corpus = {"corpus": "domain", "captions": study.templates_of(of.kind), "concepts": of.retain}
    return {"base": base(study), **corpus}


def images_of(study: Study, kind: str, concepts: Iterable[str], number: int) -> dict[str, Any]:
    """Images of concepts made by the base."""
    settings = study.concept_images
    shared = {key: getattr(study.sampling, key) for key in ("batch", "size")}
    sampling = shared | {key: getattr(settings, key) for key in ("steps", "guidance")}
    block = {"base": base(study), "kind": kind, "concepts": tuple(concepts), "per_concept": number}
    return block | {"sampling": sampling, "template": settings.template}


def concept_images(study: Study, task: str) -> dict[str, Any]:
    """Images of the erased concepts."""
    return images_of(study, "concept", study.task(task).erase, study.concept_images.per_concept)


def anchor_images(study: Study, task: str) -> dict[str, Any]:
    """Images of the concepts that the erased ones are mapped to, by any eraser that reads them."""
    readers = [e for e in study.erasures() if e.task == task and "anchors" in needs(study.erasers[e.eraser].module)]
    aims = {aim for e in readers for aim in study.task(task, e.eraser, e.variant).mapping.values()}
    return images_of(study, "anchor", sorted(aims), study.concept_images.per_anchor)


def retained_images(study: Study, task: str) -> dict[str, Any]:
    """Images of the retained concepts."""
    return images_of(study, "retained", study.task(task).retain, study.concept_images.per_retained)


def masks(study: Study, task: str) -> dict[str, Any]:
    """Where the concept is in each of these images."""
    return {"base": base(study), "concepts": study.task(task).erase, "masks": dataclasses.asdict(study.masks)}


def has_loras(study: Study, eraser: str) -> bool:
    """Whether an eraser trains LoRAs in a step of its own."""
    module = study.erasers[eraser].module
    return bool(module) and "train_loras" in functions(module)


def is_trained(study: Study, eraser: str) -> bool:
    """Whether an eraser is trained by the shared trainer, and so leaves a curve in its delta's folder."""
    module = study.erasers[eraser].module
    return bool(module) and issubclass(config_class(module), Optimisation)


def loras(study: Study, erasure: Erasure) -> dict[str, Any]:
    """LoRAs of the erased concepts: the settings without those of the fusion."""
    settings = study.eraser_settings(erasure.task, erasure.eraser, erasure.variant)
    kept = {key: value for key, value in settings.items() if key not in FUSION}
    task = study.task(erasure.task, erasure.eraser, erasure.variant)
    return {"base": base(study), "settings": kept, "task": part(task, "erase", "mapping"), "seed": erasure.seed}


def owners(study: Study) -> dict[Erasure, Erasure]:
    """Each erasure that trains LoRAs -> the first of the same eraser, task and seed whose LoRAs are the same."""
    first: dict[tuple, Erasure] = {}
    found = {}
    for erasure in study.erasures():
        if has_loras(study, erasure.eraser):
            key = (erasure.task, erasure.eraser, erasure.seed, text(loras(study, erasure)))
            found[erasure] = first.setdefault(key, erasure)
    return found


def loras_of(study: Study, erasure: Erasure) -> Erasure:
    """The first erasure of the same eraser, task and seed whose LoRAs are the same; often itself.

    Kept for the study asked for last: the rules ask once for each job.
    """
    if not LAST or LAST[0] is not study:
        LAST[:] = [study, owners(study)]
    if erasure not in LAST[1]:
        raise LookupError(f"{erasure} is not part of the study")
    return LAST[1][erasure]


def erase(study: Study, erasure: Erasure) -> dict[str, Any]:
    """The tensors of the base that an eraser changes."""
    return {
        "base": base(study),
        "method": study.erasers[erasure.eraser].module,
        "settings": study.eraser_settings(erasure.task, erasure.eraser, erasure.variant),
        "task": part(study.task(erasure.task, erasure.eraser, erasure.variant), "erase", "retain", "mapping"),
        "seed": erasure.seed,
        "delta_precision": study.base.delta_precision,
    }


def finetune_set(study: Study, task: str, name: str) -> dict[str, Any]:
    """Images of concepts that are not erased, made by the base."""
    chosen = study.finetune_sets[name]
    templates = study.task(task).templates if chosen.templates == "task" else chosen.templates
    numbered = {} if chosen.first_seed is None else {"first_seed": chosen.first_seed}
    return numbered | {
        "base": base(study),
        "concepts": study.finetune_concepts(name, task),
        "tercile": chosen.tercile is not None,
        "templates": templates,
        "images_per_prompt": chosen.images_per_prompt,
        "size": chosen.size,
        "sampling": {key: value for key, value in sampling(study).items() if key != "shard"},
    }


def terciles(study: Study, task: str, name: str) -> dict[str, Any]:
    """The concepts of a fine-tuning set that are drawn by their similarity to the erased ones."""
    given = part(study.task(task), "erase", "synonyms")
    return {"tercile": study.finetune_sets[name].tercile, "task": given, "clip": study.scorers["clip"]}


def sampling(study: Study) -> dict[str, Any]:
    """How images are sampled."""
    return {**dataclasses.asdict(study.sampling), "precision": study.base.precision}


def finetune(study: Study, cell: Cell) -> dict[str, Any]:
    """A fine-tuned model."""
    settings = study.finetune_settings(cell.finetune, cell.variant)
    told = {"settings": settings, "seed": cell.seed, "delta_precision": study.base.delta_precision}
    return {"base": base(study), **told}


def sample(study: Study) -> dict[str, Any]:
    """Images of a prompt set, made by any model."""
    return {"base": base(study), "sampling": sampling(study)}


def score(study: Study, task: str) -> dict[str, Any]:
    """Scores of images: the same block for every model of a task."""
    scorers = {name: {k: v for k, v in one.items() if k != "reference"} for name, one in study.scorers.items()}
    return {"scorers": scorers, "task": part(study.task(task), "erase", "retain", "labels")}


def reference(study: Study) -> dict[str, Any]:
    """Features of real images."""
    distance = study.scorers["frechet"]
    name = distance["features"]
    return {"scorer": name, "settings": study.scorers[name], "pictures": distance["reference"]}


def has_reference(study: Study) -> bool:
    """Whether generated images are compared with real ones."""
    return bool(study.scorers.get("frechet", {}).get("reference"))


def models(study: Study) -> list[str]:
    """Every model by its name in paths."""
    items = [*study.tasks.names, *study.erasures(), *study.cells()]
    return [study.model(item) for item in items]


def seen_as(study: Study, erasure: Erasure) -> str | Erasure:
    """Whose images show an erased model: its own, or the base's for the eraser that changes nothing."""
    return erasure if study.erasers[erasure.eraser].module else erasure.task


def tables(study: Study) -> dict[str, Any]:
    """All tables. Models are given by name only: the command line of a large study would be too long."""
    controls = [name for name, method in study.erasers.items() if not method.module]
    block = {"base": study.base.name, "models": models(study), "controls": controls}
    return block | {"statistics": dataclasses.asdict(study.statistics)}


def weights(study: Study) -> dict[str, str]:
    """Title -> folder of every training that is drawn: those of the first seeds."""
    found = {}
    for erasure in study.erasures():
        if erasure.seed == study.seeds.erase[0] and has_loras(study, erasure.eraser):
            owner = loras_of(study, erasure)
            found[f"{owner.task}: LoRAs of {printed(owner.eraser, owner.variant)}"] = study.folder(owner, "loras")
        if erasure.seed == study.seeds.erase[0] and is_trained(study, erasure.eraser):
            title = f"{erasure.task}: {printed(erasure.eraser, erasure.variant)}"
            found[title] = study.folder(erasure, "delta")
    for cell in first_cells(study):
        names = printed(cell.erasure.eraser, cell.erasure.variant), printed(cell.finetune, cell.variant)
        found[f"{cell.erasure.task}: {' + '.join(names)}"] = study.folder(cell, "weights")
    return found


def first_cells(study: Study) -> list[Cell]:
    """The cells of the first seeds."""
    first = (study.seeds.erase[0], study.seeds.finetune[0])
    return [cell for cell in study.cells() if (cell.erasure.seed, cell.seed) == first]


def figures(study: Study) -> dict[str, Any]:
    """All figures; the grids are apart."""
    return {"metrics": study.figures.metrics, "weights": weights(study), "tasks": study.tasks.names}


def experiment(study: Study, name: str) -> dict[str, Any]:
    """One figure or table of the study."""
    one = study.experiments[name]
    block = {"name": name, "base": study.base.name, "statistics": dataclasses.asdict(study.statistics)}
    block |= {key: getattr(one, key) for key in ("title", "kind", "along", "metric", "roles", "choose", "note")}
    block |= {key: getattr(one, key) for key in ("tasks", "erasers", "finetunes")}
    block |= {"controls": [key for key, method in study.erasers.items() if not method.module]}
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
        found += [study.folder(cell, "geometry") for cell in cells if study.erasers[cell.erasure.eraser].module]
    return list(dict.fromkeys(found))


def geometry(study: Study) -> dict[str, Any]:
    """Distances between the weights of base, erased and fine-tuned model."""
    return {"base": base(study)}


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
            name = printed(erasure.eraser, erasure.variant)
            shown: dict[str, str | Erasure | Cell] = {"base": erasure.task, f"erased: {name}": seen_as(study, erasure)}
            for cell in first_cells(study):
                if cell.erasure == erasure:
                    shown[f"fine-tuned: {printed(cell.finetune, cell.variant)}"] = cell
            columns[f"{erasure.task}/{name}"] = {title: study.folder(item, "images") for title, item in shown.items()}
    masked = {erasure.task for erasure in study.erasures() if "masks" in needs(study.erasers[erasure.eraser].module)}
    parts = ("concept_images", "masks")
    masks = {task: [study.folder(task, p) for p in parts] for task in study.tasks.names if task in masked}
    return {"columns": columns, "masks": masks, "samples": study.figures.samples}
