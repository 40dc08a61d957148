"""Estimates of every metric in every image set, from per-image scores: what tables.py prints.

An image set is the images that one model (base, erased, or fine-tuned up to a step) made of a task's prompts. All sets
of a task must have the same prompts and seeds, and are resampled by the same draws (statistics.py).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resurgence import seeds
from resurgence.analysis import bootstrap
from resurgence.analysis.bootstrap import Clusters, Estimate
from resurgence.config.scorers import metrics, ranked
from resurgence.scorers import read_scores
from resurgence.scorers.frechet import Moments, between, moments

log = logging.getLogger(__name__)

KEYS = [
    "base", "task", "eraser", "variant", "erase_seed", "finetune", "finetune_variant", "finetune_seed",
]  # fmt: skip
KEYS_OF = {"base": KEYS[:2], "erased": KEYS[:5], "finetuned": [*KEYS, "step"]}
STATES = list(KEYS_OF)
ROLES = ["erase", "synonym", "retain", "synonym-retain", "general", "all"]
PAIR = ["role", "concept", "prompt", "seed"]


@dataclass(frozen=True)
class ImageSet:
    """The scores of one image set: its keys (KEYS, state, step), rows in the order of PAIR, features in that order."""

    key: dict[str, Any]
    rows: pd.DataFrame
    features: np.ndarray | None = None  # (n, F)


@dataclass(frozen=True)
class Role:
    """The rows of one role, the same in all image sets of a task, and their draws."""

    mask: np.ndarray  # (n,) bool
    clusters: Clusters
    counts: np.ndarray  # (R, G)


def make_set(key: Mapping[str, Any], rows: pd.DataFrame, features: np.ndarray | None = None) -> ImageSet:
    """Check the keys and rows of one image set and sort the rows.

    Synonyms of concepts that are not erased become the role `synonym-retain`: in Acc_g of H_o only the synonyms of
    erased concepts count.

    Raises:
        ValueError: a key is missing, or two rows have the same prompt and seed.
    """
    state = key.get("state")
    if state not in KEYS_OF:
        raise ValueError(f"state = {state!r} of {dict(key)}; known: {', '.join(KEYS_OF)}")
    if missing := [name for name in KEYS_OF[state] if key.get(name) in (None, "")]:
        raise ValueError(f"{state} image set {dict(key)} has no {', '.join(missing)}; add what names its cell")
    rows = rows.reset_index(drop=True).assign(concept=rows["concept"].fillna("").to_numpy())
    erased = rows.loc[rows["role"] == "erase", "concept"].unique()
    kept = (rows["role"] == "synonym") & ~rows["concept"].isin(erased)
    rows.loc[kept, "role"] = "synonym-retain"
    rows = rows.sort_values(PAIR, kind="stable")
    if (double := rows.duplicated(["role", "prompt", "seed"])).any():
        raise ValueError(f"{name_of(key)} scores twice: {pairs(rows[double])}; sample and score it again")
    full = {name: key.get(name) if name in KEYS_OF[state] else None for name in [*KEYS, "step"]}
    features = None if features is None else np.asarray(features)[rows.index]
    return ImageSet({**full, "state": state}, rows.reset_index(drop=True), features)


def name_of(key: Mapping[str, Any]) -> str:
    """An image set in words, for messages."""
    return f"{key['state']} " + " ".join(f"{k}={key[k]}" for k in KEYS_OF[key["state"]])


def pairs(rows: pd.DataFrame, most: int = 3) -> str:
    """The prompt and seed of the first few rows."""
    told = [f"({p!r}, seed {s})" for p, s in zip(rows["prompt"], rows["seed"], strict=True)][:most]
    return ", ".join(told) + (f" and {len(rows) - most} more" if len(rows) > most else "")


def read_states(entries: Iterable[Mapping[str, Any]], features: str | None = None) -> list[ImageSet]:
    """Read the scores of every image set.

    Args:
        entries: the keys of the cell (as far as the state has them), `state`, `step` and `path` (scores folder).
        features: whose features the Fréchet distance uses; None: the only ones there are.
    """
    sets = []
    for entry in entries:
        rows, stored = read_scores(Path(entry["path"]))
        if features is None and len(stored) > 1:
            raise ValueError(f"{entry['path']} holds features of {', '.join(sorted(stored))}; say which to use")
        if features is not None and features not in stored:
            raise ValueError(f"{entry['path']} holds no features of {features!r}; score this image set again")
        used = stored[features] if features else next(iter(stored.values()), None)
        sets.append(make_set(entry, rows, used))
    return sets


def check_pairs(sets: list[ImageSet]) -> None:
    """Raise ValueError unless all image sets of a task have the same prompts and seeds as its base."""
    base, *others = sets
    wanted = pd.MultiIndex.from_frame(base.rows[PAIR])
    for other in others:
        seen = pd.MultiIndex.from_frame(other.rows[PAIR])
        if seen.equals(wanted):
            continue
        if missing := [pair for pair in wanted if pair not in seen]:
            told = pairs(pd.DataFrame(missing, columns=PAIR))
            raise ValueError(f"{name_of(other.key)} lacks {told}; sample it with the prompts of the base")
        told = pairs(other.rows[~seen.isin(wanted)])
        raise ValueError(f"{name_of(base.key)} lacks {told} of {name_of(other.key)}; sample the base again")


def roles_of(base: ImageSet, resamples: int, seed: int) -> dict[str, Role]:
    """The draws of each role of a task, the same for all its image sets.

    Roles about the same concepts (erased ones and their synonyms) share their draws, so a resample of a harmonic mean
    is one choice of concepts.
    """
    found = {}
    for role in [r for r in ROLES if (base.rows["role"] == r).any()]:
        mask = (base.rows["role"] == role).to_numpy()
        concepts = base.rows.loc[mask, "concept"]
        clusters = bootstrap.clusters_of(concepts)
        purpose = sorted(set(concepts)) if clusters.unit == "concept" else [role, str(concepts.iloc[0])]
        generator = seeds.numpy_generator("bootstrap", seed, base.key["task"], *purpose)
        found[role] = Role(mask, clusters, bootstrap.draw_counts(clusters.number, resamples, generator))
    return found


def frechet_estimates(sets: list[ImageSet], roles: Mapping[str, Role]) -> dict[tuple[int, str], Estimate]:
    """Fréchet distance of each set to the base by set number and role, with leave-one-out replicates.

    Raises:
        ValueError: features of some sets and not of others.
    """
    if unscored := [one for one in sets if one.features is None]:
        if len(unscored) < len(sets):
            raise ValueError(f"{name_of(unscored[0].key)} has no features and others have; score it again")
        return {}
    found = {}
    most = 8 if sets[0].features.shape[1] > 1000 else 32  # 2 s a replicate with 2,048 features and as many images
    for name, role in roles.items():
        sizes = np.bincount(bootstrap.groups_of(role.clusters, most))
        if sizes.sum() - sizes.max() < 2:
            continue  # the images left when a group is left out must have a covariance
        base: dict[bytes, Moments] = {}  # by rows kept; the same for all sets

        def value(kept: np.ndarray, a: np.ndarray, b: np.ndarray, base: dict[bytes, Moments] = base) -> float:
            key = kept.tobytes()
            if key not in base:
                base[key] = moments(a[kept])
            return between(base[key], moments(b[kept]))

        a = sets[0].features[role.mask]
        found[0, name] = Estimate(0.0, np.zeros(2), len(a), "jackknife")  # the base against itself, by definition
        for number, one in enumerate(sets[1:], 1):
            function = partial(value, a=a, b=one.features[role.mask])
            found[number, name] = bootstrap.jackknife(function, role.clusters, most)
    return found


def reference_estimates(sets: list[ImageSet], role: Role, reference: np.ndarray) -> list[Estimate]:
    """Fréchet distance of the images of general prompts of each set to features of real images, (m, F)."""
    real = moments(reference)
    most = 8 if reference.shape[1] > 1000 else 32
    found = []
    for one in sets:
        own = one.features[role.mask]
        if own.shape[1] != real.mean.shape[0]:
            raise ValueError(
                f"{name_of(one.key)} has {own.shape[1]} features, the real images {real.mean.shape[0]}: of another "
                "scorer"
            )
        found.append(bootstrap.jackknife(lambda kept, b=own: between(real, moments(b[kept])), role.clusters, most))
    return found


def in_percent(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A function of fractions as one of percentages."""
    return lambda *percentages: 100 * function(*(value / 100 for value in percentages))


def harmonic(found: Mapping[tuple[str, str], Estimate]) -> tuple[str, Estimate] | None:
    """H_o where the set has synonyms of erased concepts, else H_c, in percent; None without erase or retain rows.

    H_o takes the CLIP accuracy and H_c the celebrity detector's or the recogniser's, as the published objects and
    celebrities do; where that scorer is not used, another: H_o the accuracy of the highest rank, H_c of the lowest.
    """
    name = "H_o" if any(role == "synonym" for role, _ in found) else "H_c"
    for metric in [m for m, declared in ranked(reverse=name == "H_o").items() if declared.accuracy]:
        parts = [found.get((role, metric)) for role in ("erase", "retain", "synonym")[: 3 if name == "H_o" else 2]]
        if all(part is not None for part in parts):
            function = bootstrap.harmonic_o if name == "H_o" else bootstrap.harmonic_c
            return name, bootstrap.combine(in_percent(function), *parts, n=sum(part.n for part in parts))
    return None


def task_estimates(
    sets: list[ImageSet], resamples: int, seed: int, reference: np.ndarray | None = None, only: str | None = None
) -> tuple[list[dict], list[dict]]:
    """Every metric (or the one named) of every image set of one task, the base first; and what the draws of each role
    are."""
    check_pairs(sets)
    roles = roles_of(sets[0], resamples, seed)
    far = frechet_estimates(sets, roles) if only in (None, "frechet") else {}
    real = {"general": roles["general"]} if reference is not None and "general" in roles else {}
    unreal = {name: reference_estimates(sets, role, reference) for name, role in real.items()}
    means = {name: metric for name, metric in metrics().items() if metric.column is not None}
    # a metric that some set has and another has no image for (no face in any) is NaN there, and not left out
    scored = {
        (role, metric)
        for (role, draws), (metric, m) in itertools.product(roles.items(), means.items())
        if any(m.column in one.rows and one.rows.loc[draws.mask, m.column].notna().any() for one in sets)
    }
    made = []
    for number, one in enumerate(sets):
        found: dict[tuple[str, str], Estimate] = {}
        for role, draws in roles.items():
            for metric, m in means.items():
                if (role, metric) in scored and m.column in one.rows:
                    values = m.scale * one.rows.loc[draws.mask, m.column].to_numpy(dtype=np.float64)
                    found[role, metric] = bootstrap.bootstrap_mean(values, draws.clusters, draws.counts)
            if (number, role) in far:
                found[role, "frechet"] = far[number, role]
            if role in unreal:
                found[role, "frechet_reference"] = unreal[role][number]
        if mean := harmonic(found):
            found["all", mean[0]] = mean[1]
        kept = {place: e for place, e in found.items() if only in (None, place[1])}
        made += [{**one.key, "role": r, "metric": m, "n": e.n, "estimate": e} for (r, m), e in kept.items()]
    told = [
        {"base": sets[0].key["base"], "task": sets[0].key["task"], "role": name, "images": int(role.mask.sum()),
         "cluster": role.clusters.unit, "clusters": role.clusters.number, "resamples": resamples}
        for name, role in roles.items()
    ]  # fmt: skip
    return made, told


def estimates(
    sets: Iterable[ImageSet],
    resamples: int,
    seed: int,
    reference: np.ndarray | None = None,
    only: str | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every metric (or the one named) of every image set as an Estimate, and what its draws are.

    Args:
        reference: features of real images (m, F), for the distance of the images of general prompts to them.

    Raises:
        ValueError: a task without exactly one base image set, an image set twice, or prompts and seeds that differ.
    """
    groups: dict[tuple, list[ImageSet]] = {}
    for one in sets:
        groups.setdefault((one.key["base"], one.key["task"]), []).append(one)
    made, told = [], []
    for (base, task), group in sorted(groups.items()):
        group.sort(key=lambda one: (STATES.index(one.key["state"]), name_of(one.key)))
        names = [name_of(one.key) for one in group]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"image set given twice: {sorted(repeated)[0]}")
        if group[0].key["state"] != "base":
            raise ValueError(f"task {task!r} of base {base!r} has no image set of the base; sample and score it")
        log.info("task %s: %d image sets of %d images", task, len(group), len(group[0].rows))
        rows, draws = task_estimates(group, resamples, seed, reference, only)
        made += rows
        told += draws
    if not made:
        raise ValueError("no scores: give at least the image set of a base")
    return pd.DataFrame(made, dtype=object), pd.DataFrame(told)
