"""Fréchet distance between two sets of images, in the features of another scorer.

    d = ||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)),   mu, S mean and covariance of the features

With S_a = A^T A and S_b = B^T B the last trace is the sum of the singular values of A B^T. So no square root of a
product of matrices is needed, in which the usual formula loses precision when there are fewer images than features.
In float64; equal to torchmetrics' FrechetInceptionDistance of the same features (tests/test_scorers.py).

The distance is biased upwards for small sets: of two independent samples of n images of one distribution the means
alone are 2 tr(S) / n apart, and the covariances add more. So compare only sets with the same number of images of the
same prompts. The 0 of the base against itself (the same images) is a definition, not a measurement.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LARGE = 512  # rows and columns from which eigenvalues are faster than singular values


class Moments(NamedTuple):
    """Mean and a factor R of the covariance S = R^T R."""

    mean: Array  # (F,)
    factor: Array  # (min(n, F), F)


def moments(features: NDArray) -> Moments:
    """Moments of features (n, F), in float64.

    Raises:
        ValueError: fewer than two images, or features that are not finite.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features {x.shape}: a covariance needs (n, F) with at least 2 images")
    if not np.isfinite(x).all():
        raise ValueError("features hold NaN or infinity; score the image set again")
    mean = x.mean(0)
    return Moments(mean, np.linalg.qr((x - mean) / np.sqrt(len(x) - 1), mode="r"))


def nuclear_norm(x: Array) -> float:
    """Sum of the singular values; of large matrices from the eigenvalues of x x^T, in a third of the time.

    The square root of an eigenvalue has an error of 1e-8 of the largest singular value, the sum of 2,048 of them one of
    2e-5, which is negligible in Fréchet distances of images.
    """
    if min(x.shape) < LARGE:
        return float(np.linalg.svd(x, compute_uv=False).sum())
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    return float(np.sqrt(np.linalg.eigvalsh(gram).clip(min=0)).sum())


def between(a: Moments, b: Moments) -> float:
    """Fréchet distance of two Gaussians; at least 0 in spite of rounding."""
    means = float(((a.mean - b.mean) ** 2).sum())
    traces = float((a.factor**2).sum() + (b.factor**2).sum())
    return max(0.0, means + traces - 2 * nuclear_norm(a.factor @ b.factor.T))


def distance(a: NDArray, b: NDArray) -> float:
    """Fréchet distance of two feature arrays (n, F) and (m, F)."""
    return between(moments(a), moments(b))
