"""Terciles: similarities against a loop, thirds against numpy's histogram and sorting, draws that repeat."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resurgence.config.fields import ConfigError, build
from resurgence.config.stages import TercileConfig
from resurgence.data.terciles import draw_concepts, similarities, terciles


@pytest.mark.parametrize(("which", "choose"), [("max", max), ("min", min)])
def test_similarity_is_that_of_the_nearest_or_farthest(which: str, choose) -> None:
    generator = torch.Generator().manual_seed(0)
    erased, candidates = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (3, 11))
    expected = [choose(float(c.double() @ e.double()) for e in erased) for c in candidates]
    np.testing.assert_allclose(similarities(erased, candidates, which), expected, rtol=1e-12)


def test_equal_width_is_numpys_histogram() -> None:
    values = np.random.default_rng(1).gamma(2.0, 1.0, 200)
    counts, _ = np.histogram(values, bins=3)
    found = terciles(values, "width")
    assert [int((found == k).sum()) for k in (1, 2, 3)] == counts.tolist()
    assert values[found == 1].max() < values[found == 2].min() < values[found == 3].min()


@pytest.mark.parametrize("n", [3, 30, 31, 32])
def test_equal_counts(n: int) -> None:
    values = np.random.default_rng(2).random(n)
    found = terciles(values, "count")
    sizes = [int((found == k).sum()) for k in (1, 2, 3)]
    assert sum(sizes) == n and max(sizes) - min(sizes) <= 1
    assert (np.diff(found[np.argsort(values)]) >= 0).all()


def test_ties_and_too_few() -> None:
    assert sorted(terciles(np.zeros(6), "count").tolist()) == [1, 1, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="equally similar"):
        terciles(np.zeros(6), "width")
    with pytest.raises(ValueError, match="2 candidates"):
        terciles(np.array([0.1, 0.2]), "count")


def test_draw_repeats_and_does_not_depend_on_the_order() -> None:
    names = [f"n{i:02d}" for i in range(20)]
    first = draw_concepts(names, 5, 42, "t")
    assert first == draw_concepts(names[::-1], 5, 42, "t") == sorted(first) and len(set(first)) == 5
    assert first != draw_concepts(names, 5, 43, "t") and draw_concepts(names, 50, 42, "t") == names


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="size"):
        build(TercileConfig, {"candidates": "file", "number": 1, "size": 0}, "tercile")
    with pytest.raises(ConfigError, match="template"):
        TercileConfig("file", 1, template="a name")
