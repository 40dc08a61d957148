"""A small study (tests/small.yaml) that is really run, once a session, in a copy of the tree; tests change copies of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("Snakefile", "params.yaml", "workflow", "src", "config", "profiles", "envs")
sys.path.insert(0, str(Path(__file__).parent))


@dataclass
class Tree:
    """A copy of the workflow with a study in it."""

    root: Path
    overlay: str = "tests/small.yaml"

    def snakemake(self, *arguments: str, check: bool = True) -> str:
        """Run Snakemake in the tree; returns what it printed, both streams together."""
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SNAKEMAKE_PROFILE")}
        command = [sys.executable, "-m", "snakemake", *arguments, "--configfile", self.overlay]
        done = subprocess.run(
            command, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if check and done.returncode:
            raise AssertionError(f"snakemake {' '.join(arguments)} failed:\n{done.stdout[-8000:]}")
        return done.stdout

    def jobs(self, *arguments: str) -> list[str]:
        """The messages of the jobs that a dry run would start, sorted."""
        return messages(self.snakemake("-n", *arguments))

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace text in a file of the tree; it must occur once."""
        file = self.root / path
        text = file.read_text()
        assert text.count(old) == 1, f"{path}: {old!r} occurs {text.count(old)} times"
        file.write_text(text.replace(old, new))


def messages(output: str) -> list[str]:
    """The messages of the jobs in Snakemake's output, sorted."""
    return sorted(re.findall(r"^Job \d+: (.+)$", output, flags=re.MULTILINE))


def clone(source: Path, target: Path) -> Path:
    """Copy a tree with its times of change, on which Snakemake decides."""
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    return target


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The tree with the small world, before anything has run."""
    from small_world import make_world

    root = tmp_path_factory.mktemp("fresh")
    for part in PARTS:
        if (ROOT / part).is_dir():
            clone(ROOT / part, root / part)
        else:
            shutil.copy2(ROOT / part, root / part)
    (root / "tests").mkdir()
    shutil.copy2(ROOT / "tests/small.yaml", root / "tests/small.yaml")
    make_world(root)
    return Tree(root)


@pytest.fixture(scope="session")
def finished(fresh: Tree, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tree, str]:
    """The tree after a whole run on two cores, and what the run printed. Not to be changed: see `copy`."""
    tree = Tree(clone(fresh.root, tmp_path_factory.mktemp("finished") / "tree"))
    return tree, tree.snakemake("--cores", "2")


@pytest.fixture
def copy(finished: tuple[Tree, str], tmp_path: Path) -> Tree:
    """A copy of the finished tree, to be changed."""
    return Tree(clone(finished[0].root, tmp_path / "tree"))
