"""The answer of a study in words: whether what an eraser removed came back, one sentence a task and eraser.

The words follow `headline.outcome`, the verdict of the tables, and claim no more than it: without several seeds a
sentence is about this run, and a verdict that is open says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from resurgence.analysis.headline import SMALL, Outcome, cell_row, number, outcome, unit
from resurgence.config.model_path import method_name

ORDER: tuple[Outcome, ...] = ("yes", "open", "no")  # of several fine-tunes the first that occurs is the answer
TITLES: dict[Outcome, str] = {"yes": "came back", "open": "open", "no": "did not come back"}
VERBS: dict[Outcome, str] = {**TITLES, "open": "may or may not have come back"}
TENTH = f"{100 * SMALL:g} % of the base's value"


@dataclass(frozen=True)
class Clause:
    """What a fine-tune did to the erased concepts of a model, from the rows of its cell."""

    finetune: str
    outcome: Outcome
    gain: float  # the resurgence, the mean over runs
    low: float  # its interval, NaN without one
    high: float
    unit: str  # after a value
    runs: int
    above: int  # runs whose own interval lies above 0
    over_seeds: bool  # the interval is about all seeds, not about these runs
    base: float  # values of the erased concepts, medians over runs
    erased: float

    @property
    def text(self) -> str:
        """The verdict and why, to follow what an eraser erased."""
        alone = f" ({self.above} of {self.runs} runs alone show a return)" if self.runs > 1 else ""
        return f"{VERBS[self.outcome]} after {self.finetune} {self.scope}{alone}{self._reason}"

    @property
    def scope(self) -> str:
        """What the verdict is about."""
        if self.runs == 1:
            return "in this run"
        return "on average over seeds" if self.over_seeds else f"on average of these {self.runs} runs"

    @property
    def _reason(self) -> str:
        points = " points" if self.unit else ""
        if self.outcome == "yes":
            interval = f"[{number(self.low)}, {number(self.high)}]"
            return f": by {number(self.gain)}{points} {interval} of the base's {number(self.base)}{self.unit}"
        if self.outcome == "no":
            return f": by {number(self.high)}{points} at most, no more than {TENTH}" if self.high > 0 else ""
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f": the interval includes 0 and ends above {TENTH}"
        return ": there is no interval"


def clause(rows: pd.DataFrame, seeds: pd.DataFrame) -> Clause:
    """The clause of a cell.

    Args:
        rows: of resurgence.csv, one a run, of one cell, step, role and metric. seeds: seeds.csv.
    """
    row, first = cell_row(rows, seeds), rows.iloc[0]
    base, low, high = float(rows["base_value"].median()), float(row["resurgence_low"]), float(row["resurgence_high"])
    return Clause(
        finetune=method_name(first["finetune"], first["finetune_variant"]),
        outcome=outcome(low, high, base),
        gain=float(row["resurgence_mean" if len(rows) > 1 else "resurgence"]),
        low=low,
        high=high,
        unit=unit(first["metric"]),
        runs=len(rows),
        above=int((rows["resurgence_low"] > 0).sum()),
        over_seeds=len(rows) > 1 and row["scope"] == "seeds",
        base=base,
        erased=float(rows["erased_value"].median()),
    )  # fmt: skip


def answer(clauses: Sequence[Clause]) -> Outcome:
    """The answer over several fine-tunes: yes if any is, else open if any is, else no."""
    return min((c.outcome for c in clauses), key=ORDER.index)


def sentence(eraser: str, clauses: Sequence[Clause]) -> str:
    """One sentence about an eraser on a task, and another where erasing left more than SMALL of the base's value.

    One fine-tune has its reason, several are listed by verdict, the worst first.
    """
    first, groups = clauses[0], dict[tuple[Outcome, str], list[str]]()
    for each in sorted(clauses, key=lambda c: ORDER.index(c.outcome)):
        groups.setdefault((each.outcome, each.scope), []).append(each.finetune)
    texts = [f"{VERBS[verdict]} after {', '.join(names)} {scope}" for (verdict, scope), names in groups.items()]
    text = f"What {eraser} erased {first.text if len(clauses) == 1 else '; it '.join(texts)}."
    if first.erased > SMALL * first.base:
        left, whole = (number(value) + first.unit for value in (first.erased, first.base))
        text += f" Erasing itself left {left} of the base's {whole}."
    return text
