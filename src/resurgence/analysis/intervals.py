"""Intervals and p values: one rule for every number of the study.

Concepts and seeds are random; with a single run the interval is about that run (random_effects.py).

- Share of images: Clopper and Pearson's interval at the effective number of images, that whose binomial variance is the
  variance of the mean, reduced for its degrees of freedom (Korn and Graubard 1998, Survey Methodology 24, 193).
- Combination of shares (a difference, a harmonic mean): the distances of each to its limits, squared and added with
  their correlations (MOVER: Newcombe 1998, Statistics in Medicine 17, 2635; Zou and Donner 2008, ibid. 27, 1693).
- Any other mean or distance: Student's t with the variance and the degrees of freedom of random_effects.py.
- p value: 1 minus the largest level whose interval leaves 0 out, so both always agree.

benchmarks/coverage.py simulates the coverage; docs/intervals.md has its table.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainccinv, betaincinv, stdtrit

from resurgence.analysis.random_effects import Array, Estimate, Part, variance

COMMON = 0.95
"""Level beyond which intervals of combinations grow at least as Student's t."""


def effective_images(part: Part, level: float) -> float:
    """Images of a simple random sample with the variance of this share.

    N p (1 - p) / ((N - 1) V) times (t of N - 1 / t of the degrees of freedom of V)^2, as Korn and Graubard; at most
    the images that count as independent, which is the number where the data have no variation.
    """
    scale, (spread, df) = part.scale or 1.0, part.spread
    binomial = part.value * (scale - part.value)
    if not (spread > 0 and binomial > 0):
        return part.independent
    degrees, quantile = max(part.images - 1, 1), (1 + level) / 2
    ratio = float(stdtrit(degrees, quantile) / stdtrit(df, quantile))
    return min(binomial / spread * part.images / degrees * ratio**2, part.independent)


def share_limits(part: Part, level: float) -> tuple[float, float]:
    """Clopper and Pearson's limits of a share at its effective number of images, in units of its scale."""
    scale = part.scale or 1.0
    low, high = exact_limits(min(max(part.value / scale, 0.0), 1.0), effective_images(part, level), level)
    return scale * low, scale * high


def exact_limits(share: float, n: float, level: float) -> tuple[float, float]:
    """Clopper and Pearson's limits of a share, 0 to 1, of n images; n need not be whole."""
    count, tail = share * n, (1 - level) / 2
    low = betaincinv(count, n - count + 1, tail) if count > 0 else 0.0
    high = betainccinv(count + 1, n - count, tail) if count < n else 1.0
    return float(low), float(high)


def none_of(images: float, level: float) -> float:
    """The largest share that `images` images show not even once with a probability of (1 - level) / 2."""
    return float(-np.expm1(np.log((1 - level) / 2) / images))


def interval(estimate: Estimate, level: float) -> tuple[float, float]:
    """Two-sided interval; NaN without a value or without repetition.

    Args:
        level: between 0 and 1.
    """
    parts = estimate.parts
    if not math.isfinite(estimate.value):
        return math.nan, math.nan
    if len(parts) == 1 and parts[0].scale and math.isclose(estimate.gradient[0], 1.0):
        return share_limits(parts[0], level)
    if all(part.scale for part in parts):
        below, above = reaches(estimate, level)
        return estimate.value - below, estimate.value + above
    spread, df = variance(parts, estimate.gradient)
    reach = float(stdtrit(df, (1 + level) / 2)) * math.sqrt(spread)
    return estimate.value - reach, estimate.value + reach


def reaches(estimate: Estimate, level: float) -> tuple[float, float]:
    """Lengths of the interval of a function of shares below and above its value, which holds no value that the function
    cannot take.

    The limits of a share end at 0 and all, so those of correlated shares would leave out a value at every level, with
    however few degrees of freedom: beyond COMMON the lengths are at least those of COMMON, scaled as Student's t.
    """
    lengths = square_and_add(estimate, level)
    weighted = zip(estimate.parts, estimate.gradient, strict=True)
    varying = [(part, weight) for part, weight in weighted if variance([part], [weight])[0] > 0]
    if level > COMMON and varying:
        _, df = variance(*zip(*varying, strict=True))
        scale = stdtrit(df, (1 + level) / 2) / stdtrit(df, (1 + COMMON) / 2)
        lengths = np.maximum(lengths, scale * square_and_add(estimate, COMMON))
    scales = np.array([part.scale or 1.0 for part in estimate.parts])
    largest = np.where(estimate.rises, scales, 0.0)
    center = estimate.function(np.array([part.value for part in estimate.parts]))
    ends = center - estimate.function(scales - largest), estimate.function(largest) - center
    return min(float(lengths[0]), ends[0]), min(float(lengths[1]), ends[1])


def square_and_add(estimate: Estimate, level: float) -> Array:
    """(2,) lengths below and above the value by MOVER.

    Neither is shorter than the exact interval of "none of the images", so that equal tables do not have length zero.
    Parts that change nothing alone, as those of a harmonic mean of which two terms are 0, are moved together.
    """
    parts, function = estimate.parts, estimate.function
    values = np.array([part.value for part in parts])
    limits = np.array([share_limits(part, level) for part in parts])  # (K, 2)
    ends = np.zeros((len(parts), 2))  # change of the function by each part: downwards, upwards
    for k in range(len(parts)):
        for limit in limits[k]:
            moved = values.copy()
            moved[k] = limit
            change = function(moved) - function(values)
            ends[k] = min(ends[k, 0], change), max(ends[k, 1], change)
    alone = ends.any(axis=1)
    towards = [np.where(estimate.rises == up, limits[:, 1], limits[:, 0]) for up in (False, True)]
    together = [function(np.where(alone, values, limit)) - function(values) for limit in towards]
    shortest = max(
        abs(slope) * (part.scale or 1.0) * none_of(part.independent, level)
        for slope, part in zip(estimate.gradient, parts, strict=True)
    )
    squares = [max(end @ estimate.correlations @ end, 0.0) for end in ends.T]
    return np.array([max(math.sqrt(s + change**2), shortest) for s, change in zip(squares, together, strict=True)])


def least_level(decided: Callable[[float], bool]) -> float:
    """The smallest 1 - level at which `decided(level)` holds, by bisection of its logarithm; 1 if it never does.

    Args:
        decided: of a level; holds at all levels below the largest at which it holds.
    """
    low, high = -12.0, 0.0  # powers of ten
    if not decided(1e-6):
        return 1.0
    if decided(1 - 10**low):
        return 10**low
    while high - low > 1e-4:
        middle = (low + high) / 2
        if decided(1 - 10**middle):
            high = middle
        else:
            low = middle
    return float(10**high)


def p_value(estimate: Estimate) -> float:
    """Two-sided p value of "the true value is 0": 1 minus the largest level whose interval leaves 0 out; at least
    1e-12. NaN without an interval."""

    def decided(level: float) -> bool:
        low, high = interval(estimate, level)
        return low > 0 or high < 0

    return math.nan if math.isnan(interval(estimate, 0.5)[0]) else least_level(decided)


def holm(p: ArrayLike) -> Array:
    """p values adjusted for their number by Holm's step-down procedure (1979), which controls the probability of any
    false rejection. NaN stays NaN and does not count."""
    p = np.asarray(p, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    finite = np.flatnonzero(np.isfinite(p))
    order = finite[np.argsort(p[finite], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
