"""Measures of the study that are computed from means: harmonic means, recovered fraction, median and deviation."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
    """The authors' statistic over seeds: the median and the largest deviation from it; NaN where one seed ran."""
    values = np.asarray(values, dtype=np.float64)
    if not values.size:
        raise ValueError("median of no values; give at least one seed")
    middle = float(np.median(values))
    return middle, float(np.abs(values - middle).max()) if values.size > 1 else math.nan
