"""Experiments: the figures and tables of a study by name, each a choice of its cells.

An experiment computes no models. It names tasks, erasers and fine-tunes of the study, the metric and axis that are
drawn, and the claims of a paper. `snakemake fig7` computes what fig7 needs and nothing else; cells that several
experiments show are computed once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resurgence.config.fields import ConfigError, known
from resurgence.config.model_path import method_name

if TYPE_CHECKING:
    from resurgence.config.study import Cell, Erasure, Study


def row_of(study: Study, cell: Cell) -> dict[str, Any]:
    """Task, eraser and fine-tune of a cell, by their names in experiments."""
    erasure = cell.erasure
    return {
        "task": erasure.task,
        "eraser": method_name(erasure.eraser, erasure.variant),
        "finetune": method_name(cell.finetune, cell.variant),
    }


def cells_of(study: Study, name: str) -> list[Cell]:
    """The cells that an experiment shows, all seeds."""
    shown = study.experiments[name]
    keys = ("task", "eraser", "finetune")
    pairs = ((cell, row_of(study, cell)) for cell in study.cells())
    return [cell for cell, row in pairs if all(row[key] in getattr(shown, f"{key}s") for key in keys)]


def erasures_of(study: Study, name: str) -> list[Erasure]:
    """The erased models that an experiment shows, all seeds."""
    shown = study.experiments[name]
    return [e for e in study.erasures() if e.task in shown.tasks and method_name(e.eraser, e.variant) in shown.erasers]


def models_of(study: Study, name: str) -> list[str]:
    """Names of the models whose scores an experiment reads: bases, erased and fine-tuned ones."""
    cells = cells_of(study, name)
    if study.experiments[name].kind == "tuning":
        erasures = erasures_of(study, name)
    else:
        erasures = [cell.erasure for cell in cells]
    items: list[str | Erasure | Cell] = [*(e.task for e in erasures), *erasures, *cells]
    return [str(study.model(item)) for item in dict.fromkeys(items)]


def setting_of(study: Study, cell: Cell, key: str, where: str) -> float:
    """The value of a setting of the cell's eraser; ConfigError for one that is not a number."""
    erasure = cell.erasure
    settings = study.eraser_settings(erasure.task, erasure.eraser, erasure.variant)
    known(where, key, settings)
    if isinstance(settings[key], bool) or not isinstance(settings[key], int | float):
        raise ConfigError(where, key, f"is {settings[key]!r} for {erasure.eraser}, not a number: it has no axis")
    return float(settings[key])
