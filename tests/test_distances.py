"""Which roles have distances: a covariance needs two images when the largest group of the jackknife is left out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from resurgence.analysis.distances import distance_estimates
from resurgence.analysis.roles import roles_of
from resurgence.analysis.score_sets import image_set


@pytest.mark.parametrize(
    ("concepts", "has"),
    [
        (["ship"] * 3, True),  # three groups of one image
        (["ship"] * 2, False),
        (["ship", "ship", "cat", "cat"], True),
        (["ship", "ship", "cat"], False),  # one image without the ship's
    ],
)
def test_two_images_must_be_left(concepts: list[str], has: bool) -> None:
    rows = pd.DataFrame({"prompt": concepts, "concept": concepts, "role": "erase", "seed": range(len(concepts))})
    key, draws = {"base": "b", "task": "t"}, np.random.default_rng(0)
    erased = {"eraser": "mace", "variant": "default", "erase_seed": 0, "state": "erased"}
    sets = [
        image_set({**key, **of}, rows, draws.normal(size=(len(rows), 2))) for of in ({"state": "base"}, erased)
    ]  # fmt: skip
    found = distance_estimates(sets, roles_of(sets[0]))
    assert {metric for number, _, metric in found if number == 1} == ({"frechet", "kid"} if has else set())
