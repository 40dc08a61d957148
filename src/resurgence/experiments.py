"""Experiments: the figures and tables of a study by name, each a choice of its cells.

An experiment computes no model of its own. It names tasks, erasers and fine-tunes that the study declares, what of them
is shown and along which axis, and what a paper says about it. `snakemake fig7` makes what fig7 needs and nothing else;
cells that several experiments show are computed once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from resurgence.config import ConfigError, at_least, known, unique

if TYPE_CHECKING:
    from resurgence.study import Cell, Study

EXPERIMENT = re.compile(r"[a-z][a-z0-9_]*")  # becomes the name of a rule
CATEGORIES = ("task", "eraser", "finetune")
# the rules of the workflow, whose names no experiment may take
RULES = {
    "all", "anchor_images", "closed_form", "coco_annotations", "coco_captions", "coco_sample", "concept_images", "cost",
    "data", "domain_moments", "erase", "erased", "experiment", "figures", "finetune", "finetune_set", "finetuned",
    "geometry", "grids", "images", "loras", "masks", "presented", "prior_moments", "prompts", "reference_features",
    "report", "results", "retained_images", "sample", "score", "scores",
    "tables", "terciles", "world", "world_autoencoder", "world_base", "world_clip", "world_drawings",
    "world_quality", "world_recogniser",
}  # fmt: skip


@dataclass(frozen=True)
class Cells:
    """Some of an experiment's rows, all seeds together; null: all of them."""

    task: str | None = None
    eraser: str | None = None  # or eraser.variant
    finetune: str | None = None  # or finetune.variant
    role: str = "erase"

    def holds(self, row: dict[str, Any]) -> bool:
        """Whether a row belongs to these."""
        own = dataclasses.asdict(self)
        return all(wanted is None or row[key] == wanted for key, wanted in own.items())


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper and the number that decides it: a value of some cells, or its difference to others."""

    says: str
    of: Cells
    expect: Literal["above", "below", "equal"]  # `than`; equal: within the margin of it
    against: Cells | None = None  # null: the value itself
    value: Literal["base", "erased", "finetuned", "resurgence"] = "resurgence"
    than: float = 0.0
    margin: float = 5.0  # in units of the metric: what is too small to matter

    def __post_init__(self) -> None:
        at_least("margin", self.margin, 0)


@dataclass(frozen=True)
class Experiment:
    """What one figure or table shows."""

    title: str
    kind: Literal["bars", "line", "curves", "heatmap", "grid", "members", "weights"]
    tasks: tuple[str, ...]
    erasers: tuple[str, ...] = ()  # eraser (its default variant), or eraser.variant
    finetunes: tuple[str, ...] = ()  # likewise
    along: str = "task"  # the axis of bars: task, eraser or finetune; of a line: a setting of the eraser
    metric: str = "recogniser_accuracy"
    roles: tuple[str, ...] = ("erase",)
    sets: tuple[str, ...] = ()  # members: the fine-tuning sets whose concepts are listed
    choose: Literal["first", "largest"] = "first"  # grid: the first concepts, or those that changed most
    note: str = ""  # what differs from the paper, said below the figure
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        for key in ("tasks", "erasers", "finetunes", "roles", "sets"):
            unique(key, getattr(self, key))
        needed = ("tasks", "sets") if self.kind == "members" else ("tasks", "erasers", "finetunes", "roles")
        for key in needed:
            if not getattr(self, key):
                raise ConfigError(key, [], f"must not be empty for {self.kind}; name at least one")
        if self.kind == "bars":
            known("along", self.along, CATEGORIES)


def check_experiments(study: Study) -> None:
    """Raise ConfigError for an experiment that names what the study does not have."""
    erasers = {f"{e}{dot(v)}" for e, m in study.erasers.items() for v in m.variants}
    finetunes = {f"{f}{dot(v)}" for f, m in study.finetunes.items() for v in m.variants}
    for name, one in study.experiments.items():
        place = f"experiments.{name}"
        if not EXPERIMENT.fullmatch(name):
            raise ConfigError("experiments", name, "use small letters, digits and _: it becomes the name of a rule")
        if name in RULES:
            raise ConfigError("experiments", name, "is the name of a rule of the workflow; choose another")
        for key, names in (("tasks", study.tasks.names), ("erasers", erasers), ("finetunes", finetunes)):
            for value in getattr(one, key):
                known(f"{place}.{key}", value, names)
        for value in one.sets:
            known(f"{place}.sets", value, study.finetune_sets)
        if one.kind == "members":
            continue
        found = cells_of(study, name)
        rows = [row_of(study, cell) for cell in found]
        for key, values in (("task", one.tasks), ("eraser", one.erasers), ("finetune", one.finetunes)):
            for value in values:
                if not any(row[key] == value for row in rows):
                    raise ConfigError(
                        f"{place}.{key}s", value, "has no cell with the others named here; look at the limits "
                        "(tasks, erasers) of its variants"
                    )  # fmt: skip
        for number, claim in enumerate(one.claims):
            for key, chosen in (("of", claim.of), ("against", claim.against)):
                if chosen and not any(chosen.holds({**row, "role": r}) for row in rows for r in one.roles):
                    where = f"{place}.claims[{number}].{key}"
                    raise ConfigError(where, dataclasses.asdict(chosen), "is no row of this experiment; see its lists")
        if one.kind == "line":
            for cell in found:
                setting_of(study, cell, one.along, f"{place}.along")


def dot(variant: str) -> str:
    """`.variant`, or nothing for the default."""
    return "" if variant == "default" else f".{variant}"


def row_of(study: Study, cell: Cell) -> dict[str, Any]:
    """Task, eraser and fine-tune of a cell as they are named in experiments."""
    erasure = cell.erasure
    return {
        "task": erasure.task,
        "eraser": f"{erasure.eraser}{dot(erasure.variant)}",
        "finetune": f"{cell.finetune}{dot(cell.variant)}",
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
    items = [*dict.fromkeys(c.erasure.task for c in found), *dict.fromkeys(c.erasure for c in found), *found]
    return [study.model(item) for item in items]


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
