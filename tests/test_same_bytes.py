"""tools/same_bytes.py: what counts as a difference of two results trees, and what does not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resurgence.provenance.manifest import MANIFEST, write_artefact

TOOL = Path(__file__).parents[1] / "tools/same_bytes.py"
DELTA = "erased/base/ship/uce/s0/delta"


def compare(*trees: Path) -> tuple[int, list[str]]:
    """Exit code and printed lines."""
    done = subprocess.run([sys.executable, TOOL, *trees], capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An artefact, and files of shared folders."""
    root = tmp_path / "old"
    for folder in ("tables", "figures", "grids", "experiments/fig7", "cost"):
        (root / folder).mkdir(parents=True)
        (root / folder / "made.json").write_text("{}")
        (root / folder / "shown.csv").write_text("a,b\n1,2\n")
    with write_artefact(root / DELTA, "erased delta", {"seed": 0}, {}, {}, {}) as folder:
        (folder / "delta.safetensors").write_bytes(b"weights")
    return root


@pytest.fixture
def new(old: Path) -> Path:
    """The same tree."""
    return shutil.copytree(old, old.with_name("new"))


def test_equal_trees(old: Path, new: Path) -> None:
    assert compare(old, new) == (0, ["5 files are the same"])


VARYING: dict[str, Callable[[Path], object]] = {
    "run": lambda root: (root / DELTA / "run.json").write_text('{"seconds": 9}'),
    "cost": lambda root: (root / "cost/shown.csv").write_text("a,b\n1,9\n"),
    "record": lambda root: (root / "tables/made.json").write_text('{"kind": "tables"}'),
    "settings": lambda root: edit(root / DELTA / MANIFEST, "parameters", {"seed": 1}),
    "report": lambda root: (root / "report.html").write_text("<html>"),
}
DIFFERENCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "table": (lambda root: (root / "tables/shown.csv").write_text("a,b\n1,3\n"), "tables/shown.csv: differs"),
    "experiment": (
        lambda root: (root / "experiments/fig7/new.png").write_bytes(b"p"),
        "experiments/fig7/new.png: only in the new tree",
    ),
    "grid": (lambda root: (root / "grids/shown.csv").unlink(), "grids/shown.csv: only in the old tree"),
    "artefact": (
        lambda root: edit(root / DELTA / MANIFEST, "files", {"delta.safetensors": "0" * 64}),
        f"{DELTA}/delta.safetensors: differs",
    ),
    "no artefact": (lambda root: shutil.rmtree(root / DELTA), f"{DELTA}/delta.safetensors: only in the old tree"),
}


def edit(manifest: Path, key: str, value: object) -> None:
    """Give a manifest another value."""
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), key: value}))


@pytest.mark.parametrize("what", VARYING)
def test_what_differs_from_run_to_run_is_no_difference(what: str, old: Path, new: Path) -> None:
    VARYING[what](new)
    assert compare(old, new) == (0, ["5 files are the same"])


@pytest.mark.parametrize("what", DIFFERENCES)
def test_a_difference_is_named_and_fails(what: str, old: Path, new: Path) -> None:
    change, line = DIFFERENCES[what]
    change(new)
    assert compare(old, new) == (1, [line])


def test_two_trees_without_results_do_not_pass(tmp_path: Path) -> None:
    assert compare(tmp_path, tmp_path)[0] == 1


def test_two_folders_are_needed(tmp_path: Path) -> None:
    code, lines = compare(tmp_path)
    assert code == 1 and lines == ["Error: 1 folders are named; write python tools/same_bytes.py OLD NEW"]
