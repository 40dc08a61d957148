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
        verdict = {"yes": "came back", "no": "did not come back", "open": "may or may not have come back"}[self.outcome]
        return f"{verdict} after {self.finetune} {self._scope}{self._reason}"

    @property
    def _scope(self) -> str:
        if self.runs == 1:
            return "in this run"
        alone = f"({self.above} of {self.runs} runs show it alone)"
        return f"{'on average over seeds' if self.over_seeds else f'on average of these {self.runs} runs'} {alone}"

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
    """One sentence about an eraser on a task, and another where erasing left more than SMALL of the base's value."""
    first = clauses[0]
    text = f"What {eraser} erased {'; it '.join(c.text for c in clauses)}."
    if first.erased > SMALL * first.base:
        left, whole = (number(value) + first.unit for value in (first.erased, first.base))
        text += f" Erasing itself left {left} of the base's {whole}."
    return text
