"""Copies of the workflow's tree, and Snakemake in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("Snakefile", "params.yaml", "workflow", "src", "config", "profiles", "envs")


@dataclass
class Tree:
    """A copy of the workflow with a study in it."""

    root: Path
    overlay: str = "tests/small.yaml"

    def snakemake(self, *arguments: str, check: bool = True, environment: Mapping[str, str] | None = None) -> str:
        """Run Snakemake in the tree; returns what it printed, both streams together."""
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SNAKEMAKE_PROFILE")}
        command = [sys.executable, "-m", "snakemake", *arguments, "--configfile", self.overlay]
        done = subprocess.run(
            command,
            cwd=self.root,
            env={**kept, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        told = re.sub(r"^ *import time:.*\n", "", done.stdout, flags=re.MULTILINE)  # PYTHONPROFILEIMPORTTIME
        if check and done.returncode:
            raise AssertionError(f"snakemake {' '.join(arguments)} failed:\n{told[-8000:]}")
        return told

    def jobs(self, *arguments: str) -> list[str]:
        """The messages of the jobs that a dry run would start, sorted."""
        return messages(self.snakemake("-n", *arguments))

    def edit(self, path: str, old: str, new: str, times: int = 1) -> None:
        """Replace text in a file of the tree; it must occur so many times."""
        file = self.root / path
        text = file.read_text()
        assert text.count(old) == times, f"{path}: {old!r} occurs {text.count(old)} times"
        file.write_text(text.replace(old, new))


def fresh_tree(root: Path) -> Tree:
    """A copy of the workflow below root with the small world, before anything has run."""
    from small_world import make_world

    for part in PARTS:
        if (ROOT / part).is_dir():
            clone(ROOT / part, root / part)
        else:
            shutil.copy2(ROOT / part, root / part)
    (root / "tests").mkdir()
    shutil.copy2(ROOT / "tests/small.yaml", root / "tests/small.yaml")
    make_world(root)
    return Tree(root)


def messages(output: str) -> list[str]:
    """The messages of the jobs in Snakemake's output, sorted."""
    return sorted(re.findall(r"^Job \d+: (.+)$", output, flags=re.MULTILINE))


def clone(source: Path, target: Path) -> Path:
    """Copy a tree with its times of change, on which Snakemake decides."""
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    return target
