"""Intervals of the study: bootstrap clustered by concept, paired by prompt and seed; harmonic means; medians.

A metric of an image set is an `Estimate`: its value and its value in each resample. All image sets of a task are
resampled by the same draws, so anything computed from several of them (a difference, a harmonic mean) is computed
resample by resample, which keeps the pairing by prompt and seed.

The images of one concept are not independent, so concepts are drawn, with all of their rows. Plain percentile intervals
are too short with few concepts (nominal 95 % cover about 91 % with 10 of them), so the percentiles are expanded to
those of Student's t: Hesterberg's expanded percentile interval (2015, "What teachers should know about the bootstrap").
At a nominal 95 % it covers 94 to 95 % with eight concepts or more, about 92 % with five (simulated in
tests/test_statistics.py). An accuracy of 0 or 100 % in every concept has an interval of length 0, which means that the
data have no variation, not that the true value is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Estimate(NamedTuple):
    """A value and its replicates: one a resample (bootstrap), or one a left-out group (jackknife)."""

    value: float
    replicates: Array  # (R,)
    n: int  # images
    method: Literal["bootstrap", "jackknife"] = "bootstrap"
    clusters: int = 0  # drawn for a resample; 0: unknown, the interval is not expanded


class Clusters(NamedTuple):
    """Which rows are drawn together."""

    codes: NDArray[np.int64]  # (n,), cluster of each row, 0 .. number - 1
    number: int
    unit: Literal["concept", "pair"]


def clusters_of(concepts: Sequence[str]) -> Clusters:
    """Cluster rows by concept; with only one concept (the task ship), each prompt-seed pair is a cluster."""
    names, codes = np.unique(np.asarray(concepts, dtype=str), return_inverse=True)
    if len(names) > 1:
        return Clusters(codes.astype(np.int64), len(names), "concept")
    return Clusters(np.arange(len(codes)), len(codes), "pair")


def draw_counts(clusters: int, resamples: int, generator: np.random.Generator) -> Array:
    """Number of times that each cluster is drawn in each resample: (resamples, clusters), rows sum to `clusters`."""
    draws = generator.integers(0, clusters, size=(resamples, clusters))
    flat = (draws + clusters * np.arange(resamples)[:, None]).ravel()
    return np.bincount(flat, minlength=resamples * clusters).reshape(resamples, clusters).astype(np.float64)


def bootstrap_mean(values: ArrayLike, clusters: Clusters, counts: Array) -> Estimate:
    """Mean over the rows, and over the rows of each resample, which are those of its clusters.

    Args:
        values: (n,). NaN rows do not count (an image without a face, say); if all are NaN, so is the mean.
        counts: (R, G) from `draw_counts`.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    sums = np.bincount(clusters.codes, np.where(finite, values, 0.0), clusters.number)
    sizes = np.bincount(clusters.codes, finite, clusters.number)
    with np.errstate(invalid="ignore"):
        replicates = (counts @ sums) / (counts @ sizes)
    n = int(finite.sum())
    return Estimate(float(sums.sum() / n) if n else math.nan, replicates, n, clusters=int((sizes > 0).sum()))


def groups_of(clusters: Clusters, most: int = 32) -> NDArray[np.int64]:
    """The clusters as at most `most` groups: (n,), group of each row."""
    return clusters.codes % min(most, clusters.number)


def jackknife(function: Callable[[NDArray[np.bool_]], float], clusters: Clusters, most: int = 32) -> Estimate:
    """Leave one group of clusters out at a time: for statistics that are not means.

    A bootstrap sample repeats images, which shrinks the covariance in a Fréchet distance and biases all replicates to
    one side of the value; leaving groups out does not.

    Args:
        function: of a mask over the rows, (n,) bool. most: largest number of groups.
    """
    groups = groups_of(clusters, most)
    replicates = [function(groups != k) for k in range(groups.max() + 1)] if clusters.number > 1 else []
    value = function(np.ones(len(groups), dtype=bool))
    return Estimate(value, np.array(replicates, dtype=np.float64), len(groups), "jackknife")


def combine(function: Callable[..., ArrayLike], *estimates: Estimate, n: int) -> Estimate:
    """Apply a function to values and, resample by resample, to replicates of estimates with the same draws."""
    methods = {estimate.method for estimate in estimates}
    if len(methods) > 1:
        raise ValueError(f"cannot combine estimates of different methods: {sorted(methods)}")
    replicates = np.asarray(function(*(e.replicates for e in estimates)), dtype=np.float64)
    clusters = min(e.clusters for e in estimates)
    return Estimate(float(function(*(e.value for e in estimates))), replicates, n, estimates[0].method, clusters)


def difference(after: Estimate, before: Estimate) -> Estimate:
    """Paired difference: with the same rows and draws, the mean of the row-wise differences and its replicates."""
    return combine(np.subtract, after, before, n=min(after.n, before.n))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates with the same draws, resample by resample, for example over seeds."""
    return combine(lambda *values: np.mean(values, axis=0), *estimates, n=sum(e.n for e in estimates))


def tail(level: float, clusters: int) -> float:
    """Percentile of the lower end of a two-sided interval: Phi(-sqrt(G / (G - 1)) t), t the quantile of Student's t
    with G - 1 degrees of freedom at (1 + level) / 2.

    It approaches (1 - level) / 2 with many clusters, and is that with fewer than two, whose spread is unknown.
    """
    if clusters < 2:
        return (1 - level) / 2
    reach = math.sqrt(clusters / (clusters - 1)) * scipy.stats.t.ppf((1 + level) / 2, clusters - 1)
    return float(scipy.stats.norm.cdf(-reach))


def interval(estimate: Estimate, level: float) -> tuple[float, float]:
    """Two-sided interval: expanded percentiles of a bootstrap, Student's t around the value of a jackknife.

    NaN without finite replicates.
    """
    replicates = estimate.replicates[np.isfinite(estimate.replicates)]
    if not len(replicates):
        return math.nan, math.nan
    if estimate.method == "bootstrap":
        below = tail(level, estimate.clusters)
        low, high = np.quantile(replicates, [below, 1 - below])
        return float(low), float(high)
    count = len(replicates)
    error = math.sqrt((count - 1) / count * float(((replicates - replicates.mean()) ** 2).sum()))
    reach = float(scipy.stats.t.ppf((1 + level) / 2, count - 1)) * error
    return estimate.value - reach, estimate.value + reach


def p_value(estimate: Estimate) -> float:
    """Two-sided p value of "the true value is 0": 1 minus the smallest level whose bootstrap interval contains 0.

    If no replicate lies beyond 0, the tail is that of a normal distribution with their mean and deviation, so that the
    p value is not limited by the number of replicates when it is adjusted for the number of tests. If all replicates
    are equal, the tail is unknown: the p value is 1 for a value of 0, else the smallest that so many replicates allow.
    NaN for a jackknife or without replicates.
    """
    replicates = estimate.replicates[np.isfinite(estimate.replicates)]
    if not len(replicates) or estimate.method != "bootstrap":
        return math.nan
    beyond = min((replicates <= 0).sum(), (replicates >= 0).sum())
    share = (1 + beyond) / (len(replicates) + 1)
    if not beyond and np.ptp(replicates) > 0:
        share = min(share, float(scipy.stats.norm.sf(abs(replicates.mean()) / replicates.std())))
    if estimate.clusters < 2:
        return float(min(1.0, 2 * share))
    t = -scipy.stats.norm.ppf(min(share, 0.5)) * math.sqrt((estimate.clusters - 1) / estimate.clusters)
    return float(2 * scipy.stats.t.sf(t, estimate.clusters - 1))


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


def harmonic_mean(*terms: ArrayLike) -> NDArray[np.float64]:
    """k / sum(1 / term), elementwise; 0 where any term is 0."""
    stacked = np.stack(np.broadcast_arrays(*(np.asarray(term, dtype=np.float64) for term in terms)))
    zero = (stacked <= 0).any(0)
    return np.where(zero, 0.0, len(terms) / (1 / np.where(zero, 1.0, stacked)).sum(0))


def harmonic_c(erased: ArrayLike, retained: ArrayLike) -> NDArray[np.float64]:
    """H_c = 2 / [(1 - Acc_e)^-1 + Acc_s^-1] of MACE (people and styles); accuracies in [0, 1]."""
    return harmonic_mean(1 - np.asarray(erased), retained)


def harmonic_o(erased: ArrayLike, retained: ArrayLike, synonyms: ArrayLike) -> NDArray[np.float64]:
    """H_o = 3 / [(1 - Acc_e)^-1 + Acc_s^-1 + (1 - Acc_g)^-1] of MACE (objects with synonyms); accuracies in [0, 1]."""
    return harmonic_mean(1 - np.asarray(erased), retained, 1 - np.asarray(synonyms))


def recovered_fraction(base: float, erased: float, finetuned: float) -> float:
    """(finetuned - erased) / (base - erased): 1 is full recovery, 0 none; NaN if erasing changed nothing."""
    lost = base - erased
    return (finetuned - erased) / lost if abs(lost) >= 1e-9 else math.nan


def median_deviation(values: ArrayLike) -> tuple[float, float]:
    """The authors' statistic over seeds: the median and the largest deviation from it."""
    values = np.asarray(values, dtype=np.float64)
    if not values.size:
        raise ValueError("median of no values; give at least one seed")
    middle = float(np.median(values))
    return middle, float(np.abs(values - middle).max())
