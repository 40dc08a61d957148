"""A home directory that cannot be written, as on the nodes of some clusters, stops nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from snakemake.cli import parse_args
from snakemake.settings.types import SharedFSUsage
from tree import Tree, clone

NO_HOME = {"HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none/cache"}
TARGET = "results/data/small/pets/prompts/manifest.json"


def test_a_study_starts_and_runs_without_a_writable_home(fresh: Tree, tmp_path: Path) -> None:
    tree = Tree(clone(fresh.root, tmp_path / "tree"))
    assert "1 of 1 steps" in tree.snakemake("--cores", "1", TARGET, environment=NO_HOME)
    assert (tree.root / TARGET).is_file()


def test_a_study_on_a_cluster_starts_without_a_writable_home(fresh: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its jobs copy the rules to the temporary files of their nodes: they get the same setting, and no other folder."""
    monkeypatch.setenv("RESURGENCE_SITE", str(fresh.root / "profiles/slurm/site.yaml"))  # the profile would set it
    options = ("--workflow-profile", "profiles/slurm", "-n", TARGET, "-q", "rules")
    told = fresh.snakemake(*options, environment=NO_HOME)
    assert "prompts" in told
    _, args = parse_args(["--profile", str(fresh.root / "profiles/slurm")])
    assert SharedFSUsage.all() - args.shared_fs_usage == {SharedFSUsage.SOURCE_CACHE}
