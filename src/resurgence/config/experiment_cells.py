"""Experiments: the figures and tables of a study by name, each a choice of its cells.

An experiment computes no models. It names tasks, erasers and fine-tunes of the study, the metric and axis that are
drawn, and the claims of a paper. `snakemake fig7` computes what fig7 needs and nothing else; cells that several
experiments show are computed once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resurgence.config.fields import ConfigError, known
from resurgence.config.model_path import DEFAULT, method_name

if TYPE_CHECKING:
    from resurgence.config.study import Cell, Erasure, Study

NOT_TUNED = ""
"""Name of the fine-tune of an erased model that an experiment without fine-tunes shows."""


def row_of(study: Study, cell: Cell) -> dict[str, Any]:
    """Task, eraser and fine-tune of a cell, by their names in experiments."""
    erasure = cell.erasure
    return {
        "task": erasure.task,
        "eraser": study.name_of(erasure),
        "finetune": method_name(cell.finetune, cell.variant),
    }


def cells_of(study: Study, name: str) -> list[Cell]:
    """The cells that an experiment shows, all seeds; if it has no fine-tunes, erased models as cells of NOT_TUNED."""
    from resurgence.config.study import Cell

    shown = study.experiments[name]
    tuned = study.cells() if shown.finetunes else (Cell(e, NOT_TUNED, DEFAULT, 0) for e in study.erasures())
    allowed = {"task": shown.tasks, "eraser": shown.erasers, "finetune": shown.finetunes or (NOT_TUNED,)}
    pairs = ((cell, row_of(study, cell)) for cell in tuned)
    return [cell for cell, row in pairs if all(row[key] in values for key, values in allowed.items())]


def models_of(study: Study, name: str) -> list[str]:
    """Names of the models whose scores an experiment reads: bases, erased and fine-tuned ones."""
    cells = cells_of(study, name)
    tuned = [cell for cell in cells if cell.finetune != NOT_TUNED]
    items: list[str | Erasure | Cell] = [*(c.erasure.task for c in cells), *(c.erasure for c in cells), *tuned]
    return [str(study.model(item)) for item in dict.fromkeys(items)]


def setting_of(study: Study, cell: Cell, key: str, where: str) -> float:
    """The value of a setting of the cell's eraser; ConfigError for one that is not a number."""
    erasure = cell.erasure
    settings = study.eraser_settings(erasure.task, erasure.eraser, erasure.variant)
    known(where, key, settings)
    if isinstance(settings[key], bool) or not isinstance(settings[key], int | float):
        raise ConfigError(where, key, f"is {settings[key]!r} for {erasure.eraser}, not a number: it has no axis")
    return float(settings[key])
