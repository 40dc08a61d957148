"""A small study (tests/small.yaml), really run once for all workers in a copy of the tree; tests change copies."""

from __future__ import annotations

from pathlib import Path

import pytest
from tree import Tree, clone, fresh_tree, once


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The tree with the small world, before anything has run."""
    return fresh_tree(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="session")
def finished(fresh: Tree, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tree, str]:
    """The tree after a whole run on two cores, and what the run printed. Not to be changed: see `copy`."""

    def run(root: Path) -> str:
        return Tree(clone(fresh.root, root)).snakemake("--cores", "2")

    root, told = once(tmp_path_factory, "finished", run)
    return Tree(root), told


@pytest.fixture
def copy(finished: tuple[Tree, str], tmp_path: Path) -> Tree:
    """A copy of the finished tree, to be changed."""
    return Tree(clone(finished[0].root, tmp_path / "tree"))
