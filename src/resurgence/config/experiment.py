"""An experiment of the study: the cells that a figure or table shows, and the claims of a paper about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from resurgence.config.fields import ConfigError, NotNegative, known, unique

CATEGORIES = ("task", "eraser", "finetune")
TUNED = ("bars", "line", "curves", "heatmap", "weights", "table", "histogram")  # kinds of scores, also fine-tuned ones
MEASURED = (*TUNED, "scatter")  # kinds that are computed from scores
PER_CONCEPT = ("heatmap", "histogram", "grid", "scatter")  # kinds whose metric is the mean of a column of the scores
RANKED = ("histogram", "scatter")  # kinds whose claims may be about the place of words in a vocabulary
OF_FINETUNED = ("curves", "heatmap", "weights")  # kinds that cannot show erased models alone
USED_BY = {  # key -> the kinds in which it has an effect
    "erasers": (*MEASURED, "grid", "words", "tuning"),
    "finetunes": (*TUNED, "grid"),
    "roles": (*MEASURED, "grid"),
    "along": ("bars", "line"),
    "metric": (*(kind for kind in MEASURED if kind != "table"), "grid", "tuning"),
    "metrics": ("table",),
    "each_concept": ("table",),
    "over_tasks": ("bars", "line", "table"),
    "sets": ("members",),
    "words": ("similarity",),
    "texts": ("similarity",),
    "choose": ("grid",),
    "claims": MEASURED,
    "claims_by": MEASURED,
}


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
    words: tuple[str, ...] = ()
    """Of a histogram or scatter: concepts or general prompts whose place among all of the role decides, not their
    value."""
    place: Literal["quantile", "off_middle", "correlation"] = "quantile"
    """Of words: the mean of their quantiles q among the values of the role, between 0 and 1; or of |q - 0.5|. Of a
    scatter without words: Spearman's rank correlation of value and similarity over the role, without what is erased."""


@dataclass(frozen=True)
class Experiment:
    """One figure or table."""

    title: str
    """Title of the figure."""
    kind: Literal[
        "bars",
        "line",
        "curves",
        "heatmap",
        "grid",
        "members",
        "weights",
        "table",
        "histogram",
        "words",
        "tuning",
        "scatter",
        "similarity",
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
    """Of bars, lines and tables: the mean over the tasks, which are the random units, as the splits of EAP are."""
    roles: tuple[str, ...] = ("erase",)
    """Roles of the prompts."""
    sets: tuple[str, ...] = ()
    """Of members: the fine-tuning sets whose concepts are listed."""
    words: tuple[str, ...] = ()
    """Of a similarity: the words that are compared, its lines."""
    texts: tuple[str, ...] = ()
    """Of a similarity: what they are compared with beside the erased concepts of the tasks, its columns."""
    choose: Literal["first", "largest"] = "first"
    """Of a grid: the first concepts, or those that changed most."""
    note: str = ""
    """Differences from the paper, printed below the figure."""
    claims: tuple[Claim, ...] = ()
    """Claims of the paper, or of the study itself, and the numbers that decide them."""
    claims_by: Literal["paper", "study"] = "paper"
    """Who makes the claims; study: no paper does, and the page says so."""

    @classmethod
    def keys_without_effect(cls, values: Mapping[str, Any]) -> set[str]:
        """The keys that have no effect in the kind that is written."""
        return {key for key, kinds in USED_BY.items() if "kind" in values and values["kind"] not in kinds}

    def __post_init__(self) -> None:
        for key in ("tasks", "erasers", "finetunes", "roles", "sets", "metrics", "words", "texts"):
            unique(key, getattr(self, key))
        needed = (
            "tasks",
            "erasers",
            "roles",
            "sets",
            "metrics",
            "words",
            *(("finetunes",) * (self.kind in OF_FINETUNED)),
        )
        for key in needed:
            if self.kind in USED_BY.get(key, (self.kind,)) and not getattr(self, key):
                raise ConfigError(key, [], f"must not be empty for {self.kind}; name at least one")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if self.kind not in USED_BY.get(field.name, (self.kind,)) and value != field.default:
                shown = [claim.says for claim in self.claims] if field.name == "claims" else value
                shown = list(shown) if isinstance(shown, tuple) else shown
                raise ConfigError(field.name, shown, f"has no effect in an experiment of kind {self.kind}; remove it")
        if self.choose == "largest" and not self.finetunes:
            raise ConfigError("choose", "largest", "is by the change in fine-tuning, and none is named; write first")
        if self.kind == "bars":
            known("along", self.along, CATEGORIES if self.finetunes else CATEGORIES[:2])
        if self.kind == "weights" and len(self.roles) > 1:
            raise ConfigError("roles", list(self.roles), "would count each model once a role; name one of them")
        if self.kind in RANKED and "general" in self.roles and "erase" not in self.roles:
            remedy = "do not say which of the general prompts are erased concepts, which stand apart; add erase"
            raise ConfigError("roles", list(self.roles), remedy)
        self._check_table()

    @property
    def shown_metrics(self) -> tuple[str, ...]:
        """The metrics that it reads; a claim without one is about the first."""
        if self.kind in ("members", "words", "similarity") or (self.kind == "grid" and self.choose == "first"):
            return ()
        return self.metrics if self.kind == "table" else (self.metric,)

    def _check_table(self) -> None:
        if self.each_concept and self.over_tasks:
            raise ConfigError("each_concept", True, "is for a table of single tasks; remove it, or over_tasks")
        if self.over_tasks and (len(self.tasks) < 2 or (self.kind == "bars" and self.along == "task")):
            raise ConfigError("over_tasks", True, "is for tables and lines, and bars not along task; name two tasks")
        self._check_claims()

    def _check_claims(self) -> None:
        for number, claim in enumerate(self.claims):
            self._check_words(f"claims[{number}]", claim)
            if not self.finetunes and claim.value in ("finetuned", "resurgence"):
                remedy = "is of a fine-tuned model, and the experiment has none; write erased, or name finetunes"
                raise ConfigError(f"claims[{number}].value", claim.value, remedy)
            if claim.metric is not None:
                known(f"claims[{number}].metric", claim.metric, self.shown_metrics)
            for key, cells in (("of", claim.of), ("against", claim.against)):
                if self.over_tasks and cells is not None and cells.task is not None:
                    remedy = "is averaged with the other tasks; leave it out, or over_tasks"
                    raise ConfigError(f"claims[{number}].{key}.task", cells.task, remedy)

    def _check_words(self, place: str, claim: Claim) -> None:
        unique(f"{place}.words", claim.words)
        ranks = claim.place == "correlation"
        if ranks and (self.kind != "scatter" or claim.words):
            shown, remedy = (claim.words[0], "remove words") if claim.words else (self.kind, "write scatter")
            raise ConfigError(f"{place}.place", shown, f"the correlation is of all points of a scatter; {remedy}")
        if not claim.words and not ranks:
            if claim.place != "quantile":
                raise ConfigError(f"{place}.place", claim.place, "is of words, and the claim has none; name words")
            return
        if self.kind not in RANKED:
            remedy = f"are for an experiment of kind {' or '.join(RANKED)}, not {self.kind}; remove them"
            raise ConfigError(f"{place}.words", list(claim.words), remedy)
        if claim.value != "erased" or claim.against is not None:
            given = claim.value if claim.against is None else "against"
            raise ConfigError(f"{place}.words", given, "the place of words is of erased models alone; write erased")
        lowest, of = (-1.0, "a correlation") if ranks else (0.0, "a quantile")
        if claim.than - claim.margin < lowest or claim.than + claim.margin > 1:
            limits = {"than": claim.than, "margin": claim.margin}
            between = f"are of {of}, between {lowest:g} and 1; write numbers such as 0.5 and 0"
            raise ConfigError(place, limits, between)
