"""Estimates of every metric in every image set, from per-image scores, for the tables.

An image set holds the images that one model (base, erased, or fine-tuned up to a step) generated from a task's prompts.
All sets of a task must have the same prompts and seeds, so that their units are paired (random_effects.py).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from resurgence.analysis.distances import DISTANCES, distance_estimates, reference_estimates
from resurgence.analysis.measures import harmonic_c, harmonic_o
from resurgence.analysis.random_effects import Estimate, combine, mean_estimate
from resurgence.analysis.roles import part_name, roles_of
from resurgence.analysis.score_sets import STATES, ImageSet, check_pairs, name_of
from resurgence.config.scorers import BLANK, metrics, ranked

log = logging.getLogger(__name__)


def in_percent(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A function of fractions as one of percentages."""
    return lambda *percentages: 100 * function(*(value / 100 for value in percentages))


def harmonic(values: Mapping[tuple[str, str], Estimate]) -> tuple[str, Estimate] | None:
    """H_o of a set with synonyms of erased concepts, else H_c, in percent; None without erase or retain rows.

    H_o uses the accuracy of the highest rank, H_c that of the lowest: with all scorers the CLIP accuracy and the
    celebrity detector's or recogniser's, as in the published results for objects and celebrities.
    """
    name = "H_o" if any(role == "synonym" for role, _ in values) else "H_c"
    for metric in [m for m, declared in ranked(reverse=name == "H_o").items() if declared.accuracy]:
        parts = [values.get((role, metric)) for role in ("erase", "retain", "synonym")[: 3 if name == "H_o" else 2]]
        if all(part is not None for part in parts):
            function = harmonic_o if name == "H_o" else harmonic_c
            return name, combine(in_percent(function), *parts, n=sum(part.n for part in parts))
    return None


def task_estimates(
    sets: list[ImageSet],
    reference: np.ndarray | None = None,
    only: Collection[str] | None = None,
    each_concept: bool = False,
) -> tuple[list[dict], list[dict]]:
    """Every metric (or only some) of every image set of one task, the base first; and a description of the units."""
    check_pairs(sets)
    roles = roles_of(sets[0], each_concept)
    distances = distance_estimates(sets, roles) if only is None or set(DISTANCES) & set(only) else {}
    has_real = reference is not None and "general" in roles
    real = reference_estimates(sets, roles["general"], reference) if has_real else []
    means = {name: metric for name, metric in metrics().items() if metric.column is not None}
    # a metric that is undefined in all images of one set (no face in any) is NaN there, not left out
    scored = {
        (role, metric)
        for (role, part), (metric, m) in itertools.product(roles.items(), means.items())
        if any(
            m.column in images.rows and (metric == BLANK or images.rows.loc[part.mask, m.column].notna().any())
            for images in sets
        )
    }
    rows = []
    for number, images in enumerate(sets):
        values: dict[tuple[str, str], Estimate] = {}
        for role, part in roles.items():
            for metric, m in means.items():
                if (role, metric) in scored and m.column in images.rows:
                    column = m.scale * images.rows.loc[part.mask, m.column].to_numpy(dtype=np.float64)
                    names = part_name(images, role, metric), part.name
                    values[role, metric] = mean_estimate(column, part.units, *names, m.scale if m.share else None)
            for metric in DISTANCES:
                if (number, role, metric) in distances:
                    values[role, metric] = distances[number, role, metric]
            if role == "general" and real:
                values[role, "frechet_reference"] = real[number]
        if mean := harmonic(values):
            values["all", mean[0]] = mean[1]
        labels = {role: part.labels for role, part in roles.items()} | {"all": {"role": "all"}}
        rows += [
            {**images.key, **labels[role], "metric": metric, "n": estimate.n, "estimate": estimate}
            for (role, metric), estimate in values.items() if only is None or metric in only
        ]  # fmt: skip
    units = [
        {"base": sets[0].key["base"], "task": sets[0].key["task"], "role": name, "images": int(role.mask.sum()),
         "unit": role.units.kind, "units": role.units.number}
        for name, role in roles.items()
    ]  # fmt: skip
    return rows, units


def with_blank(sets: list[ImageSet]) -> list[ImageSet]:
    """The sets with a column `blank`, NaN in scores that were stored without one; unchanged if none has it."""
    if not any(BLANK in images.rows for images in sets):
        return sets
    return [replace(images, rows=images.rows.assign(**{BLANK: images.rows.get(BLANK, np.nan)})) for images in sets]


def estimates(
    sets: Iterable[ImageSet],
    reference: np.ndarray | None = None,
    only: Collection[str] | None = None,
    each_concept: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every metric of every image set as an Estimate, and a description of the random units.

    Args:
        reference: features of real images (m, F), for their distance to the images of general prompts.
        only: the metrics to compute; None: all.
        each_concept: of each concept by itself instead of all concepts of a role; the rows have a column `concept`.

    Raises:
        ValueError: a task without exactly one base image set, an image set twice, or prompts and seeds that differ.
    """
    groups: dict[tuple, list[ImageSet]] = {}
    for images in with_blank(list(sets)):
        groups.setdefault((images.key["base"], images.key["task"]), []).append(images)
    rows, units = [], []
    for (base, task), group in sorted(groups.items()):
        group.sort(key=lambda images: (STATES.index(images.key["state"]), name_of(images.key)))
        names = [name_of(images.key) for images in group]
        if repeated := sorted(name for name in names if names.count(name) > 1):
            raise ValueError(f"image set given twice: {repeated[0]}; list it once")
        if group[0].key["state"] != "base":
            raise ValueError(f"task {task!r} of base {base!r} has no image set of the base; sample and score it")
        log.info("task %s: %d image sets of %d images", task, len(group), len(group[0].rows))
        task_rows, task_units = task_estimates(group, reference, only, each_concept)
        rows += task_rows
        units += task_units
    if not rows:
        raise ValueError("no scores: give at least the image set of a base")
    return pd.DataFrame(rows, dtype=object), pd.DataFrame(units)
