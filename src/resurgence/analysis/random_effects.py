"""Means as tables of random units and runs, functions of them, and their variances.

Concepts and seeds are random. A mean has a table (units x runs): its units are the concepts, or the pairs of prompt and
seed where there is a single concept; its runs are the seeds of erasing and fine-tuning. All runs of a task have the
same prompts and noise, so units and runs are crossed: random effects without replication (Searle, Casella and McCulloch
1992, Variance Components, section 4.7), with Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2, 110).
Runs that are all pairs of seeds of erasing and of fine-tuning are two factors (mean_squares.py).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resurgence.analysis.mean_squares import Design, crossed, design_of, independent

Array = NDArray[np.float64]
REPEATED = {"concept": 1.0, "pair": 0.5, "noise": 1.0}  # share of an image's variance common to all runs, by unit


class Units(NamedTuple):
    """What is random apart from the runs."""

    codes: NDArray[np.int64]  # (n,), unit of each row, 0 .. number - 1
    number: int
    kind: Literal["concept", "pair", "noise"]


def units_of(concepts: Sequence[str]) -> Units:
    """The concepts of the rows; with only one (the task ship), each row, a pair of prompt and seed, is a unit."""
    names, codes = np.unique(np.asarray(concepts, dtype=str), return_inverse=True)
    if len(names) > 1:
        return Units(codes.astype(np.int64), len(names), "concept")
    return Units(np.arange(len(codes)), len(codes), "pair")


@dataclass(frozen=True, eq=False)
class Part:
    """A mean, or a distance, as its table of units and runs."""

    name: Hashable  # of image set, role and metric: parts of the same name are the same numbers
    units: Hashable  # parts with equal units are paired, row by row
    table: Array  # (U, S); its mean is the value
    images: int  # of all different runs
    repeated: float  # REPEATED of its units
    scale: float | None = None  # the largest value of a share, which has limits; None: no share
    runs: int = 1  # different runs: those of one erased model under three fine-tunes are one
    present: NDArray[np.bool_] | None = None  # (U,), whether a unit has any value; None: each has
    design: Design | None = None  # of runs that are all pairs of seeds; None: they are independent draws

    @cached_property
    def value(self) -> float:
        """The mean over units and runs."""
        return float(self.table.mean())

    @cached_property
    def spread(self) -> tuple[float, float]:
        """Variance of the value and its degrees of freedom."""
        return variance([self], [1.0])

    @property
    def independent(self) -> float:
        """Images that count as independent at most: of S runs with n images each, n S / (1 + (S - 1) r) with r =
        `repeated`, because all runs have the same prompts and noise."""
        return self.images / (1 + (self.runs - 1) * self.repeated)


@dataclass(frozen=True, eq=False)
class Estimate:
    """A value that is a function of parts, monotone in each: a mean, a difference, a harmonic mean."""

    value: float
    parts: tuple[Part, ...]
    function: Callable[[Array], float]  # of the values of the parts
    n: int  # images of one run

    @property
    def runs(self) -> int:
        """Runs that the interval is over; 1: it is about these runs, and says nothing of other seeds, as where the
        parts have different numbers of runs."""
        numbers = {part.table.shape[1] for part in self.parts}
        return numbers.pop() if len(numbers) == 1 else 1

    @property
    def scope(self) -> str:
        """What the interval is about."""
        return "seeds" if self.runs > 1 else "this run"

    @cached_property
    def gradient(self) -> Array:
        """Partial derivatives by the values of the parts."""
        return self._slopes(np.array([part.value for part in self.parts]))

    @cached_property
    def rises(self) -> NDArray[np.bool_]:
        """Whether it rises with each part, (K,): in the middle of shares, as a harmonic mean is flat where one is 0."""
        return self._slopes(np.array([(part.scale or 1.0) / 2 for part in self.parts])) > 0

    def _slopes(self, values: Array) -> Array:
        """Partial derivatives, by central differences; exact for linear functions."""
        slopes = []
        for k in range(len(values)):
            step = np.zeros(len(values))
            step[k] = 1e-4 * (self.parts[k].scale or 1.0)
            slopes.append((self.function(values + step) - self.function(values - step)) / (2 * step[k]))
        return np.array(slopes)

    @cached_property
    def correlations(self) -> Array:
        """Correlations of the contributions of the parts, from the variances of their sums in pairs; (K, K)."""
        weighted = list(zip(self.parts, self.gradient, strict=True))
        single = [variance([part], [weight])[0] for part, weight in weighted]
        related = np.eye(len(weighted))
        for k, j in itertools.combinations(range(len(weighted)), 2):
            if single[k] > 0 and single[j] > 0:
                both, _ = variance(*zip(weighted[k], weighted[j], strict=True))
                r = (both - single[k] - single[j]) / (2 * math.sqrt(single[k] * single[j]))
                related[k, j] = related[j, k] = min(max(r, -1.0), 1.0)
        return related


def mean_estimate(
    values: ArrayLike, units: Units, name: Hashable, unit_name: Hashable, scale: float | None = None
) -> Estimate:
    """The mean over rows.

    The table holds the mean plus each unit's influence on it, so that units of different size have their weight.

    Args:
        values: (n,). NaN rows do not count (an image without a face, say), nor does a unit of which all are NaN; if
            all rows are, so is the mean.
        name, unit_name: of the part and of its units.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    sums = np.bincount(units.codes, np.where(finite, values, 0.0), units.number)
    sizes = np.bincount(units.codes, finite, units.number)
    n = int(finite.sum())
    mean = sums.sum() / n if n else math.nan
    table = mean + (sums - mean * sizes) * units.number / max(n, 1)
    images = int((sizes > 0).sum()) if units.kind == "noise" else n  # images of one noise count as one
    part = Part(name, unit_name, table[:, None], images, REPEATED[units.kind], scale, present=sizes > 0)
    return Estimate(float(mean), (part,), lambda v: float(v[0]), n)


def groups_of(units: Units, most: int = 32) -> NDArray[np.int64]:
    """The units as at most `most` groups: (n,), group of each row."""
    return units.codes % min(most, units.number)


def jackknife(
    function: Callable[[NDArray[np.bool_]], float], units: Units, name: Hashable, unit_name: Hashable, most: int = 32
) -> Estimate:
    """A statistic that is no mean, for example a distance: its table holds the pseudo-values of groups of units that
    are left out in turn (Tukey 1958), shifted to have the value itself as their mean.

    Args:
        function: of a mask over the rows, (n,) bool. most: largest number of groups.
    """
    groups = groups_of(units, most)
    number = int(groups.max()) + 1
    value = function(np.ones(len(groups), dtype=bool))
    without = np.array([function(groups != k) for k in range(number)]) if number > 1 else np.array([math.nan])
    table = value + (number - 1) * (without.mean() - without)
    part = Part(name, (unit_name, "groups", number), table[:, None], len(groups), REPEATED[units.kind])
    return Estimate(value, (part,), lambda v: float(v[0]), len(groups))


def by_name(parts: Sequence[Part]) -> dict[Hashable, Part]:
    """The parts by name, in their order, each once.

    Raises:
        ValueError: two parts of the same name hold other numbers; says the name and both.
    """
    named: dict[Hashable, Part] = {}
    for part in parts:
        if (other := named.setdefault(part.name, part)) is not part and not is_same(other, part):
            both = (f"{p.value:.6g} of {p.images} images by {p.table.shape} of {p.units!r}" for p in (other, part))
            raise ValueError(f"{part.name!r} names {' and '.join(both)}; give each image set its own key")
    return named


def is_same(part: Part, other: Part) -> bool:
    """Whether two parts hold the same numbers of the same units."""
    pairs = ((part.table, other.table), (presence(part), presence(other)))
    rest = ("units", "images", "repeated", "scale", "runs")
    return all(np.array_equal(*pair, equal_nan=True) for pair in pairs) and all(
        getattr(part, key) == getattr(other, key) for key in rest
    )


def combine(function: Callable[..., ArrayLike], *estimates: Estimate, n: int) -> Estimate:
    """A function of estimates. Parts of the same name count once.

    Args:
        function: of the values, monotone in each. n: images of one run.

    Raises:
        ValueError: see `by_name`.
    """
    parts = list(by_name([part for estimate in estimates for part in estimate.parts]).values())
    position = {part.name: k for k, part in enumerate(parts)}
    places = [[position[part.name] for part in estimate.parts] for estimate in estimates]
    functions = [estimate.function for estimate in estimates]

    def composed(values: Array) -> float:
        return float(function(*(f(values[place]) for f, place in zip(functions, places, strict=True))))

    return Estimate(float(function(*(e.value for e in estimates))), tuple(parts), composed, n)


def difference(after: Estimate, before: Estimate) -> Estimate:
    """Paired difference: units and runs that both have are subtracted from each other."""
    return combine(np.subtract, after, before, n=min(after.n, before.n))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates of several cells."""
    return combine(lambda *values: np.mean(values), *estimates, n=sum(e.n for e in estimates))


def over_runs(runs: Sequence[Estimate], seeds: Sequence[tuple[Hashable, Hashable]] = ()) -> Estimate:
    """The mean of the same estimate in several runs, whose tables become the columns of one.

    A part that is the same in all of them (the base, an eraser without a random step) has equal columns.

    Args:
        seeds: of erasing and of fine-tuning of each run; (): independent draws.
    """
    first = runs[0]
    if len(runs) == 1:
        return first
    if design := design_of(seeds):
        runs = [runs[k] for k in sorted(range(len(runs)), key=seeds.__getitem__)]
    parts = [stacked([run.parts[k] for run in runs], design) for k in range(len(first.parts))]
    value = float(np.mean([run.value for run in runs]))
    return Estimate(value, tuple(parts), first.function, min(run.n for run in runs))


def seeds_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Hashable, Hashable]]:
    """The seeds of erasing and of fine-tuning of some rows of tables; None: no such step."""
    return [(row.get("erase_seed"), row.get("finetune_seed")) for row in rows]


def stacked(parts: Sequence[Part], design: Design | None) -> Part:
    """The parts of several runs as one; parts of the same name count once. Raises as `by_name`."""
    first, tables = parts[0], np.hstack([part.table for part in parts])
    name = tuple(part.name for part in parts)
    different = by_name(parts).values()
    images, runs = sum(part.images for part in different), sum(part.runs for part in different)
    present = np.logical_or.reduce([presence(part) for part in parts])
    return Part(name, first.units, tables, images, first.repeated, first.scale, runs, present, design)


def variance(parts: Sequence[Part], weights: ArrayLike) -> tuple[float, float]:
    """Variance of the weighted sum of the parts, and its degrees of freedom.

    Parts with the same units are added row by row; units that no part has a value of are left out. If the numbers of
    runs differ, the runs are fixed.

    Returns:
        (NaN, NaN) if no unit or run repeats.
    """
    fixed = len({part.table.shape[1] for part in parts}) > 1
    blocks: dict[Hashable, Array] = {}
    present: dict[Hashable, NDArray[np.bool_]] = {}
    for part, weight in zip(parts, np.asarray(weights, dtype=np.float64), strict=True):
        table = weight * (part.table.mean(1, keepdims=True) if fixed else part.table)
        blocks[part.units] = blocks[part.units] + table if part.units in blocks else table
        present[part.units] = presence(part) | present.get(part.units, False)
    blocks = {units: only(table, present[units]) for units, table in blocks.items()}
    tables, design = list(blocks.values()), None if fixed else next((p.design for p in parts if p.design), None)
    terms = independent(tables) if design is None else crossed(tables, design)
    terms = [(term, df) for term, df in terms if df > 0]
    if not terms:
        return math.nan, math.nan
    total = sum(term for term, _ in terms)
    squares = sum(term**2 / df for term, df in terms)
    return total, total**2 / squares if squares > 0 else float(max(df for _, df in terms))


def presence(part: Part) -> NDArray[np.bool_]:
    """Whether each unit of a part has any value, (U,)."""
    return np.ones(len(part.table), dtype=bool) if part.present is None else part.present


def only(table: Array, present: NDArray[np.bool_]) -> Array:
    """The rows of the units that are present, whose influence is a part of a smaller number."""
    if present.all():
        return table
    mean = table.mean(0)
    return mean + (table[present] - mean) * (present.sum() / len(present))
