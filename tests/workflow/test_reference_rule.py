"""General prompts and real images in the graph of the small study: what a dry run would do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tree import Tree, clone

from resurgence.config.fields import ConfigError
from resurgence.config.load import load_study


@pytest.fixture
def tree(fresh: Tree, tmp_path: Path) -> Tree:
    made = Tree(clone(fresh.root, tmp_path / "tree"))
    overlay = made.root / "tests/small.yaml"
    text = overlay.read_text()
    text = text.replace("names: [pets], ", "names: [pets], general: data/small/general.csv, general_for: [pets], ")
    text += (
        "  inception: {path: data/small/inception.pth}\n  frechet: {features: inception, reference: data/small/real}\n"
    )
    overlay.write_text(text.replace("statistics: {resamples: 100}\n", "") + "statistics: {resamples: 100}\n")
    (made.root / "data/small/general.csv").write_text("prompt,seed,image_id\ntwo dogs on a sofa,7,1\n")
    (made.root / "data/small/inception.pth").write_text("weights")
    (made.root / "data/small/real").mkdir()
    (made.root / "data/small/real/000001.jpg").write_text("a picture")
    return made


def test_features_of_real_images_are_made_once(tree: Tree) -> None:
    told = tree.snakemake("-n", "-p")
    assert told.count("Features of real images") == 1
    assert '"general": "data/small/general.csv"' in told and "data/small/general.csv >" in told.replace("  ", " ")
    score = next(line for line in told.splitlines() if "resurgence.stages.score " in line)
    assert "data/small/real" not in score  # other real images score nothing again
    tables = next(line for line in told.splitlines() if "resurgence.stages.tables " in line)
    assert "results/data/small/reference/manifest.json" in tables


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("data/small/real}", "data/small/nowhere}", "scorers.frechet.reference = 'data/small/nowhere': no such folder"),
        ("general: data/small/general.csv", "general: nowhere.csv", "tasks.general = 'nowhere.csv': no such file"),
        ("general_for: [pets]", "general_for: [cars]", "tasks.general_for = 'cars': not known here"),
    ],
)
def test_what_is_not_there_is_told(
    tree: Tree, old: str, new: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.edit("tests/small.yaml", old, new)
    monkeypatch.chdir(tree.root)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_study([Path("params.yaml"), Path(tree.overlay)])
