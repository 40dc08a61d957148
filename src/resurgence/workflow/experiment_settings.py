"""The settings of the jobs of experiments: cells, metrics, claims, and the images of a grid.

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
from resurgence.config.study import Cell, Erasure, Study
from resurgence.workflow.job_settings import without_kinds
from resurgence.workflow.report_settings import changed_objectives, controls, makers, seen_as


def claim_settings(claim: Claim) -> dict[str, Any]:
    """A claim; without metric, words, place and concept where it has none, as before there were these."""
    ranks = {"words": bool(claim.words), "place": bool(claim.words) or claim.place == "correlation"}
    settings = {key: v for key, v in dataclasses.asdict(claim).items() if ranks.get(key, True)}
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
    settings |= {"claims_by": shown.claims_by} if shown.claims_by != "paper" else {}
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
        settings |= columns(study, name)
    elif shown.kind == "words":
        settings["words"] = words(study, cells)
    elif shown.kind != "members":
        settings["models"] = models_of(study, name)
    if shown.kind == "line":
        settings["x"] = {row_of(study, c)["eraser"]: setting_of(study, c, shown.along, name) for c in cells}
    return settings


def columns(study: Study, name: str) -> dict[str, Any]:
    """Of each grid of an experiment the columns, label -> folder of images, for the first seeds; and, where the
    concepts that changed most are shown, the scores of erased and fine-tuned model.

    Several erasers stand side by side in one grid of a task and fine-tune, but for concepts that changed most, which
    are others for each eraser.
    """
    shown, cells = study.experiments[name], cells_of(study, name)
    first = (study.seeds.erase[0], study.seeds.finetune[0] if shown.finetunes else 0)
    together = len(shown.erasers) > 1 and shown.choose == "first"
    grids: dict[str, dict[str, str]] = {}
    scores: dict[str, list[str]] = {}
    for cell in (cell for cell in cells if (cell.erasure.seed, cell.seed) == first):
        row = row_of(study, cell)
        eraser = row.pop("eraser") if together else ""
        models: dict[str, str | Erasure | Cell] = {"base": cell.erasure.task}
        models[eraser or "erased"] = seen_as(study, cell.erasure)
        models |= {f"{eraser}, fine-tuned".removeprefix(", "): cell} if shown.finetunes else {}
        title = ", ".join(filter(None, row.values()))
        grids.setdefault(title, {}).update({key: study.folder(item, "images") for key, item in models.items()})
        if shown.choose == "largest":
            scores[title] = [study.folder(item, "scores") for item in list(models.values())[1:]]
    return {"columns": grids, "scores": scores}


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
