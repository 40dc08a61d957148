"""The place of some concepts among all of a role: quantiles of a metric, such as EAP's delta over a vocabulary.

Figures 1 and 2 of EAP say that concepts near the erased one lose most and neutral ones lie in the middle. With the
values v_1 .. v_n of a model's concepts, the mid-rank quantile of concept c is

    q(c) = (number of v_i < v_c + half the number of v_i = v_c) / n,

between 1 / 2n and 1 - 1 / 2n, and 1/2 at the median. Figure 7 says that the similarity of words does not tell which
lose; the number is Spearman's rank correlation of similarity and value. The vocabulary and the words are fixed; the
seeds of erasing are random, so the interval is Student's over the seeds, and one seed has none. A rank is known to half
a place: where all seeds have the same value, the interval is that of seeds which spread evenly from 1 / 2n below it to
1 / 2n above it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from resurgence.analysis.random_effects import REPEATED, Array, Estimate, Part, mean_of
from resurgence.analysis.ranks import rank_correlation
from resurgence.analysis.score_sets import ImageSet
from resurgence.config.experiment import Claim
from resurgence.config.model_path import method_name
from resurgence.config.scorers import metrics
from resurgence.scorers.erasure_configs import SIMILARITY


def concept_values(images: ImageSet, metric: str, role: str) -> pd.DataFrame:
    """A metric of each concept of a role in one image set; a general prompt, which has no concept, is its own.

    Columns concept, value (NaN where no image has the metric), n (images with a value).
    """
    declared = metrics()[metric]
    rows = images.rows[images.rows["role"] == role]
    rows = rows.assign(concept=rows["concept"].where(rows["concept"] != "", rows["prompt"]))
    means = rows.groupby("concept")[declared.column].agg(value="mean", n="count").reset_index()
    return means.assign(value=declared.scale * means["value"])


def quantiles(values: ArrayLike) -> Array:
    """Mid-rank quantile of each value (n,) among all of them."""
    values = np.asarray(values, dtype=np.float64)
    less, equal = values[None] < values[:, None], values[None] == values[:, None]
    return np.asarray((less.sum(1) + equal.sum(1) / 2) / len(values))


def place(images: ImageSet, metric: str, claim: Claim) -> float:
    """Mean quantile of the claim's words among the concepts of its role that have a value, or of |q - 0.5|.

    Raises:
        LookupError: a word without a value.
    """
    values = concept_values(images, metric, claim.of.role).dropna(subset="value")
    place_of = dict(zip(values["concept"], quantiles(values["value"]), strict=True))
    if lacking := [word for word in claim.words if word not in place_of]:
        raise LookupError(f"claim {claim.says!r}: no image of {lacking[0]!r} has {metric} in the role {claim.of.role}")
    places = np.array([place_of[word] for word in claim.words])
    return float(np.abs(places - 0.5).mean() if claim.place == "off_middle" else places.mean())


def similarities(images: ImageSet) -> dict[str, float]:
    """The similarity of each concept, or general prompt without one, to the nearest erased concept of the task."""
    columns = images.rows[["concept", "prompt", SIMILARITY]]
    return {concept or prompt: value for concept, prompt, value in columns.itertuples(index=False)}


def correlation(images: ImageSet, metric: str, role: str) -> float:
    """Spearman's rank correlation of a metric and the similarity over the concepts of a role that are not erased.

    Raises:
        LookupError: one of the two does not vary.
    """
    erased = set(images.rows.loc[images.rows["role"] == "erase", "concept"])
    values = concept_values(images, metric, role)
    values["similarity"] = values["concept"].map(similarities(images))
    known = values[~values["concept"].isin(erased)].dropna(subset=["value", "similarity"])
    for column in ("value", "similarity"):
        if known[column].nunique() < 2:
            what = metric if column == "value" else column
            raise LookupError(f"{what} does not vary over the concepts of the role {role}, so it has no rank")
    return rank_correlation(known["similarity"], known["value"])


def number_of(images: ImageSet, metric: str, claim: Claim) -> float:
    """What a claim about words or ranks is about, in one erased model."""
    if claim.place == "correlation":
        return correlation(images, metric, claim.of.role)
    return place(images, metric, claim)


def mean_place(sets: Sequence[ImageSet], metric: str, claim: Claim) -> Estimate:
    """The mean over the erased models in the cells of a claim; their tables are (1, seeds), several tasks are paired.

    Raises:
        LookupError: no model is in these cells, or a word has no value.
    """
    cells = dataclasses.replace(claim.of, finetune=None, concept=None)
    models: dict[tuple[str, str], list[ImageSet]] = {}
    for images in (images for images in sets if images.key["state"] == "erased"):
        key = images.key
        row = {"task": key["task"], "eraser": method_name(key["eraser"], key["variant"]), "role": cells.role}
        if cells.holds(row):
            models.setdefault((row["task"], row["eraser"]), []).append(images)
    if not models:
        raise LookupError(f"no row holds {dataclasses.asdict(claim.of)}")
    estimates = []
    for names, group in models.items():
        group.sort(key=lambda images: images.key["erase_seed"])
        table = np.array([[number_of(images, metric, claim) for images in group]])
        values, runs = concept_values(group[0], metric, cells.role), len(group)
        n = int(values.loc[values["concept"].isin(claim.words) | (not claim.words), "n"].sum())
        if runs > 1 and np.ptp(table) == 0 and claim.place == "correlation":
            table, runs = table[:, :1], 1  # seeds that do not differ say nothing of how much they could
        elif runs > 1 and np.ptp(table) == 0:
            table = table + np.linspace(-1, 1, runs) / (2 * int(values["value"].notna().sum()))
        part = Part((*names, claim), (*names, "words", claim), table, n * runs, REPEATED["pair"], None, runs)
        estimates.append(Estimate(part.value, (part,), lambda v: float(v[0]), n))
    return mean_of(estimates)
