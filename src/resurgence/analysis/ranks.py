"""Ranks and their correlation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def order_of(values: ArrayLike) -> np.ndarray:
    """The position of each value among the distinct ones, from 0; has the same ranks, which are then faster to get."""
    return np.unique(values, return_inverse=True)[1]


def mean_ranks(order: np.ndarray) -> np.ndarray:
    """Ranks from 1 of integers from 0; equal ones have the mean of their ranks."""
    counts = np.bincount(order)
    return (np.cumsum(counts) - (counts - 1) / 2)[order]


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rho: Pearson's correlation of mean ranks."""
    return float(np.corrcoef(mean_ranks(order_of(x)), mean_ranks(order_of(y)))[0, 1])
