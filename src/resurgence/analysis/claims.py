"""Results of an experiment: its cells averaged over seeds, steps to half recovery, and verdicts on a paper's claims.

Seeds are averaged resample by resample: all models of a task have the same draws of concepts, so the interval of the
mean is one over concepts. The spread over seeds is reported separately, as the published study's median and largest
deviation.
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
CELL = ["task", "eraser", "finetune"]
COLUMNS = [
    *CELL, "step", "role", "metric", "runs", "n", "base_value",
    *(f"{state}_{end}" for state in ("erased", "finetuned") for end in ("value", "low", "high")),
    "resurgence", "resurgence_low", "resurgence_high", "p", "p_holm", "median", "deviation",
]  # fmt: skip
VERDICTS = {True: "same", False: "different", None: "cannot tell"}


def pool_seeds(rows: Iterable[Mapping[str, Any]], last: bool = True) -> list[dict[str, Any]]:
    """Average the rows of tables.paired_rows over the seeds of each cell, at its last step or at every step.

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
    pooled = []
    for key, group in groups.items():
        if last and key[3] != ends[key[:3]]:
            continue
        row = {**dict(zip(COLUMNS[:6], key, strict=True)), "runs": len(group)}
        row |= {state: bootstrap.mean_of([run["estimates"][state] for run in group]) for state in STATES}
        pooled.append(row | {"gains": [run["estimates"]["gain"].value for run in group]})
    return pooled


def table(rows: Sequence[Mapping[str, Any]], level: float) -> pd.DataFrame:
    """The rows of `pool_seeds` as numbers: values, intervals, p values, and Holm's adjustment for those of last steps.

    The last two columns are the published study's statistic of the resurgence over seeds.
    """
    records = []
    for row in rows:
        record = {key: row[key] for key in COLUMNS[:7]} | {"n": row["gain"].n, "base_value": row["base"].value}
        for state, name in (("erased", "erased_value"), ("finetuned", "finetuned_value"), ("gain", "resurgence")):
            low, high = bootstrap.interval(row[state], level)
            start = name.removesuffix("_value")
            record |= {name: row[state].value, f"{start}_low": low, f"{start}_high": high}
        record["p"] = bootstrap.p_value(row["gain"])
        record["median"], record["deviation"] = bootstrap.median_deviation(row["gains"])
        records.append(record)
    frame = pd.DataFrame(records, columns=COLUMNS)
    frame["p_holm"] = np.nan
    ends = frame["step"] == frame.groupby(CELL)["step"].transform("max")
    for _, part in frame[ends].groupby("role"):
        frame.loc[part.index, "p_holm"] = bootstrap.holm(part["p"].to_numpy(dtype=np.float64))
    floats = COLUMNS[8:]
    frame[floats] = frame[floats].astype(float).map(lambda value: float(f"{value:.6g}") + 0.0)
    return frame


def display_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as text, for pages: n, values of base, erased and fine-tuned, resurgence with interval, spread."""
    rows = []
    for row in frame.to_dict("records"):
        interval = f"[{number(row['resurgence_low'])}, {number(row['resurgence_high'])}]"
        rows.append({
            "task": row["task"], "eraser": row["eraser"], "fine-tune": row["finetune"], "concepts": row["role"],
            "step": str(row["step"]), "n": f"{row['n']} ({row['runs']} runs)" if row["runs"] > 1 else str(row["n"]),
            "base -> erased -> fine-tuned":
                " -> ".join(number(row[f"{state}_value"]) for state in ("base", "erased", "finetuned")),
            "resurgence": f"{number(row['resurgence'])} {interval}",
            "p (Holm)": "-" if math.isnan(row["p_holm"]) else f"{row['p_holm']:.2g}",
            "median ± deviation": f"{number(row['median'])} ± {number(row['deviation'])}",
        })  # fmt: skip
    return pd.DataFrame(rows)


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
    """Steps to half recovery of each cell, with the interval over concepts, from `pool_seeds` at every step."""
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
        replicates = half_recovery(steps, np.stack([e.replicates for e in tuned]), erased.replicates, base.replicates)
        low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")  # keeps infinity
        ends = {"steps": float(value), "steps_low": float(low), "steps_high": float(high)}
        texts = [f"{end:.0f}" if math.isfinite(end) else f"> {steps[-1]:.0f}" for end in ends.values()]
        text = f"{texts[0]} [{texts[1]}, {texts[2]}]" if base.value > erased.value else "-"  # nothing was erased
        records.append({**dict(zip(CELL, key, strict=True)), **ends, "last_step": steps[-1], "text": text})
    return pd.DataFrame(records, columns=[*CELL, "steps", "steps_low", "steps_high", "last_step", "text"])


def quantity(rows: Sequence[Mapping[str, Any]], cells: Cells, value: str) -> tuple[Estimate, int]:
    """The mean of base, erased, finetuned or resurgence over the rows of some cells, and its number of images.

    Seeds count once in that number. Draws of different tasks are independent, so their order does not matter.

    Raises:
        LookupError: no row is in these cells.
    """
    state = "gain" if value == "resurgence" else value
    chosen = [row for row in rows if cells.holds(dict(row))]
    if not chosen:
        raise LookupError(f"no row holds {asdict(cells)}")
    return bootstrap.mean_of([row[state] for row in chosen]), sum(row["gain"].n // row["runs"] for row in chosen)


def claim_interval(estimate: Estimate, images: int, level: float) -> tuple[float, float]:
    """The interval by which a claim is decided: that of the bootstrap unless all replicates are equal.

    All are equal when the data have no variation, for example 0 % of all images. A property of a share p of images is
    absent from G of them with probability (1 - p)^G, so the interval is value +- 100 (1 - ((1 - level) / 2)^(1 / G)).
    """
    low, high = bootstrap.interval(estimate, level)
    if math.isnan(low) or estimate.method != "bootstrap" or np.ptp(estimate.replicates) > 0:
        return low, high
    reach = 100 * (1 - ((1 - level) / 2) ** (1 / max(1, images)))
    return estimate.value - reach, estimate.value + reach


def verdict(estimate: Estimate, images: int, claim: Claim, level: float) -> bool | None:
    """Whether the estimate agrees with the claim (True), contradicts it (False), or is inconclusive (None).

    Above and below: agrees if the interval lies on that side of `than`, contradicts if it lies on the other side of
    than + margin (than - margin), so that any effect is smaller than the margin. Equal: agrees if the interval lies
    within the margin around `than`, contradicts if it lies outside.
    """
    low, high = (end - claim.than for end in claim_interval(estimate, images, level))
    if math.isnan(low):
        return None
    if claim.expect == "below":
        low, high = -high, -low
    if claim.expect == "equal":
        agrees = -claim.margin <= low and high <= claim.margin
        contradicts = low > claim.margin or high < -claim.margin
    else:
        agrees, contradicts = low > 0, high < claim.margin
    if agrees:
        return True
    return False if contradicts else None


def evaluate_claims(rows: Sequence[Mapping[str, Any]], claims: Iterable[Claim], level: float) -> pd.DataFrame:
    """One row a claim: the sentence, what is compared, the estimate with its interval, the verdict."""
    columns = ["claim", "compared", "value", "low", "high", "n", "verdict"]
    records = []
    for claim in claims:
        estimate, images = quantity(rows, claim.of, claim.value)
        if claim.against is not None:
            other, other_images = quantity(rows, claim.against, claim.value)
            estimate, images = bootstrap.difference(estimate, other), min(images, other_images)
        low, high = claim_interval(estimate, images, level)
        records.append({
            "claim": claim.says, "compared": comparison_text(claim), "value": float(f"{estimate.value:.6g}"),
            "low": float(f"{low:.6g}"), "high": float(f"{high:.6g}"), "n": estimate.n,
            "verdict": VERDICTS[verdict(estimate, images, claim, level)],
        })  # fmt: skip
    return pd.DataFrame(records, columns=columns)


def comparison_text(claim: Claim) -> str:
    """The quantity that decides a claim, and the expectation, in words."""

    def cells_text(cells: Cells) -> str:
        parts = [part for part in (cells.task, cells.eraser, cells.finetune) if part]
        return (", ".join(parts) or "all cells") + ("" if cells.role == "erase" else f" ({cells.role})")

    text = f"{claim.value} of {cells_text(claim.of)}"
    text += f" minus that of {cells_text(claim.against)}" if claim.against else ""
    within = f" within {claim.margin:g}" if claim.expect == "equal" else ""
    return f"{text}; expected {claim.expect} {claim.than:g}{within}"


def claims_table(frame: pd.DataFrame) -> str:
    """The claims as Markdown."""
    texts = pd.DataFrame({
        "the paper": frame["claim"],
        "compared here": frame["compared"],
        "our number": [f"{number(v)} [{number(a)}, {number(b)}]"
                       for v, a, b in zip(frame["value"], frame["low"], frame["high"], strict=True)],
        "n": frame["n"].astype(str),
        "verdict": frame["verdict"],
    })  # fmt: skip
    return markdown_table(texts)
