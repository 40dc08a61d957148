"""Experiments: the figures and tables of a study by name, each a choice of its cells.

An experiment computes no model of its own. It names tasks, erasers and fine-tunes that the study declares, what of them
is shown and along which axis, and what a paper says about it. `snakemake fig7` makes what fig7 needs and nothing else;
cells that several experiments show are computed once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from resurgence.config.fields import ConfigError, known
from resurgence.config.model_path import method_name

if TYPE_CHECKING:
    from resurgence.config.study import Cell, Erasure, Study


def row_of(study: Study, cell: Cell) -> dict[str, Any]:
    """Task, eraser and fine-tune of a cell as they are named in experiments."""
    erasure = cell.erasure
    return {
        "task": erasure.task,
        "eraser": method_name(erasure.eraser, erasure.variant),
        "finetune": method_name(cell.finetune, cell.variant),
    }


def cells_of(study: Study, name: str) -> list[Cell]:
    """The cells that an experiment shows, all seeds."""
    one = study.experiments[name]

    def wanted(cell: Cell) -> bool:
        row = row_of(study, cell)
        return row["task"] in one.tasks and row["eraser"] in one.erasers and row["finetune"] in one.finetunes

    return [cell for cell in study.cells() if wanted(cell)]


def models_of(study: Study, name: str) -> list[str]:
    """Names of the models whose scores an experiment reads: bases, erased and fine-tuned ones."""
    found = cells_of(study, name)
    items: list[str | Erasure | Cell] = [
        *dict.fromkeys(c.erasure.task for c in found),
        *dict.fromkeys(c.erasure for c in found),
        *found,
    ]
    return [str(study.model(item)) for item in items]


def setting_of(study: Study, cell: Cell, key: str, where: str) -> float:
    """The number that a setting of the cell's eraser has; ConfigError where it is none."""
    erasure = cell.erasure
    settings = study.eraser_settings(erasure.task, erasure.eraser, erasure.variant)
    known(where, key, settings)
    if isinstance(settings[key], bool) or not isinstance(settings[key], int | float):
        raise ConfigError(where, key, f"is {settings[key]!r} for {erasure.eraser}, not a number: it has no axis")
    return float(settings[key])


def shown_cells(study: Study, name: str, first: Iterable[Cell]) -> list[Cell]:
    """The cells that a grid shows: those of the first seeds."""
    chosen = set(cells_of(study, name))
    return [cell for cell in first if cell in chosen]
