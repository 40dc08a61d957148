"""A study that has run in part: its finished experiments are a reference, and are made again from its stored scores."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from resurgence.config.fields import ConfigError
from resurgence.config.model_path import ModelPath
from resurgence.files import sha256, write_json
from resurgence.provenance.manifest import described, read_manifest, write_artefact
from resurgence.provenance.verify import problems
from resurgence.stages import experiment
from resurgence.stages.job import Job
from resurgence.stages.remake import experiments_again, remaining, tables_again
from resurgence.workflow import archive
from resurgence.workflow.reference import write_reference
from scored import study_sets, write_scores_folder

CLAIMS = [
    {"says": "Distance.", "metric": "frechet", "of": {"eraser": "uce"}, "value": "erased", "expect": "above"},
    {"says": "Score.", "of": {"eraser": "uce"}, "value": "erased", "expect": "above"},
]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The results tree of a study of which one table was asked for."""
    monkeypatch.chdir(tmp_path)
    models = []
    for one in study_sets(steps=()):
        model = str(ModelPath.of_columns(one.key))
        models.append(model)
        with write_artefact(Path(f"results/scores/miniature/{model}/scores"), "scores", {}, {}, {}, {}) as folder:
            write_scores_folder(folder / "step-000000", one)
    make_table("tab1", models)
    return tmp_path


def make_table(name: str, models: list[str], tasks: tuple[str, ...] = ("ship", "identities-4")) -> None:
    """An experiment from the scores of these models in results/."""
    settings: dict[str, Any] = {
        "name": name, "title": "Table", "note": "", "kind": "table", "along": "eraser", "metric": "blank",
        "base": "miniature", "controls": [], "tasks": list(tasks), "erasers": ["mace", "uce"],
        "finetunes": [], "roles": ["erase", "retain"], "metrics": ["clip_score", "frechet"], "models": models,
        "claims": CLAIMS, "differences": ["", ""], "statistics": {"level": 0.95, "resamples": 100, "seed": 0},
    }  # fmt: skip
    experiment.make(Job(settings, Path(f"results/experiments/{name}/made.json"), {}, "cpu"))


def test_a_table_is_stored_without_the_others_and_made_again_but_for_its_distances(tree: Path) -> None:
    write_reference(Path("reference/part"))
    root = tree / "reference/part/results"
    assert {path.name for path in root.iterdir()} == {"experiments", "scores", "made.json"}
    assert read_manifest(root / "made.json")["parameters"]["left_out"] == ["features.safetensors"]
    assert [*problems(root), *tables_again(root), *experiments_again(root)] == []

    file = root / "scores/scores.parquet"
    rows = pd.read_parquet(file)
    rows.loc[rows["model"] == "ship/uce/s0", "clip_score"] += 1
    rows.to_parquet(file, index=False)
    made = read_manifest(root / "made.json")
    write_json(root / "made.json", made | {"files": made["files"] | {"scores/scores.parquet": sha256(file)}})
    assert list(problems(root)) == []
    assert {Path(line.split()[0]).name for line in experiments_again(root)} == {"tab1.csv", "tab1_claims.csv"}


def test_nothing_finished_is_no_reference(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no tables and no experiment that is finished; run `make study` first"):
        write_reference(tmp_path / "reference", tmp_path)


def rows_of(reference: str) -> pd.DataFrame:
    return pd.read_parquet(f"{reference}/results/scores/scores.parquet")


def test_parts_that_ran_elsewhere_are_stored_together_as_if_at_once(tree: Path) -> None:
    """tab2 of a tree that has only its own models is added to the stored tab1, with a model of both."""
    models = read_manifest(Path("results/experiments/tab1/made.json"))["parameters"]["models"]
    ship = [model for model in models if model.startswith("ship")]
    uce = [model for model in ship if "mace" not in model]
    make_table("tab2", uce, ("ship",))
    make_table("tab3", ship, ("ship",))
    write_reference(Path("reference/once"), only=("tab1", "tab2"))
    write_reference(Path("reference/part"), only=("tab1",))
    for folder in (*(m for m in models if m not in uce), "../../experiments/tab1"):
        shutil.rmtree(Path("results/scores/miniature") / folder / ("scores" if ".." not in folder else ""))
    with pytest.raises(FileExistsError, match="remove it, add to it by --add, or name another folder"):
        write_reference(Path("reference/part"), only=("tab1", "tab2"))
    write_reference(Path("reference/part"), only=("tab1", "tab2"), add=True)
    root = tree / "reference/part/results"
    assert {path.name for path in (root / "experiments").iterdir()} == {"tab1", "tab2"}
    assert [*problems(root), *experiments_again(root)] == []
    pd.testing.assert_frame_equal(rows_of("reference/part"), rows_of("reference/once"), check_like=True)
    parameters, files = ([read_manifest(Path(f"reference/{name}/results/made.json"))[key] for name in ("part", "once")]
                         for key in ("parameters", "files"))  # fmt: skip
    assert parameters[0] == parameters[1] and parameters[0]["models"] == len(models)
    assert files[0]["scores/manifests.parquet"] == files[1]["scores/manifests.parquet"]


def test_a_part_with_other_scores_of_the_same_model_is_refused_and_nothing_is_lost(tree: Path) -> None:
    models = read_manifest(Path("results/experiments/tab1/made.json"))["parameters"]["models"]
    write_reference(Path("reference/part"), only=("tab1",))
    stored = {path: sha256(path) for path in Path("reference").rglob("*") if path.is_file()}
    shutil.rmtree("results/experiments/tab1")
    make_table("tab2", models)
    record = Path("results/scores/miniature/ship/scores/manifest.json")
    manifest = read_manifest(record)
    write_json(record, manifest | {"files": dict.fromkeys(manifest["files"], "0" * 64)})
    with pytest.raises(ValueError, match="ship/scores has other values or settings in reference/part/results"):
        write_reference(Path("reference/part"), only=("tab1", "tab2"), add=True)
    assert stored == {path: sha256(path) for path in Path("reference").rglob("*") if path.is_file()}
    (Path("reference/part/results/tables")).mkdir()
    with pytest.raises(ValueError, match="holds the tables of a whole study"):
        write_reference(Path("reference/part"), only=("tab1", "tab2"), add=True)
    write_reference(Path("reference/new"), only=("tab2",), add=True)  # nothing to add to: the first part
    assert [path.name for path in Path("reference/new/results/experiments").iterdir()] == ["tab2"]
    with pytest.raises(ConfigError, match="--add"):
        archive.run(Namespace(reference=Path("reference/part"), overlay=[], add=True))


def test_what_remains_without_the_features() -> None:
    settings = {
        "metric": "blank",
        "metrics": ["frechet", "clip_score"],
        "claims": CLAIMS[::-1],
        "differences": ["a", "b"],
    }
    without_metric = {key: value for key, value in CLAIMS[1].items() if key != "metric"}
    assert remaining(settings, None) is settings and remaining(settings, ("kid",)) is settings
    left = remaining(settings, ("frechet", "kid"))
    assert (
        left["metrics"] == ["clip_score"] and left["claims"] == left["differences"] == []
    )  # none names a metric: the first
    named = settings | {"claims": [CLAIMS[0], without_metric | {"metric": "clip_score"}]}
    left = remaining(named, ("frechet",))
    assert [claim["says"] for claim in left["claims"]] == ["Score."] and left["differences"] == ["b"]
    assert remaining(settings | {"metrics": ["frechet"]}, ("frechet",)) is None
    assert remaining({"metric": "frechet", "claims": [], "differences": []}, ("frechet",)) is None


def test_experiments_of_another_study_than_the_tables_are_named(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = Namespace(reference=Path("reference/part"), overlay=[], add=False)
    archive.run(args)
    assert "Not in it" not in capsys.readouterr().out
    shutil.rmtree("reference")
    parameters = read_manifest(Path("results/experiments/tab1/made.json"))["parameters"]
    tables = described("tables", {key: parameters[key] for key in ("base", "controls", "models")}, {}, {})
    write_json(Path("results/tables/made.json"), {**tables, "files": {}})
    archive.run(args)
    assert "Not in it: tab1, experiments of another study than results/tables" in capsys.readouterr().out
    assert not (tree / "reference/part/results/experiments/tab1").exists()
