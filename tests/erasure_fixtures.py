"""Fixtures of the tests of erasers: the pipelines, and the data of those that learn from images."""

from __future__ import annotations

import pytest
import torch

from resurgence.erasers import EraserData
from slow import KINDS, pipeline
from slow_images import pictures


@pytest.fixture(scope="module", params=list(KINDS))
def pipe(request):
    return pipeline(request.param)


@pytest.fixture(scope="module", params=list(KINDS))
def double(request):
    """In float64, where the formula and the objective differ by rounding alone."""
    return pipeline(request.param, torch.float64)


@pytest.fixture(scope="module")
def plain():
    """For what does not depend on the kind of prediction."""
    return pipeline("epsilon")


@pytest.fixture(scope="module")
def data() -> EraserData:
    return pictures()
