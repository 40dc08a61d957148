"""Kernel distance (KID) between two sets of images of the same prompts and seeds, in the features of another scorer.

    MMD^2_u = 1 / (n (n - 1)) sum_{i != j} k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)
    k(a, b) = (a . b / F + 1)^3

The unbiased estimate for paired samples of Gretton et al. 2012 (eq. 4) with the kernel of Binkowski et al. 2018. Two
samples of one distribution have the mean 0 at every n, so small sets have no floor, as those of the Fréchet distance
have; values below 0 occur. The usual estimate of KID also holds the pairs i = j of k(x_i, y_j). Here both images of a
pair come from one noise, and are nearer than images of independent noise, so these pairs are left out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def kernel(a: Array, b: Array) -> Array:
    """k of all pairs of rows: (n, F), (m, F) -> (n, m)."""
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def group_sums(x: Array, y: Array, groups: NDArray[np.int64]) -> Array:
    """Sums of the terms above over i in group g and j in group h, without i = j: (G, G)."""
    number = int(groups.max()) + 1
    sums = np.zeros((number, number))
    for g in range(number):
        rows = groups == g
        terms = kernel(x[rows], x) + kernel(y[rows], y) - kernel(x[rows], y) - kernel(y[rows], x)
        terms[np.arange(len(terms)), np.flatnonzero(rows)] = 0
        sums[g] = np.bincount(groups, terms.sum(0), minlength=number)
    return sums


def paired_distance(x: NDArray, y: NDArray, groups: NDArray[np.int64]) -> Callable[[NDArray[np.bool_]], float]:
    """The distance of the rows of a mask as a function of the mask, which takes or leaves groups as a whole.

    Kernels are computed once, in float64, a group at a time.

    Args:
        x, y: features (n, F), row i of the same prompt and seed. groups: (n,), group of each row, from 0.

    Raises:
        ValueError: features of different shapes, fewer than two rows, or values that are not finite.
    """
    x, y = (np.asarray(features, dtype=np.float64) for features in (x, y))
    if x.shape != y.shape or x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features {x.shape} and {y.shape}: KID needs two arrays (n, F) of one shape, n at least 2")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features hold NaN or infinity; score the image set again")
    sums, sizes = group_sums(x, y, groups), np.bincount(groups)
    first = np.unique(groups, return_index=True)[1]

    def distance(mask: NDArray[np.bool_]) -> float:
        chosen = mask[first]
        n = sizes[chosen].sum()
        return float(sums[np.ix_(chosen, chosen)].sum() / (n * (n - 1)))

    return distance
