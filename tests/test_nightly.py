"""What .ci/nightly keeps for the next night, and that nothing that fails keeps the rest from running."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import mutants
import pytest
import yaml

import shipped_worlds

ROOT = Path(__file__).parents[1]
PARTS = ["worlds", "test", "test-slurm", "test-nightly", "weights", "mutants ARGS=--goes-on"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The script with a `make` that notes its targets and a Python that writes a table, both failing on request."""
    scripts = {
        ".ci/install": "",
        "bin/make": 'echo "$*" >>made; test "$*" != "$FAILS"\n',
        ".venv/bin/python": 'echo benchmarks >>made\ntest "$STATUS" = 1 || echo "[1]" >"$3"\nexit "$STATUS"\n',
    }
    for name, text in scripts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (tmp_path / name).chmod(0o755)
    shutil.copy(ROOT / ".ci/nightly", tmp_path / ".ci/nightly")
    return tmp_path


def night(place: Path, status: int = 0, fails: str = "") -> tuple[int, str, str]:
    """Exit status, what the script says at the end, and the table that the next night compares with."""
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "STATUS": str(status), "FAILS": fails}
    run = subprocess.run([place / ".ci/nightly"], env=environment, capture_output=True, text=True, check=False)
    assert (place / "made").read_text().splitlines() == [PARTS[0], "benchmarks", *PARTS[1:]]
    (place / "made").unlink()
    return run.returncode, run.stderr.strip(), (place / ".venv/benchmarks.json").read_text().strip()


def test_a_table_is_kept_unless_a_ratio_has_fallen(place: Path) -> None:
    assert night(place, status=1) == (1, "failed: benchmarks", "[]")  # an error, without a table
    assert night(place, status=4) == (1, "failed: benchmarks", "[]")  # a ratio has fallen
    assert night(place, status=3) == (1, "failed: benchmarks", "[1]")  # a row misses its limit
    assert night(place) == (0, "", "[1]")


def test_all_that_failed_is_named(place: Path) -> None:
    assert night(place, fails="test-slurm") == (1, "failed: test-slurm", "[1]")
    assert night(place, status=3, fails=PARTS[-1]) == (1, "failed: benchmarks mutants", "[1]")


def test_both_worlds_are_pulled_before_the_nightly_tests() -> None:
    command = ["make", "--dry-run", "--always-make", "test-nightly"]
    lines = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    pulled = [line.split()[-1] for line in lines if " pull " in f"{line} " and "dvc" in line]
    assert pulled[0] == "data/miniature-2/dvc.yaml" and pulled[-1] == "data/miniature/dvc.yaml"
    commands = [line for line in lines if not line.startswith("make[")]  # where make runs the tests
    assert 'pytest -m "nightly or chaos or full_size"' in commands[-1]


@pytest.mark.parametrize(
    ("world", "ci", "outcome"),
    [
        ("miniature", None, pytest.skip.Exception),
        ("miniature", "1", pytest.skip.Exception),  # .ci/run pulls only the second
        ("miniature", "nightly", AssertionError),
        ("miniature-2", None, pytest.skip.Exception),
        ("miniature-2", "1", AssertionError),
        ("miniature-2", "nightly", AssertionError),
    ],
)
def test_a_world_that_is_missing_fails_where_it_is_pulled_and_is_skipped_elsewhere(
    world: str, ci: str | None, outcome: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped_worlds, "ROOT", tmp_path)
    if ci is None:
        monkeypatch.delenv("RESURGENCE_CI", raising=False)
    else:
        monkeypatch.setenv("RESURGENCE_CI", ci)
    with pytest.raises(outcome, match=f"data/{world} is not here"):
        shipped_worlds.require_world(world)
    folder = tmp_path / "data" / world
    (folder / "base").mkdir(parents=True)
    (folder / "base/model_index.json").touch()
    assert shipped_worlds.require_world(world) == folder


@pytest.mark.parametrize("script", ["run", "nightly"])
def test_the_scripts_say_which_of_the_two_they_are(script: str, place: Path) -> None:
    """By the value that the commands they start see."""
    shutil.copy(ROOT / f".ci/{script}", place / f".ci/{script}")
    (place / "bin/make").write_text('#!/usr/bin/env bash\necho "$RESURGENCE_CI" >>made\n')
    environment = {**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "STATUS": "0"}
    subprocess.run([place / f".ci/{script}"], env=environment, capture_output=True, check=True)
    assert set((place / "made").read_text().split()) - {"benchmarks"} == {{"run": "1", "nightly": "nightly"}[script]}


def test_the_workflow_restores_after_the_set_up_and_saves_whatever_happened() -> None:
    text = (ROOT / ".github/workflows/nightly.yml").read_text(encoding="utf-8")
    steps = yaml.safe_load(text)["jobs"]["nightly"]["steps"]
    setup, restore, nightly, save = steps[-4:]
    assert (setup["run"], nightly["run"]) == ("make setup", ".ci/nightly") and save["if"] == "always()"
    assert restore["uses"].startswith("actions/cache/restore@") and save["uses"].startswith("actions/cache/save@")
    assert restore["with"]["path"] == save["with"]["path"] and restore["with"]["key"] == save["with"]["key"]
    assert restore["with"]["key"].startswith(restore["with"]["restore-keys"])
    assert restore["with"]["path"].split() == [
        ".venv/benchmarks.json", mutants.OUTCOMES.relative_to(ROOT).as_posix(),
    ]  # fmt: skip
