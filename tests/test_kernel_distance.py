"""The kernel distance against the sum written out, torchmetrics' KID, and its mean for samples of one distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from resurgence.scorers.frechet import distance as frechet
from resurgence.scorers.kernel_distance import kernel, paired_distance


def samples(n: int, features: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, (n, features))


def slow(x: np.ndarray, y: np.ndarray) -> float:
    """One pair of pairs at a time."""
    k = lambda a, b: (float(a @ b) / len(a) + 1) ** 3  # noqa: E731
    n, total = len(x), 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                total += k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i])
    return total / (n * (n - 1))


@pytest.mark.parametrize("number", [1, 3, 11])
def test_equals_the_sum_over_pairs_with_any_groups_left_out(number: int) -> None:
    x, y, groups = samples(11, 4, 0), samples(11, 4, 1, 0.5), np.arange(11) % number
    distance = paired_distance(x, y, groups)
    assert distance(np.ones(11, dtype=bool)) == pytest.approx(slow(x, y), rel=1e-12)
    for g in range(number if number > 1 else 0):
        mask = groups != g
        assert distance(mask) == pytest.approx(slow(x[mask], y[mask]), rel=1e-10)


def test_differs_from_torchmetrics_by_the_pairs_of_one_noise() -> None:
    x, y = samples(20, 6, 0), samples(20, 6, 1, 0.3)
    ours = paired_distance(x, y, np.arange(20))(np.ones(20, dtype=bool))
    cross = kernel(x, y)
    usual = 2 * cross.mean()
    without = 2 * (cross.sum() - np.trace(cross)) / (20 * 19)
    assert float(poly_mmd(torch.tensor(x), torch.tensor(y))) == pytest.approx(ours + without - usual, rel=1e-6)


def test_two_samples_of_one_distribution_are_0_apart_on_average_and_frechet_is_not() -> None:
    """Sixteen features, 40 images: the mean of 300 draws within three standard errors of 0."""
    draws = [(samples(40, 16, 2 * k), samples(40, 16, 2 * k + 1)) for k in range(300)]
    values = [paired_distance(x, y, np.arange(40))(np.ones(40, dtype=bool)) for x, y in draws]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values)) and min(values) < 0 < max(values)
    floors = [frechet(x, y) for x, y in draws[:30]]
    assert np.mean(floors) > 20 * np.std(floors) / np.sqrt(30)
    shifted = [paired_distance(x, y + 0.5, np.arange(40))(np.ones(40, dtype=bool)) for x, y in draws[:30]]
    assert np.mean(shifted) > 5 * np.std(values)


def test_equal_images_are_0_apart() -> None:
    x = samples(12, 5, 3)
    assert paired_distance(x, x, np.arange(12) % 4)(np.ones(12, dtype=bool)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.zeros((3, 2)), np.zeros((4, 2)), "of one shape"),
        (np.zeros((1, 2)), np.zeros((1, 2)), "n at least 2"),
        (np.zeros((3, 2)), np.full((3, 2), np.nan), "not finite|NaN or infinity"),
    ],
)
def test_what_has_no_distance_is_refused(x: np.ndarray, y: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        paired_distance(x, y, np.zeros(len(x), dtype=np.int64))
