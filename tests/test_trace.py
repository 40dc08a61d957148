"""Provenance and verification of results on another disk, and the comparison of tables that have changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from resurgence.cli import main
from resurgence.provenance.manifest import described, write_artefact, write_made
from resurgence.provenance.trace import provenance
from resurgence.provenance.verify import count, problems


def study(root: Path, results: Path) -> Path:
    """Two artefacts, one made from the other, in a study whose results are elsewhere."""
    results.mkdir(parents=True)
    root.mkdir(exist_ok=True)
    if results != root / "results":
        (root / "results").symlink_to(os.path.relpath(results, root))
    (root / "params.yaml").write_text(yaml.safe_dump({"world": "world.yaml"}))
    (root / "world.yaml").write_text(yaml.safe_dump({"base": {"seed": 7, "steps": 3}}))
    first, second = (root / "results" / name for name in ("erased/delta", "images/ship"))
    inputs = {}
    for folder in (first, second):
        with write_artefact(folder, f"kind of {folder.name}", {}, inputs, {"seed": 1}, {}) as inside:
            (inside / "file").write_text(folder.name)
        inputs = {"results/erased/delta/manifest.json": first}
    return second


def lines(file: Path, root: Path) -> list[str]:
    """What provenance says, without the run, which differs."""
    return [line for line in provenance(file, None, root) if "run:" not in line and "code:" not in line]


def test_results_may_be_a_link_to_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answer as without the link, for each name of a file and each name of the study."""
    study(tmp_path / "plain", tmp_path / "plain/results")
    study(tmp_path / "linked", tmp_path / "disk/results")
    (tmp_path / "name").symlink_to("linked")
    expected = lines(Path("results/images/ship"), tmp_path / "plain")
    assert expected[0].startswith("results/images/ship: kind of ship") and any(
        "erased/delta: kind" in s for s in expected
    )
    roots = (tmp_path / "linked", tmp_path / "name", Path("linked"), Path("name"))
    monkeypatch.chdir(tmp_path)
    for root in roots:
        for file in ("results/images/ship", "results/images/ship/file", tmp_path / "disk/results/images/ship",
                     tmp_path / "name/results/images/ship", "results/erased/../images/ship"):  # fmt: skip
            assert lines(Path(file), root) == expected
    with pytest.raises(ValueError, match=r"plain/results/images/ship is not below .*linked; run the command in"):
        lines(tmp_path / "plain/results/images/ship", tmp_path / "linked")
    (tmp_path / "disk/results/erased/delta/file").write_text("changed")
    assert any("CHANGED" in line for line in lines(Path("results/images/ship"), tmp_path / "linked"))


def test_a_reference_whose_scores_were_not_pulled_names_the_command(tmp_path: Path) -> None:
    results = tmp_path / "reference/ship/results"
    (results / "tables").mkdir(parents=True)
    (results / "tables/cells.csv").write_text("base\nmini\n")
    write_made(results / "made.json", described("reference", {"models": 2}, {}, {}), [], 0.0, {})
    told = r"manifests\.parquet is missing; run `dvc pull reference/ship/dvc\.yaml`"
    with pytest.raises(FileNotFoundError, match=told):
        list(provenance(results / "tables/cells.csv", 1, tmp_path))


def test_a_link_below_the_results_is_verified_too(tmp_path: Path) -> None:
    study(tmp_path, tmp_path / "results")
    (tmp_path / "results/erased").rename(tmp_path / "disk")
    (tmp_path / "results/erased").symlink_to(tmp_path / "disk")
    assert list(problems(tmp_path / "results")) == [] and count(tmp_path / "results") == 2
    (tmp_path / "disk/delta/file").write_text("changed")
    (tmp_path / "disk/stray").write_text("x")
    changed, stray = problems(tmp_path / "results")
    assert "erased/delta/file has changed" in changed and "erased/stray is not listed" in stray


def test_tables_that_have_changed_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "resurgence.csv").write_text("metric\n")
    write_made(tables / "made.json", described("tables", {}, {}, {}), [tables / "resurgence.csv"], 0.0, {})
    (tables / "resurgence.csv").write_text("metric\nx\n")
    assert main.main(["compare", "--results", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "resurgence.csv has changed since it was written" in error and "run the study again" in error
