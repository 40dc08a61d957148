"""An experiment of the study: the cells that a figure or table shows, and the claims of a paper about them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from resurgence.config.fields import ConfigError, NotNegative, known, unique

CATEGORIES = ("task", "eraser", "finetune")
OF_ERASED = ("bars", "line", "table", "histogram", "grid", "words")  # may show erased models alone


@dataclass(frozen=True)
class Cells:
    """A part of an experiment's rows, all seeds together; null: any value."""

    task: str | None = None
    """Name of a task."""
    eraser: str | None = None
    """Eraser, or eraser.variant."""
    finetune: str | None = None
    """Fine-tune, or fine-tune.variant."""
    role: str = "erase"
    """Role of the prompts: erase, retain, synonym or general."""
    concept: str | None = None
    """A concept, of an experiment with each_concept."""

    def holds(self, row: dict[str, Any]) -> bool:
        """Whether a row is one of these."""
        return all(value is None or row.get(key) == value for key, value in dataclasses.asdict(self).items())


@dataclass(frozen=True)
class Claim:
    """A claim of a paper and the number that decides it: a value of some cells, or its difference to others."""

    says: str
    """The sentence."""
    of: Cells
    """The rows whose value decides."""
    expect: Literal["above", "below", "equal"]
    """Above or below `than`; equal: within the margin of it."""
    against: Cells | None = None
    """The rows whose value is subtracted; null: the value itself."""
    value: Literal["base", "erased", "finetuned", "resurgence"] = "resurgence"
    """The metric of the base, the erased or the fine-tuned model, or the difference of the last two."""
    than: float = 0.0
    """Reference of the comparison, in units of the metric."""
    margin: NotNegative = 5.0
    """Differences up to this are negligible, in units of the metric."""
    metric: str | None = None
    """A metric of a table; null: its first."""


@dataclass(frozen=True)
class Experiment:
    """One figure or table."""

    title: str
    """Title of the figure."""
    kind: Literal[
        "bars", "line", "curves", "heatmap", "grid", "members", "weights", "table", "histogram", "words", "tuning"
    ]
    """Type of the figure."""
    tasks: tuple[str, ...]
    """Tasks of the study."""
    erasers: tuple[str, ...] = ()
    """Erasers (their default variants), or eraser.variant."""
    finetunes: tuple[str, ...] = ()
    """Fine-tunes (their default variants), or fine-tune.variant; []: none, unless curves, heatmap or weights."""
    along: str = "task"
    """The axis of bars: task, eraser or finetune; of a line: a setting of the eraser."""
    metric: str = "recogniser_accuracy"
    """A metric of the scorers."""
    metrics: tuple[str, ...] = ()
    """Of a table: its metrics, in the order of its columns."""
    each_concept: bool = False
    """Of a table: a column for each concept of the roles, also of a Fréchet distance."""
    over_tasks: bool = False
    """Of bars and tables: the mean over the tasks, which are the random units, as the splits of EAP are."""
    roles: tuple[str, ...] = ("erase",)
    """Roles of the prompts."""
    sets: tuple[str, ...] = ()
    """Of members: the fine-tuning sets whose concepts are listed."""
    choose: Literal["first", "largest"] = "first"
    """Of a grid: the first concepts, or those that changed most."""
    note: str = ""
    """Differences from the paper, printed below the figure."""
    claims: tuple[Claim, ...] = ()
    """Claims of the paper, and the numbers that decide them."""

    def __post_init__(self) -> None:
        for key in ("tasks", "erasers", "finetunes", "roles", "sets"):
            unique(key, getattr(self, key))
        tuned = () if self.kind in OF_ERASED else ("finetunes",)
        others = {"members": ("tasks", "sets"), "tuning": ("tasks", "erasers")}
        for key in others.get(self.kind, ("tasks", "erasers", "roles", *tuned)):
            if not getattr(self, key):
                raise ConfigError(key, [], f"must not be empty for {self.kind}; name at least one")
        shown = {"finetunes": list(self.finetunes), "claims": [claim.says for claim in self.claims]}
        for key, names in shown.items() if self.kind == "tuning" else ():
            if names:
                remedy = "has no place in tuning, which compares erased models before any fine-tuning; remove it"
                raise ConfigError(key, names, remedy)
        if self.kind == "words" and self.finetunes:
            raise ConfigError("finetunes", list(self.finetunes), "have no words, which are those of erasers; remove it")
        if self.choose == "largest" and not self.finetunes:
            raise ConfigError("choose", "largest", "is by the change in fine-tuning, and none is named; write first")
        if self.kind == "bars":
            known("along", self.along, CATEGORIES if self.finetunes else CATEGORIES[:2])
        self._check_table()

    @property
    def shown_metrics(self) -> tuple[str, ...]:
        """The metrics that it shows; a claim without one is about the first."""
        return self.metrics if self.kind == "table" else (self.metric,)

    def _check_table(self) -> None:
        unique("metrics", self.metrics)
        if (self.kind == "table") != bool(self.metrics):
            remedy = "must not be empty for a table; name at least one" if self.kind == "table" else (
                f"are columns of a table; write `metric` for {self.kind}"
            )  # fmt: skip
            raise ConfigError("metrics", list(self.metrics), remedy)
        if self.each_concept and (self.kind != "table" or self.over_tasks):
            raise ConfigError("each_concept", True, "is for a table of single tasks; remove it, or over_tasks")
        bars_of_tasks = self.kind == "bars" and self.along == "task"
        if self.over_tasks and (self.kind not in ("bars", "table") or len(self.tasks) < 2 or bars_of_tasks):
            raise ConfigError("over_tasks", True, "is for tables and for bars along eraser or finetune; name two tasks")
        self._check_claims()

    def _check_claims(self) -> None:
        for number, claim in enumerate(self.claims):
            if not self.finetunes and claim.value in ("finetuned", "resurgence"):
                remedy = "is of a fine-tuned model, and the experiment has none; write erased, or name finetunes"
                raise ConfigError(f"claims[{number}].value", claim.value, remedy)
            if claim.metric is not None:
                known(f"claims[{number}].metric", claim.metric, self.shown_metrics)
            for key, cells in (("of", claim.of), ("against", claim.against)):
                if self.over_tasks and cells is not None and cells.task is not None:
                    remedy = "is averaged with the other tasks; leave it out, or over_tasks"
                    raise ConfigError(f"claims[{number}].{key}.task", cells.task, remedy)
