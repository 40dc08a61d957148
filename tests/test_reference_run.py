"""The committed reference run: whole, made again from its scores to the last digit, and what docs/results.md shows."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pandas as pd
import pytest

from resurgence.cli import main
from resurgence.files import sha256, write_json
from resurgence.provenance.manifest import read_manifest

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "reference/miniature-full/results"


@pytest.fixture(scope="module")
def paper():
    spec = importlib.util.spec_from_file_location("paper", ROOT / "docs/paper.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_shows_the_reference(paper) -> None:
    page = paper.PAGE.read_text(encoding="utf-8")
    assert paper.filled(page, REFERENCE) == page
    assert page.count("| same |") + page.count("| different |") + page.count("| cannot tell |") >= 40
    pictures = [
        line.partition("](")[2].rstrip(")")
        for line in page.splitlines()
        if line.startswith("![") and "](../reference/" in line
    ]
    assert len(pictures) >= 15 and all((paper.DOCS / picture).stat().st_size > 5000 for picture in pictures)


@pytest.mark.timeout(600)
def test_tables_and_experiments_follow_from_the_scores(capsys) -> None:
    """What a reviewer runs as `make verify`."""
    assert main.main(["verify", str(REFERENCE), "--tables"]) == 0
    assert "made again from the stored scores, the same numbers" in capsys.readouterr().out


@pytest.mark.timeout(600)
def test_a_tampered_score_is_found(tmp_path: Path, capsys) -> None:
    """Ten images of one model called recognised, the manifest made to fit: the tables no longer follow."""
    copy = tmp_path / "results"
    shutil.copytree(REFERENCE, copy)
    file = next((copy / "scores").glob("*/ship/mace/s0/scores/step-000000/scores.parquet"))
    scores = pd.read_parquet(file)
    scores.loc[scores.index[scores["role"] == "erase"][:10], "recogniser_correct"] = 1.0
    scores.to_parquet(file)
    manifest = read_manifest(file.parents[1])
    manifest["files"][file.relative_to(file.parents[1]).as_posix()] = sha256(file)
    write_json(file.parents[1] / "manifest.json", manifest)
    assert main.main(["verify", str(copy), "--tables"]) != 0
    told = capsys.readouterr()
    assert "tables/cells.csv is not what the stored scores give" in told.out + told.err
