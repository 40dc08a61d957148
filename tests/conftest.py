"""Of all tests: the budgets of the tiers, and that none changes the environment of those after it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from budget import Budget


def pytest_configure(config: pytest.Config) -> None:
    """Add up what the tests cost."""
    config.pluginmanager.register(Budget(config), "budget")


OURS = ("RESURGENCE_", "SNAKEMAKE_", "SLURM_", "DVC_", "PATH", "PYTHONPATH", "CUDA_", "XDG_")  # that decide what runs


@pytest.fixture(autouse=True, scope="module")
def environment() -> Iterator[None]:
    """The variables that decide what runs are the same after a module's tests as before."""

    def variables() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith(OURS)}

    before = variables()
    yield
    assert variables() == before
