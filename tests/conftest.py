"""Of all tests: budgets of the tiers, shipped worlds, and that none changes the environment of those after it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from budget import Budget
from shipped_worlds import require_world


def pytest_configure(config: pytest.Config) -> None:
    """Add up what the tests cost."""
    config.pluginmanager.register(Budget(config), "budget")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Look for the shipped world that a test needs."""
    for mark in item.iter_markers("world"):
        require_world(*mark.args)


OURS = ("RESURGENCE_", "SNAKEMAKE_", "SLURM_", "DVC_", "PATH", "PYTHONPATH", "CUDA_", "XDG_")  # that decide what runs


@pytest.fixture(autouse=True, scope="module")
def environment() -> Iterator[None]:
    """The variables that decide what runs are the same after a module's tests as before."""

    def variables() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith(OURS)}

    before = variables()
    yield
    assert variables() == before
