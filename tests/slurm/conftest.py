"""The tree with the small world, as in tests/workflow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster import STARTED
from tree import Tree, fresh_tree


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Before anything has run."""
    return fresh_tree(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No Snakemake of a test outlives it."""
    yield
    for process in STARTED:
        process.kill()
        process.wait()
    STARTED.clear()
