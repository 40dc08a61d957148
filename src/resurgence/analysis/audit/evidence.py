"""The evidence of a probe: its estimates of erased and retained concepts, from the scores of its models."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from resurgence.analysis.random_effects import Estimate, combine, difference, mean_estimate, over_runs, units_of
from resurgence.analysis.score_sets import ImageSet, check_pairs, name_of


@dataclass(frozen=True, eq=False)
class Evidence:
    """Shares of the images that show their concept, in percent, over the runs of one probe."""

    erased: Estimate
    concepts: dict[str, Estimate]  # erased concept -> its own share
    seeds: dict[str, Estimate]  # seed of the update -> its run's share, about that run; {}: one run
    retained: Estimate | None  # None: no image of a retained concept
    pairs: int  # distinct pairs of prompt and seed of the erased concepts

    @property
    def runs(self) -> int:
        """Seeds of the update; 1 without a random step."""
        return self.erased.runs


def evidence(sets: Sequence[ImageSet], column: str, role: str = "erase") -> Evidence:
    """The evidence of a probe from the image sets of its runs.

    Args:
        sets: of the seeds of one update, with the same prompts and seeds of sampling.
        column: of the scores, 1 for an image that shows its concept, else 0. Without a value (no face, say) the image
            does not show it.
        role: of the rows of the erased concepts: erase or synonym.

    Raises:
        ValueError: sets of different prompts or seeds, no rows of this role, or no such column.
    """
    check_pairs(sets)
    rows = sets[0].rows
    erased = (rows["role"] == role).to_numpy()
    if not erased.any() or column not in rows:
        raise ValueError(f"{name_of(sets[0].key)} has no {column} of role {role}; score its images with that scorer")
    names = sorted(set(rows.loc[erased, "concept"]))
    retained = (rows["role"] == "retain").to_numpy()
    masks = {name: erased & (rows["concept"] == name).to_numpy() for name in names}
    runs = {str(images.key.get("finetune_seed")): share([images], column, erased, (role, *names)) for images in sets}
    return Evidence(
        share(sets, column, erased, (role, *names)),
        {name: share(sets, column, mask, (role, name)) for name, mask in masks.items()},
        runs if len(runs) > 1 else {},
        share(sets, column, retained, ("retain",)) if retained.any() else None,
        len(rows.loc[erased, ["prompt", "seed"]].drop_duplicates()),
    )


def share(sets: Sequence[ImageSet], column: str, mask: np.ndarray, of: Hashable) -> Estimate:
    """The share of some rows, the same in all runs, whose images show their concept.

    A pair of prompt and seed counts once, however many runs repeat it: they share its noise, and runs that all show
    nothing do not say how much they would differ if they showed something.
    """
    values = [images.rows.loc[mask, column].astype(float).fillna(0.0).to_numpy() for images in sets]
    return share_of(sets, values, mask, of, 100.0)


def share_of(
    sets: Sequence[ImageSet], values: Sequence[np.ndarray], mask: np.ndarray, of: Hashable, scale: float
) -> Estimate:
    """The mean of `scale` times the values, 0 or 1, of some rows in each run; see `share`."""
    task = sets[0].key["task"]
    units = units_of(sets[0].rows.loc[mask, "concept"])
    runs = [
        mean_estimate(scale * shows, units, (*images.key.values(), of), (task, of), scale)
        for images, shows in zip(sets, values, strict=True)
    ]
    estimate = over_runs(runs)
    return replace(estimate, parts=tuple(replace(part, repeated=1.0) for part in estimate.parts))


def seen_elsewhere(sets: Sequence[ImageSet], top: str | None, erased: Sequence[str]) -> Estimate | None:
    """The share of the images of retained concepts in which an erased concept is seen, as the mean over the erased
    concepts, since an image is taken for one of them at most. None without such images or without the column.

    Args:
        top: column of the concept that an image is taken for, in any case of its letters.
    """
    rows = sets[0].rows
    mask = (rows["role"] == "retain").to_numpy()
    if top not in rows or not mask.any():
        return None
    words = [word.lower() for word in erased]
    values = [images.rows.loc[mask, top].str.lower().isin(words).to_numpy(dtype=float) for images in sets]
    return share_of(sets, values, mask, ("elsewhere", *erased), 100.0 / len(erased))


def change(after: Estimate, before: Estimate) -> Estimate:
    """Paired difference; a model without a random step counts once for every run of the other."""
    return difference(after, repeated(before, after.runs))


def beyond_loss(after: Estimate, before: Estimate, loss: float) -> Estimate:
    """By how much a share exceeds the least that an update may leave, `loss` percent less than before."""
    return combine(lambda a, b: a - (1 - loss / 100) * b, after, repeated(before, after.runs), n=after.n)


def repeated(estimate: Estimate, runs: int) -> Estimate:
    """The estimate of one run as that of several equal ones, so that it is paired with each."""
    return over_runs([estimate] * runs) if estimate.runs == 1 else estimate
