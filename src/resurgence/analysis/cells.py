"""Cells of an experiment: the runs of a task, an eraser and a fine-tune averaged over seeds, as numbers and as text.

Intervals are over concepts and seeds (intervals.py). The published study's statistic, the median over seeds and the
largest deviation from it, stands beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from resurgence.analysis.headline import marked, number, spread_text
from resurgence.analysis.intervals import holm, interval, p_value
from resurgence.analysis.measures import median_deviation
from resurgence.analysis.random_effects import over_runs, seeds_of
from resurgence.config.model_path import method_name

STATES = ("base", "erased", "finetuned", "gain")
CELL = ["task", "eraser", "finetune"]
COLUMNS = [
    *CELL, "step", "role", "metric", "runs", "n", "scope", "base_value",
    *(f"{state}_{end}" for state in ("erased", "finetuned") for end in ("value", "low", "high")),
    "resurgence", "resurgence_low", "resurgence_high", "p", "p_holm", "median", "deviation",
]  # fmt: skip
MORE = ["base_deviation", "erased_deviation", "finetuned_deviation", "concept"]  # over tasks; of each concept


def pool_seeds(rows: Iterable[Mapping[str, Any]], last: bool = True) -> list[dict[str, Any]]:
    """Average the rows of tables.paired_rows over the seeds of each cell, at its last step or at every step.

    Returns:
        One row a cell, step, role and metric: task, eraser, finetune (as experiments name them), step, role, metric,
        runs, the Estimates base, erased, finetuned and gain, and each run's `gains`.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        names = method_name(row["eraser"], row["variant"]), method_name(row["finetune"], row["finetune_variant"])
        key = (row["task"], *names, row["step"], row["role"], row["metric"], row.get("concept"))
        groups.setdefault(key, []).append(row)
    ends: dict[tuple, int] = {}
    for key in groups:
        ends[key[:3]] = max(ends.get(key[:3], 0), key[3])
    pooled = []
    for key, group in groups.items():
        if last and key[3] != ends[key[:3]]:
            continue
        row = {**dict(zip(COLUMNS[:6], key[:6], strict=True)), "runs": len(group)}
        row |= {"concept": key[6]} if key[6] else {}
        row |= {state: over_runs([run["estimates"][state] for run in group], seeds_of(group)) for state in STATES}
        pooled.append(row | {"gains": [run["estimates"]["gain"].value for run in group]})
    return pooled


def table(rows: Sequence[Mapping[str, Any]], level: float) -> pd.DataFrame:
    """The rows of `pool_seeds` as numbers: values, intervals, p values, and Holm's adjustment for those of last steps.

    The last two columns are the published study's statistic of the resurgence over seeds. Rows without a fine-tune have
    no fine-tuned value and no resurgence.
    """
    records = []
    for row in rows:
        record = {key: row[key] for key in COLUMNS[:7]} | {"n": row["gain"].n, "base_value": row["base"].value}
        record["scope"] = row["gain"].scope
        shown = (("erased", "erased_value"), ("finetuned", "finetuned_value"), ("gain", "resurgence"))
        for state, name in shown if row["finetune"] else shown[:1]:
            low, high = interval(row[state], level)
            start = name.removesuffix("_value")
            record |= {name: row[state].value, f"{start}_low": low, f"{start}_high": high}
        if row["finetune"]:
            record["p"] = p_value(row["gain"])
            record["median"], record["deviation"] = median_deviation(row["gains"])
        if "concept" in row:
            record["concept"] = row["concept"]
        if "deviations" in row:
            spread = {state: row["deviations"][state] for state in STATES[: 3 if row["finetune"] else 2]}
            record |= {"scope": "tasks"} | {f"{state}_deviation": value for state, value in spread.items()}
        records.append(record)
    more = [name for name in MORE if any(name in record for record in records)]
    frame = pd.DataFrame(records, columns=[*COLUMNS, *more])
    frame["p_holm"] = np.nan
    ends = frame["step"] == frame.groupby(CELL)["step"].transform("max")
    for _, part in frame[ends].groupby(["role", "metric"]):
        frame.loc[part.index, "p_holm"] = holm(part["p"].to_numpy(dtype=np.float64))
    floats = [name for name in frame if name in (*COLUMNS[COLUMNS.index("base_value") :], *MORE[:3])]
    frame[floats] = frame[floats].astype(float).map(lambda value: float(f"{value:.6g}") + 0.0)
    return frame


def display_table(frame: pd.DataFrame, changed: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The table as text, for pages: n, values of base, erased and fine-tuned, resurgence with interval, spread.

    Args:
        changed: eraser -> the settings that change its objective, which its name is marked for.
    """
    rows = []
    for row in frame.to_dict("records"):
        ends = f"[{number(row['resurgence_low'])}, {number(row['resurgence_high'])}]"
        if not row["finetune"]:
            rows.append(erased_text(row, changed or {}))
            continue
        rows.append({
            "task": row["task"], "eraser": marked(row["eraser"], changed or {}),
            "fine-tune": row["finetune"], "concepts": row["role"],
            "step": str(row["step"]), "n": images_text(row["n"], row["runs"], row["scope"]),
            "base -> erased -> fine-tuned":
                " -> ".join(number(row[f"{state}_value"]) for state in ("base", "erased", "finetuned")),
            "resurgence": f"{number(row['resurgence'])} {ends}",
            "p (Holm)": "-" if math.isnan(row["p_holm"]) else f"{row['p_holm']:.2g}",
            "median ± deviation": spread_text(row["median"], row["deviation"]),
        })  # fmt: skip
    return pd.DataFrame(rows)


def erased_text(row: Mapping[str, Any], changed: Mapping[str, str]) -> dict[str, str]:
    """The row of `display_table` of a model that is not fine-tuned."""
    value, low, high = (number(row[f"erased_{key}"]) for key in ("value", "low", "high"))
    names = {"task": row["task"], "eraser": marked(row["eraser"], changed), "concepts": row["role"]}
    n = images_text(row["n"], row["runs"], row["scope"])
    return names | {"n": n, "base": number(row["base_value"]), "erased": f"{value} [{low}, {high}]"}


def images_text(n: int, runs: int, scope: str = "") -> str:
    """Images of one run x runs, or what the interval is about: this run, or tasks."""
    if scope == "tasks":
        return f"{n}, tasks"
    return f"{n} x {runs}" if runs > 1 else f"{n}, this run"
