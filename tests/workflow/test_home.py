"""A home directory that cannot be written, as on the nodes of some clusters, stops nothing."""

from __future__ import annotations

from pathlib import Path

from tree import Tree, clone


def test_a_study_starts_and_runs_without_a_writable_home(fresh: Tree, tmp_path: Path) -> None:
    tree = Tree(clone(fresh.root, tmp_path / "tree"))
    environment = {"HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none/cache"}
    target = "results/data/small/pets/prompts/manifest.json"
    assert "1 of 1 steps" in tree.snakemake("--cores", "1", target, environment=environment)
    assert (tree.root / target).is_file()
