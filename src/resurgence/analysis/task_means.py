"""Means over tasks that are random units, such as the splits of classes in EAP's tables, from the rows of each task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from resurgence.analysis.cells import STATES
from resurgence.analysis.random_effects import REPEATED, Estimate, Part, difference
from resurgence.config.counting import counted


def over_tasks(estimates: Sequence[Estimate], tasks: Sequence[str]) -> Estimate:
    """The mean of an estimate over several tasks, which are its random units; seeds of a task are averaged first.

    Images of several seeds of a task count as far as they are independent (`Part.independent`). A single task has no
    interval: nothing says how much another would differ.
    """
    parts = [part for estimate in estimates for part in estimate.parts]
    scales = {part.scale for part in parts} if len(parts) == len(estimates) else {None}  # a share in each task
    table, name = np.array([[estimate.value] for estimate in estimates]), tuple(part.name for part in parts)
    images, scale = round(sum(part.independent for part in parts)), scales.pop() if len(scales) == 1 else None
    scale = scale if len(tasks) > 1 else None
    part = Part(name, ("tasks", *tasks), table, images, REPEATED["concept"], scale)
    return Estimate(part.value, (part,), lambda v: float(v[0]), sum(estimate.n for estimate in estimates))


def pool_tasks(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `pool_seeds` at last steps as means over tasks, which are the random units of their Estimates.

    Returns:
        Rows as those of `pool_seeds`; their task is the number of tasks, `gains` holds each task's, and `deviations`
        the standard deviation over tasks (with n - 1) of base, erased and finetuned.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["eraser"], row["finetune"], row["role"], row["metric"]), []).append(row)
    pooled = []
    for group in groups.values():
        tasks = [row["task"] for row in group]
        means = {state: over_tasks([row[state] for row in group], tasks) for state in STATES[:3]}
        means["gain"] = difference(means["finetuned"], means["erased"])
        gains = [row["gain"].value for row in group]
        spread = {state: float(mean.parts[0].table.std(ddof=1)) if len(tasks) > 1 else math.nan
                  for state, mean in means.items() if state != "gain"}  # fmt: skip
        several = {"task": counted(len(tasks), "task"), "step": max(row["step"] for row in group), "runs": 1}
        pooled.append({**group[0], **several, **means, "gains": gains, "deviations": spread})
    return pooled
