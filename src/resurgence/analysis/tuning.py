"""The setting of each eraser that a search chooses, by one rule, from the scores of the erased models.

RULE was set before any run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from resurgence.analysis.estimates import estimates
from resurgence.analysis.random_effects import Estimate, over_runs
from resurgence.analysis.score_sets import ImageSet
from resurgence.config.model_path import method_name

LEAST_KEPT = 80.0  # percent of the base's value of the retained concepts, in each task
CHOSEN, FRONT = "chosen", "front"
RULE = (
    f"Chosen of each eraser: of the settings that keep at least {LEAST_KEPT:g} % of the base's value of the retained "
    "concepts in every task, the one that leaves the least of the erased concepts, as the mean over the tasks; where "
    "none does, `front` marks the settings of which no other leaves less and keeps as much."
)


def left_and_kept(sets: Iterable[ImageSet], metric: str) -> pd.DataFrame:
    """What each erased model leaves and keeps of a task, the mean over its seeds.

    Returns:
        Columns task; eraser (with its variant); runs; base, the metric of the erased concepts before erasing; left,
        that after; kept, that of the retained ones in percent of the base's.

    Raises:
        ValueError: no image of a task has the metric, or the base shows nothing of its retained concepts.
    """
    table, _ = estimates(sets, only=[metric])
    values: dict[tuple[str, str, str], list[Estimate]] = {}
    for row in table.to_dict("records"):
        if row["state"] != "finetuned":
            name = method_name(row["eraser"], row["variant"]) if row["state"] == "erased" else ""
            values.setdefault((row["task"], name, row["role"]), []).append(row["estimate"])
    rows = []
    for task, name in dict.fromkeys(key[:2] for key in values if key[1]):
        if (base := values[task, "", "retain"][0].value) == 0:
            raise ValueError(f"{task}: the base shows none of the retained concepts by {metric}; choose others")
        runs, before = values[task, name, "erase"], values[task, "", "erase"][0].value
        kept = 100 * over_runs(values[task, name, "retain"]).value / base
        rows.append((task, name, len(runs), before, over_runs(runs).value, kept))
    return pd.DataFrame(rows, columns=["task", "eraser", "runs", "base", "left", "kept"])


def on_front(table: pd.DataFrame) -> list[bool]:
    """Whether no other row leaves at most as much and keeps at least as much, one of them strictly; no row without a
    value."""
    points = list(zip(table["left"], table["kept"], strict=True))
    return [
        math.isfinite(left + kept) and not any(a <= left and b >= kept and (a, b) != (left, kept) for a, b in points)
        for left, kept in points
    ]


def choices(table: pd.DataFrame) -> list[str]:
    """`chosen` for one row of settings of one eraser, or `front` for some of them; empty for the others.

    Args:
        table: columns left, kept; of equal settings the one that keeps more is chosen, then the one written first.
    """
    enough = table[(table["kept"] >= LEAST_KEPT) & table["left"].notna()]
    if enough.empty:
        return [FRONT if front else "" for front in on_front(table)]
    best = enough.sort_values(["left", "kept"], ascending=[True, False], kind="stable").index[0]
    return [CHOSEN if index == best else "" for index in table.index]


def tuning_table(cells: pd.DataFrame, settings: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]) -> pd.DataFrame:
    """One row a setting, in the order of `settings`: over all tasks, and for each in their order.

    Args:
        cells: of `left_and_kept`. settings: eraser with its variant -> what is written for it.

    Returns:
        Columns eraser; setting, what differs from the eraser's other settings; runs; base and left, means over the
        tasks; kept, the least of them; `base TASK`, `left TASK` and `kept TASK`; choice.
    """
    by_name, rows = cells.groupby("eraser", sort=False), []
    for name in settings:
        part = by_name.get_group(name).set_index("task").loc[list(tasks)]
        row = {"eraser": name, "setting": differing(name, settings), "runs": int(part["runs"].min())}
        row |= {name: statistics.fmean(part[name]) for name in ("base", "left")} | {"kept": float(part["kept"].min())}
        for task, *values in part[["base", "left", "kept"]].itertuples():
            row |= {f"{name} {task}": value for name, value in zip(("base", "left", "kept"), values, strict=True)}
        rows.append(row)
    table = pd.DataFrame(rows)
    for _, part in table.groupby(table["eraser"].str.partition(".")[0], sort=False):
        table.loc[part.index, "choice"] = choices(part)
    floats = [name for name in table if table[name].dtype == float]
    table[floats] = table[floats].map(lambda value: float(f"{value:.6g}") + 0.0)
    return table


def differing(name: str, settings: Mapping[str, Mapping[str, Any]]) -> str:
    """The written settings of an eraser in which it differs from its other variants, `key: value` each."""
    method = name.partition(".")[0]
    variants = [values for variant, values in settings.items() if variant.partition(".")[0] == method]
    keys = dict.fromkeys(key for a in variants for key in a if any(a.get(key) != b.get(key) for b in variants))
    return ", ".join(f"{key}: {settings[name][key]}" for key in keys if key in settings[name])
