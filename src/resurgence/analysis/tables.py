"""Tables of the study from per-image scores: cells, resurgence, the authors' statistic over seeds.

Inputs: one scores folder an image set (state base, erased, or fine-tuned at a step), with the keys of its cell.
Outputs: cells.csv (every image set by itself), resurgence.csv (fine-tuned minus erased, paired by prompt and seed),
means.csv (image sets of the same cell, the mean over its seeds), seeds.csv (resurgence over the seeds of a cell),
intervals.csv (the random units of the intervals), resurgence.md, metrics.json (the last steps, nested, for
`dvc metrics`). Intervals of cells.csv and resurgence.csv are about the run of the row, those of means.csv and seeds.csv
about concepts and seeds where their column scope says so.
No image is read. All floats have 6 significant digits and the rows a fixed order, so equal scores give equal files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resurgence.analysis import headline
from resurgence.analysis.estimates import estimates
from resurgence.analysis.intervals import interval
from resurgence.analysis.measures import median_deviation, recovered_fraction
from resurgence.analysis.random_effects import Estimate, difference, over_runs, seeds_of
from resurgence.analysis.score_sets import KEYS, KEYS_OF, ROLES, STATES, name_of, read_states
from resurgence.config.scorers import HARMONIC, metrics
from resurgence.files import write_json, write_text

NUMBERS = ["erase_seed", "finetune_seed", "step", "n", "runs"]
FILES = ("cells.csv", "intervals.csv", "means.csv", "metrics.json", "resurgence.csv", "resurgence.md", "seeds.csv")
CELLS = [*KEYS, "state", "step", "role", "metric", "n", "value", "low", "high"]
MEANS = [k for k in CELLS if not k.endswith("_seed")]
MEANS[MEANS.index("n") : MEANS.index("n") + 1] = ["runs", "n", "scope"]
RESURGENCE = [
    *KEYS, "step", "role", "metric", "n", "base_value", "erased_value", "finetuned_value",
    "resurgence", "resurgence_low", "resurgence_high", "recovered_fraction",
]  # fmt: skip
SEEDS = [
    *headline.CELL, "step", "role", "metric", "runs", "n", "scope",
    *(f"{name}_{what}" for name in ("erased", "finetuned", "resurgence") for what in ("median", "deviation")),
    "resurgence_mean", "resurgence_low", "resurgence_high",
]  # fmt: skip


def tidy(rows: Iterable[Mapping[str, Any]], columns: list[str]) -> pd.DataFrame:
    """A sorted table with these columns, integers as such, floats with 6 significant digits."""
    frame = pd.DataFrame(list(rows), columns=columns)
    for name in frame:
        if name in NUMBERS:
            frame[name] = frame[name].astype("Int64")
        elif name in ("state", "role", "metric", "scope") or name in KEYS:
            frame[name] = frame[name].astype(object).where(frame[name].notna(), "")
        else:
            frame[name] = [float(f"{value:.6g}") + 0.0 for value in frame[name].astype(float)]
    ranks = {"role": ROLES, "metric": [*metrics(), *HARMONIC], "state": STATES}
    order = [c for c in [*KEYS, "state", "step", "role", "metric"] if c in frame]

    def ranked(column: pd.Series) -> pd.Series:
        return column.map(ranks[column.name].index) if column.name in ranks else column

    return frame.sort_values(order, kind="stable", na_position="first", key=ranked).reset_index(drop=True)


def numbers(estimate: Estimate, level: float) -> tuple[float, float, float]:
    """Value and interval."""
    return (estimate.value, *interval(estimate, level))


def cells(estimated: pd.DataFrame, level: float) -> pd.DataFrame:
    """cells.csv: the value of every metric in every image set with the interval of this run."""
    rows = []
    for row in estimated.to_dict("records"):
        rows.append({**row, **dict(zip(CELLS[-3:], numbers(row["estimate"], level), strict=True))})
    return tidy(rows, CELLS)


def means(estimated: pd.DataFrame, level: float) -> pd.DataFrame:
    """means.csv: the mean of every metric over the seeds of an image set, with its interval."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    keys = [key for key in MEANS if key in estimated and key != "n"]
    for row in estimated.to_dict("records"):
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    rows = []
    for key, runs in groups.items():
        mean = over_runs([run["estimate"] for run in runs], seeds_of(runs))
        row = {**dict(zip(keys, key, strict=True)), "runs": len(runs), "n": mean.n, "scope": mean.scope}
        rows.append(row | dict(zip(MEANS[-3:], numbers(mean, level), strict=True)))
    return tidy(rows, MEANS)


def paired_rows(estimated: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of fine-tuned image sets, with their `estimates` base, erased, finetuned and gain, a paired difference.

    Raises:
        ValueError: a fine-tuned image set whose base or erased one is missing.
    """

    def position(row: Mapping[str, Any], state: str) -> tuple:
        return (state, *(row[k] for k in KEYS_OF[state]), row["role"], row.get("concept"), row["metric"])

    index = {position(row, row["state"]): row["estimate"] for row in estimated.to_dict("records")}
    rows = []
    for row in estimated[estimated["state"] == "finetuned"].to_dict("records"):
        before = {state: index.get(position(row, state)) for state in ("base", "erased")}
        for state in before:
            if before[state] is None:
                raise ValueError(f"{name_of(row)} has {row['metric']} and no {state} image set has; score that one too")
        gain = difference(row["estimate"], before["erased"])
        rows.append({**row, "estimates": {**before, "finetuned": row["estimate"], "gain": gain}})
    return rows


def erased_rows(estimated: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of erased image sets in the form of `paired_rows`: without a fine-tune, as if it had changed nothing."""
    erased = estimated[estimated["state"] == "erased"]
    unchanged = erased.assign(state="finetuned", finetune="", finetune_variant="", finetune_seed=0, step=0)
    return paired_rows(pd.concat([estimated[estimated["state"] != "finetuned"], unchanged], ignore_index=True))


def resurgence(estimated: pd.DataFrame, level: float) -> pd.DataFrame:
    """resurgence.csv: fine-tuned minus erased for every metric, with the interval of the paired difference."""
    rows = []
    for row in paired_rows(estimated):
        gain = row["estimates"]["gain"]
        values = [row["estimates"][state].value for state in STATES]
        columns = [*values, *numbers(gain, level), recovered_fraction(*values)]
        rows.append({**row, "n": gain.n, **dict(zip(RESURGENCE[12:], columns, strict=True))})
    return tidy(rows, RESURGENCE)


def over_seeds(estimated: pd.DataFrame, level: float) -> pd.DataFrame:
    """seeds.csv: the authors' statistic, median and largest deviation over the seeds of erasing and fine-tuning; and
    the mean resurgence with its interval over concepts and seeds."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in paired_rows(estimated):
        groups.setdefault(tuple(row[key] for key in SEEDS[:9]), []).append(row)
    rows = []
    for key, runs in groups.items():
        mean = over_runs([run["estimates"]["gain"] for run in runs], seeds_of(runs))
        row = {**dict(zip(SEEDS[:9], key, strict=True)), "runs": len(runs), "n": mean.n}
        row["scope"] = mean.scope
        for name, state in (("erased",) * 2, ("finetuned",) * 2, ("resurgence", "gain")):
            values = [run["estimates"][state].value for run in runs]
            row[f"{name}_median"], row[f"{name}_deviation"] = median_deviation(values)
        rows.append(row | dict(zip(SEEDS[-3:], numbers(mean, level), strict=True)))
    return tidy(rows, SEEDS)


def write_tables(
    entries: Iterable[Mapping[str, Any]],
    out: Path,
    level: float,
    reference: np.ndarray | None = None,
    makers: Mapping[str, Sequence[str]] | None = None,
    changed: Mapping[str, str] | None = None,
) -> str:
    """Write all tables below `out`; returns the table for the terminal.

    Args:
        reference: features of real images (m, F). makers: of the images of fine-tuning sets; see `makers_table`.
        changed: eraser -> the settings that change its objective; see `headline`.
    """
    estimated, units = estimates(read_states(entries), reference)
    table = resurgence(estimated, level)
    seeds = over_seeds(estimated, level)
    every = cells(estimated, level)
    files = {"cells": every, "resurgence": table, "seeds": seeds, "intervals": units}
    files["means"] = means(estimated, level)
    for name, frame in files.items():
        write_text(out / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    write_pages(out, files, level, makers, changed)
    warning = headline.blank_warning(every)
    return headline.terminal(table, seeds, level, changed) + (f"{warning}\n" if warning else "")


def write_pages(
    out: Path,
    tables: Mapping[str, pd.DataFrame],
    level: float,
    makers: Mapping[str, Sequence[str]] | None = None,
    changed: Mapping[str, str] | None = None,
) -> None:
    """Write resurgence.md and metrics.json below `out`.

    Args:
        tables: name of each table -> the table. makers, changed: as those of `write_tables`.
    """
    table = tables["resurgence"]
    write_json(out / "metrics.json", headline.metrics(table))
    page = headline.markdown(table, tables["seeds"], tables["intervals"], level, changed)
    if makers_page := headline.makers_table(makers or {}):
        page += f"\n{makers_page}\n"
    warning = headline.blank_warning(tables["cells"])
    write_text(out / "resurgence.md", f"{page}\n**{warning}**\n" if warning else page)
