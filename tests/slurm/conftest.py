"""The tree with the small world, as in tests/workflow."""

from __future__ import annotations

import pytest
from tree import Tree, fresh_tree


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Before anything has run."""
    return fresh_tree(tmp_path_factory.mktemp("fresh"))
