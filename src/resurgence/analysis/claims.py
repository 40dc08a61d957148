"""What an experiment found: its cells with all seeds together, the half-way of their return, and a paper's claims.

Seeds are put together resample by resample: the same draws of concepts serve all models of a task, so the mean over
seeds has an interval that tells of the concepts, and the spread over seeds stands beside it (the published study's
median and largest deviation).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from resurgence.analysis import bootstrap
from resurgence.analysis.bootstrap import Estimate
from resurgence.analysis.headline import markdown_table, number
from resurgence.config.experiment import Cells, Claim
from resurgence.config.model_path import method_name

STATES = ("base", "erased", "finetuned", "gain")
COLUMNS = [
    "task", "eraser", "finetune", "step", "role", "metric", "runs", "n", "base_value",
    *(f"{state}_{end}" for state in ("erased", "finetuned") for end in ("value", "low", "high")),
    "resurgence", "resurgence_low", "resurgence_high", "p", "p_holm", "median", "deviation",
]  # fmt: skip
VERDICTS = {True: "same", False: "different", None: "cannot tell"}


def pooled(rows: Iterable[Mapping[str, Any]], last: bool = True) -> list[dict[str, Any]]:
    """The rows of tables.paired with all seeds of a cell together, at its last step or at every step.

    Returns:
        One row a cell, step, role and metric: task, eraser, finetune (as experiments name them), step, role, metric,
        runs, the Estimates base, erased, finetuned and gain, and each run's `gains`.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        names = method_name(row["eraser"], row["variant"]), method_name(row["finetune"], row["finetune_variant"])
        groups.setdefault((row["task"], *names, row["step"], row["role"], row["metric"]), []).append(row)
    ends: dict[tuple, int] = {}
    for key in groups:
        ends[key[:3]] = max(ends.get(key[:3], 0), key[3])
    made = []
    for key, group in groups.items():
        if last and key[3] != ends[key[:3]]:
            continue
        found = {state: bootstrap.mean_of([row["estimates"][state] for row in group]) for state in STATES}
        names = dict(zip(("task", "eraser", "finetune", "step", "role", "metric"), key, strict=True))
        made.append({**names, "runs": len(group), **found, "gains": [row["estimates"]["gain"].value for row in group]})
    return made


def table(rows: Sequence[Mapping[str, Any]], level: float) -> pd.DataFrame:
    """The rows of `pooled` as numbers: values with intervals, p, and p adjusted (Holm) for the last steps of a role.

    The last two columns are the published study's statistic of the resurgence over seeds.
    """
    made = []
    for row in rows:
        one = {key: row[key] for key in COLUMNS[:7]} | {"n": row["gain"].n, "base_value": row["base"].value}
        for state, name in (("erased", "erased_value"), ("finetuned", "finetuned_value"), ("gain", "resurgence")):
            low, high = bootstrap.interval(row[state], level)
            start = name.removesuffix("_value")
            one |= {name: row[state].value, f"{start}_low": low, f"{start}_high": high}
        one["p"] = bootstrap.p_value(row["gain"])
        one["median"], one["deviation"] = bootstrap.median_deviation(row["gains"])
        made.append(one)
    frame = pd.DataFrame(made, columns=COLUMNS)
    frame["p_holm"] = np.nan
    ends = frame["step"] == frame.groupby(["task", "eraser", "finetune"])["step"].transform("max")
    for _, part in frame[ends].groupby("role"):
        frame.loc[part.index, "p_holm"] = bootstrap.holm(part["p"].to_numpy(dtype=np.float64))
    floats = [c for c in COLUMNS[8:] if c in frame]
    frame[floats] = frame[floats].astype(float).map(lambda value: float(f"{value:.6g}") + 0.0)
    return frame


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The table for people: n in every row, way of the value, resurgence with interval, spread over seeds."""
    rows = []
    for row in frame.to_dict("records"):
        ends = f"[{number(row['resurgence_low'])}, {number(row['resurgence_high'])}]"
        rows.append({
            "task": row["task"], "eraser": row["eraser"], "fine-tune": row["finetune"], "concepts": row["role"],
            "step": str(row["step"]), "n": f"{row['n']} ({row['runs']} runs)" if row["runs"] > 1 else str(row["n"]),
            "base -> erased -> fine-tuned":
                " -> ".join(number(row[f"{state}_value"]) for state in ("base", "erased", "finetuned")),
            "resurgence": f"{number(row['resurgence'])} {ends}",
            "p (Holm)": "-" if math.isnan(row["p_holm"]) else f"{row['p_holm']:.2g}",
            "median ± deviation": f"{number(row['median'])} ± {number(row['deviation'])}",
        })  # fmt: skip
    return pd.DataFrame(rows)


def half_recovery(steps: Sequence[float], values: np.ndarray, erased: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The step at which half of what was erased is back, linear between checkpoints; infinity where it never is.

    Args:
        steps: (S,) of the checkpoints, rising from above 0. values: (S, ...) there. erased, base: (...).
    """
    half = (erased + base) / 2
    found = np.full(np.shape(half), math.inf)
    before, start = erased, 0.0
    for step, value in zip(steps, values, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            place = start + (step - start) * (half - before) / (value - before)
        crossed = np.isinf(found) & (value >= half) & (base > erased)
        found = np.where(crossed, place, found)
        before, start = value, step
    return found


def half_rows(rows: Sequence[Mapping[str, Any]], level: float) -> pd.DataFrame:
    """Steps to half recovery of each cell, from the rows of `pooled` at every step, with the interval over concepts."""
    cells: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["role"] == "erase":
            cells.setdefault((row["task"], row["eraser"], row["finetune"]), []).append(row)
    made = []
    for key, group in cells.items():
        group.sort(key=lambda row: row["step"])
        steps = [float(row["step"]) for row in group]
        parts = [[row["finetuned"] for row in group], group[0]["erased"], group[0]["base"]]
        value = half_recovery(steps, np.array([e.value for e in parts[0]]), *(np.array(e.value) for e in parts[1:]))
        many = half_recovery(steps, np.stack([e.replicates for e in parts[0]]), *(e.replicates for e in parts[1:]))
        low, high = np.quantile(many, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")  # keeps infinity
        ends = {"steps": float(value), "steps_low": float(low), "steps_high": float(high)}
        last = steps[-1]
        told = [f"{end:.0f}" if math.isfinite(end) else f"> {last:.0f}" for end in ends.values()]
        lost = group[0]["base"].value > group[0]["erased"].value
        made.append({
            **dict(zip(("task", "eraser", "finetune"), key, strict=True)), **ends, "last_step": last,
            "told": f"{told[0]} [{told[1]}, {told[2]}]" if lost else "-",  # nothing was erased
        })  # fmt: skip
    return pd.DataFrame(
        made, columns=["task", "eraser", "finetune", "steps", "steps_low", "steps_high", "last_step", "told"]
    )


def quantity(rows: Sequence[Mapping[str, Any]], cells: Cells, value: str) -> tuple[Estimate, int]:
    """The mean over some rows of base, erased, finetuned or resurgence, and of how many images, seeds counted once.

    Rows of several tasks have draws of their own, which are independent and may be put together in any order.
    """
    state = "gain" if value == "resurgence" else value
    chosen = [row for row in rows if cells.holds(dict(row))]
    if not chosen:
        raise LookupError(f"no row holds {asdict(cells)}")
    return bootstrap.mean_of([row[state] for row in chosen]), sum(row["gain"].n // row["runs"] for row in chosen)


def possible(estimate: Estimate, images: int, level: float) -> tuple[float, float]:
    """The interval; where every replicate is the same (0 % of all images, say), what so many images can exclude.

    Then the data hold no variation, not even between concepts, and a true share p of a percentage shows in none of G
    images with a chance of (1 - p)^G: the interval is the value +- 100 (1 - ((1 - level) / 2)^(1 / G)).
    """
    low, high = bootstrap.interval(estimate, level)
    if math.isnan(low) or estimate.method != "bootstrap" or np.ptp(estimate.replicates) > 0:
        return low, high
    reach = 100 * (1 - ((1 - level) / 2) ** (1 / max(1, images)))
    return estimate.value - reach, estimate.value + reach


def verdict(estimate: Estimate, images: int, claim: Claim, level: float) -> bool | None:
    """Whether the number agrees with the claim (True), contradicts it (False), or decides nothing (None).

    Above and below: the interval lies on that side of `than`; it contradicts when it lies below (above) the margin, so
    that at most a difference too small to matter is left. Equal: it lies within the margin; it contradicts when it
    lies outside of it.
    """
    low, high = (end - claim.than for end in possible(estimate, images, level))
    if math.isnan(low):
        return None
    if claim.expect == "equal":
        inside = -claim.margin <= low and high <= claim.margin
        return True if inside else False if low > claim.margin or high < -claim.margin else None
    if claim.expect == "below":
        low, high = -high, -low
    return True if low > 0 else False if high < claim.margin else None


def judged(rows: Sequence[Mapping[str, Any]], claims: Iterable[Claim], level: float) -> pd.DataFrame:
    """One row a claim: the sentence, what is compared, our number with its interval, the verdict."""
    made = []
    for claim in claims:
        estimate, images = quantity(rows, claim.of, claim.value)
        if claim.against is not None:
            other, own = quantity(rows, claim.against, claim.value)
            estimate, images = bootstrap.difference(estimate, other), min(images, own)
        low, high = possible(estimate, images, level)
        made.append({
            "claim": claim.says, "compared": compared(claim), "value": float(f"{estimate.value:.6g}"),
            "low": float(f"{low:.6g}"), "high": float(f"{high:.6g}"), "n": estimate.n,
            "verdict": VERDICTS[verdict(estimate, images, claim, level)],
        })  # fmt: skip
    return pd.DataFrame(made, columns=["claim", "compared", "value", "low", "high", "n", "verdict"])


def compared(claim: Claim) -> str:
    """Which numbers a claim is decided by, in words."""

    def told(cells: Cells) -> str:
        parts = [part for part in (cells.task, cells.eraser, cells.finetune) if part]
        return (", ".join(parts) or "all cells") + ("" if cells.role == "erase" else f" ({cells.role})")

    end = f"{claim.value} of {told(claim.of)}"
    end += f" minus that of {told(claim.against)}" if claim.against else ""
    within = f" within {claim.margin:g}" if claim.expect == "equal" else ""
    return f"{end}; expected {claim.expect} {claim.than:g}{within}"


def claims_table(frame: pd.DataFrame) -> str:
    """The claims as Markdown."""
    shown = pd.DataFrame({
        "the paper": frame["claim"],
        "compared here": frame["compared"],
        "our number": [f"{number(v)} [{number(a)}, {number(b)}]"
                       for v, a, b in zip(frame["value"], frame["low"], frame["high"], strict=True)],
        "n": frame["n"].astype(str),
        "verdict": frame["verdict"],
    })  # fmt: skip
    return markdown_table(shown)
