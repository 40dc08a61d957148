"""Copies of the workflow's tree, and Snakemake in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

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
        # Snakemake ends only after its last timer, which the profile makes longer than these studies
        command = [sys.executable, "-m", "snakemake", *arguments, "--max-jobs-per-timespan", "1000/1s", "--configfile"]
        command.append(self.overlay)
        done = subprocess.run(
            command,
            cwd=self.root,
            env={**kept, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if check and done.returncode:
            raise AssertionError(f"snakemake {' '.join(arguments)} failed:\n{done.stdout[-8000:]}")
        return done.stdout

    def jobs(self, *arguments: str) -> list[str]:
        """The messages of the jobs that a dry run would start, sorted."""
        return messages(self.snakemake("-n", *arguments))

    def edit(self, path: str, old: str, new: str, times: int = 1) -> None:
        """Replace text in a file of the tree; it must occur so many times."""
        file = self.root / path
        text = file.read_text()
        assert text.count(old) == times, f"{path}: {old!r} occurs {text.count(old)} times"
        file.write_text(text.replace(old, new))


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], str]) -> tuple[Path, str]:
    """Make something once for all workers of a run of the tests; the others wait until it is there.

    Args:
        name: of the folder that it is made in.
        make: takes that folder, which does not exist yet, and returns what is to be remembered.

    Returns:
        The folder, which no test may change, and what `make` returned.
    """
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, told = shared / name, shared / f"{name}.txt"
    with FileLock(f"{folder}.lock"):
        if not told.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            text = make(folder)
            told.write_text(text)
    return folder, told.read_text()


def workflow_of(tree: Tree, **config: Any) -> Any:
    """The workflow as Snakemake has read it: `.rules` with their messages, resources, commands.

    Snakemake's API prints the rules, and hands its object out under a private name only.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings

    here = Path.cwd()
    try:
        os.chdir(tree.root)
        with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
            read = api.workflow(
                resource_settings=ResourceSettings(cores=1),
                config_settings=ConfigSettings(configfiles=[Path(tree.overlay)], config=config),
                snakefile=Path("Snakefile"),
            )
            return read._workflow
    finally:
        os.chdir(here)


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
