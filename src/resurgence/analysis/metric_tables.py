"""Tables of several metrics as the papers print them: a row a model, a column a metric of a role or concept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from resurgence.analysis.cells import CELL
from resurgence.analysis.headline import ROLES, marked, number, title_of


def column_titles(frame: pd.DataFrame) -> list[str]:
    """The column of each row of `cells.table`: the metric, with the concept, or the role of a metric of several.

    A concept that a model shows in several roles, as an erased one and its synonyms, has a column for each.
    """
    several, concepts = frame.groupby("metric")["role"].nunique() > 1, frame.get("concept", pd.Series("", frame.index))
    same = frame.assign(concept=concepts).duplicated([*CELL, "step", "metric", "concept"], keep=False)
    shared = set(zip(concepts[same], frame.loc[same, "metric"], strict=True))
    titles = []
    for row, concept in zip(frame.to_dict("records"), concepts, strict=True):
        role = ROLES.get(row["role"], row["role"]) if several[row["metric"]] else ""
        names = [concept, role] if not concept or (concept, row["metric"]) in shared else [concept]
        titles.append(", ".join(filter(None, [*names, title_of(row["metric"])])))
    return titles


def cell(row: Mapping[str, Any], state: str) -> str:
    """A value with its standard deviation over tasks, or else with its interval where it has one."""
    text, spread = number(row[f"{state}_value"]), row.get(f"{state}_deviation", math.nan)
    if math.isfinite(spread):
        return f"{text} ± {number(spread)}"
    low, high = (row.get(f"{state}_{end}", math.nan) for end in ("low", "high"))
    return text if math.isnan(low) else f"{text} [{number(low)}, {number(high)}]"


def wide(frame: pd.DataFrame, changed: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The rows of `cells.table` as text: base, erased and fine-tuned models of each task below each other.

    Columns: task, model, and one for each metric and role or concept; a dash where a model has no value.

    Args:
        changed: eraser -> the settings that change its objective, which its name is marked for.
    """
    records: dict[tuple[str, str], dict[str, str]] = {}
    for row, column in zip(frame.to_dict("records"), column_titles(frame), strict=True):
        eraser = marked(row["eraser"], changed or {})
        models = [("base", "base"), (eraser, "erased")]
        models += [(f"{eraser} + {row['finetune']}", "finetuned")] if row["finetune"] else []
        for model, state in models:
            records.setdefault((row["task"], model), {})[column] = cell(row, state)
    rows = [{"task": task, "model": model, **values} for (task, model), values in records.items()]
    return pd.DataFrame(rows).fillna("-")
