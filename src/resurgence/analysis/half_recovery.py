"""Steps of fine-tuning to half recovery, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from resurgence.analysis.cells import CELL
from resurgence.analysis.intervals import interval
from resurgence.analysis.random_effects import combine


def half_recovery(steps: Sequence[float], values: np.ndarray, erased: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The step at which half of the erased metric has returned, linear between checkpoints; infinity if it never has.

    Args:
        steps: (S,) of the checkpoints, increasing, above 0. values: (S, ...) there. erased, base: (...).
    """
    half = (erased + base) / 2
    recovery = np.full(np.shape(half), math.inf)
    before, start = erased, 0.0
    for step, value in zip(steps, values, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = start + (step - start) * (half - before) / (value - before)
        crossed = np.isinf(recovery) & (value >= half) & (base > erased)
        recovery = np.where(crossed, crossing, recovery)
        before, start = value, step
    return recovery


def half_recovery_table(rows: Sequence[Mapping[str, Any]], level: float) -> pd.DataFrame:
    """Steps to half recovery of each cell, from `pool_seeds` at every step.

    Their interval holds the steps at which the distance from half recovery, fine-tuned - (erased + base) / 2, may be 0
    (Fieller 1954): it ends where the limits of that distance, linear between checkpoints, cross 0.
    """
    cells: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["role"] == "erase":
            cells.setdefault(tuple(row[name] for name in CELL), []).append(row)
    records = []
    for key, group in cells.items():
        group.sort(key=lambda row: row["step"])
        steps, tuned = [float(row["step"]) for row in group], [row["finetuned"] for row in group]
        erased, base = group[0]["erased"], group[0]["base"]
        value = half_recovery(steps, np.array([e.value for e in tuned]), np.array(erased.value), np.array(base.value))
        gaps = [combine(lambda t, e, b: t - (e + b) / 2, e, erased, base, n=e.n) for e in (erased, *tuned)]
        limits = np.array([interval(gap, level) for gap in gaps])
        high, low = (half_recovery(steps, end[1:], end[0], -end[0]) if end[0] < 0 else 0 * end[0] for end in limits.T)
        ends = {"steps": float(value), "steps_low": float(low), "steps_high": float(high)}
        texts = [f"> {steps[-1]:.0f}" if math.isinf(end) else f"{end:.0f}".replace("nan", "-") for end in ends.values()]
        text = f"{texts[0]} [{texts[1]}, {texts[2]}]" if base.value > erased.value else "-"  # nothing was erased
        records.append({**dict(zip(CELL, key, strict=True)), **ends, "last_step": steps[-1], "text": text})
    return pd.DataFrame(records, columns=[*CELL, "steps", "steps_low", "steps_high", "last_step", "text"])
