"""An experiment of the study: which cells a figure or table shows, and what a paper claims about them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from resurgence.config.fields import ConfigError, at_least, known, unique

CATEGORIES = ("task", "eraser", "finetune")


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
