"""Experiments by name on the small study: only their cells are computed, and they show what the tables hold."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image
from tree import ROOT, Tree, clone, once

from resurgence.files import sha256
from resurgence.provenance.verify import problems
from resurgence.stages.remake import experiments_again, run, tables_again
from resurgence.workflow.reference import write_reference

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
OVERLAY = "tests/experiments.yaml"
EXPERIMENTS = {
    "finetune_sets": {
        "third": {
            "tercile": {"candidates": "data/small/names.txt", "number": 2, "size": 1, "bins": "count"},
            "size": 2,
        },
    },
    "finetunes": {"lora": {"variants": {"default": {}, "third": {"set": "third", "checkpoints": [4]}}}},
    "experiments": {
        "fig5": {
            "title": "Before and after", "kind": "bars", "tasks": ["pets"], "erasers": ["mace", "uce"],
            "finetunes": ["lora"], "along": "eraser", "roles": ["erase", "retain"], "metric": "clip_score",
            "note": "Random weights.",
            "claims": [
                {"says": "Both are alike.", "of": {"eraser": "mace"}, "against": {"eraser": "uce"}, "expect": "equal"}
            ],
        },
        "fig3": {"title": "Images", "kind": "grid", "tasks": ["pets"], "erasers": ["uce"], "finetunes": ["lora"]},
        "fig4": {
            "title": "Largest change", "kind": "grid", "tasks": ["pets"], "erasers": ["uce"], "finetunes": ["lora"],
            "choose": "largest", "metric": "clip_score",
        },
        "steps": {
            "title": "Steps", "kind": "curves", "tasks": ["pets"], "erasers": ["uce"], "finetunes": ["lora"],
            "metric": "clip_score",
        },
        "concepts": {
            "title": "Concepts", "kind": "heatmap", "tasks": ["pets"], "erasers": ["uce"], "finetunes": ["lora"],
        },
        "fig9": {
            "title": "Terciles", "kind": "bars", "tasks": ["pets"], "erasers": ["uce"],
            "finetunes": ["lora", "lora.third"], "along": "finetune",
        },
        "tab1": {
            "title": "Metrics", "kind": "table", "tasks": ["pets"], "erasers": ["mace", "uce"], "finetunes": ["lora"],
            "metrics": ["clip_score", "recogniser_accuracy"], "each_concept": True, "roles": ["erase", "retain"],
            "claims": [{"says": "Of retained ones.", "metric": "clip_score", "value": "erased", "expect": "above",
                        "of": {"eraser": "uce", "role": "retain"}, "against": {"eraser": "mace", "role": "retain"}}],
        },
        "spread": {
            "title": "Concepts", "kind": "histogram", "tasks": ["pets"], "erasers": ["uce"], "finetunes": ["lora"],
            "metric": "clip_score", "roles": ["erase", "retain"],
        },
        "table1": {"title": "Members", "kind": "members", "tasks": ["pets"], "sets": ["third"]},
    },
}  # fmt: skip


def with_experiments(finished: Tree, root: Path) -> Tree:
    """A copy of the finished small study, with experiments that are still to be made."""
    clone(finished.root, root)
    values = yaml.safe_load((ROOT / "tests/small.yaml").read_text())
    lora = {**values["finetunes"]["lora"], **EXPERIMENTS["finetunes"]["lora"]}
    sets = {**values["finetune_sets"], **EXPERIMENTS["finetune_sets"]}
    values |= {"finetunes": {"lora": lora}, "finetune_sets": sets, "experiments": EXPERIMENTS["experiments"]}
    (root / OVERLAY).write_text(yaml.safe_dump(values))
    (root / "data/small/names.txt").write_text("doctor\nqueen\nship\nboat\nhouse\nbird\n")
    return Tree(root, OVERLAY)


@pytest.fixture(scope="module")
def experiments(finished: tuple[Tree, str], tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """All experiments, made. Not to be changed: see `changed`."""

    def run(root: Path) -> str:
        return with_experiments(finished[0], root).snakemake("--cores", "2", "results", "tables")

    return Tree(once(tmp_path_factory, "experiments", run)[0], OVERLAY)


@pytest.fixture
def changed(experiments: Tree, tmp_path: Path) -> Tree:
    """A copy of them, to be changed."""
    return Tree(clone(experiments.root, tmp_path / "tree"), OVERLAY)


def test_an_experiment_needs_its_own_cells_only(finished: tuple[Tree, str], tmp_path: Path) -> None:
    experiments = with_experiments(finished[0], tmp_path / "tree")
    assert experiments.jobs("fig5") == ["Experiment fig5"]  # the small study has all of its cells
    wanted = [job for job in experiments.jobs("fig9") if "/ uce with lora.third" in job]
    assert wanted == ["Fine-tune pets / uce with lora.third, seed 0"]
    assert not any("mace" in job for job in experiments.jobs("fig9"))
    assert experiments.jobs("table1") == [
        "Concepts of the fine-tuning set third of pets, by similarity", "Experiment table1",
    ]  # fmt: skip


def test_experiments_are_made_from_the_same_scores_as_the_tables(experiments: Tree) -> None:
    assert experiments.jobs("results") == []
    folder = experiments.root / "results/experiments"
    table = pd.read_csv(experiments.root / "results/tables/resurgence.csv", keep_default_na=False)
    own = pd.read_csv(folder / "fig5/fig5.csv")
    assert set(zip(own["eraser"], own["role"], strict=True)) == {
        (e, r) for e in ("mace", "uce") for r in ("erase", "retain")
    }
    for row in own.to_dict("records"):  # one seed: the numbers of the tables, at the last step
        same = table[(table["eraser"] == row["eraser"]) & (table["role"] == row["role"]) & (table["step"] == 4)]
        same = same[(same["metric"] == "clip_score") & (same["finetune_variant"] == "default")].iloc[0]
        for name in (
            "base_value",
            "erased_value",
            "finetuned_value",
            "resurgence",
            "resurgence_low",
            "resurgence_high",
        ):
            assert row[name] == pytest.approx(float(same[name]), rel=1e-4, abs=1e-6), name
        assert row["n"] == same["n"] and row["step"] == 4
    claims = pd.read_csv(folder / "fig5/fig5_claims.csv")
    gains = own[own["role"] == "erase"].set_index("eraser")["resurgence"]
    assert claims["value"][0] == pytest.approx(gains["mace"] - gains["uce"], abs=1e-4)
    text = (folder / "results.md").read_text()
    assert "2 claims: " in text and "Differs from the paper: Random weights." in text and "(fig5/fig5.png)" in text
    members = pd.read_csv(folder / "table1/table1.csv")
    assert set(members["concept"]) <= {"doctor", "queen", "house", "bird"}  # not the erased one, nor its synonym
    drawn = set(members.loc[members["drawn"], "concept"])
    prompts = pd.read_parquet(
        experiments.root / "results/data/small/pets/finetune_sets/third/images.parquet", columns=["concept"]
    )
    assert len(drawn) == 1 and set(prompts["concept"]) == drawn
    assert list(pd.read_csv(folder / "steps/steps.csv")["step"]) == [2, 4]
    columns = pd.read_csv(folder / "tab1/tab1.csv")
    parts = columns[(columns["eraser"] == "uce") & (columns["role"] == "retain") & (columns["metric"] == "clip_score")]
    whole = own[(own["eraser"] == "uce") & (own["role"] == "retain")].iloc[0]  # of fig5: all concepts together
    assert len(parts) > 1 and parts["n"].sum() == whole["n"]
    assert (parts["erased_value"] * parts["n"]).sum() / whole["n"] == pytest.approx(whole["erased_value"], rel=1e-4)
    spread = pd.read_csv(folder / "spread/spread.csv")
    assert set(parts["concept"]) == set(spread.loc[spread["role"] == "retain", "concept"])
    heat = pd.read_csv(folder / "concepts/concepts.csv")
    assert list(dict.fromkeys(heat["column"])) == ["base", "erased", "2", "4"]
    for name in EXPERIMENTS["experiments"]:
        made = json.loads((folder / name / "made.json").read_text())
        assert f"{name}.png" in made["files"]
        with Image.open(folder / name / f"{name}.png") as image:
            assert image.width > 300 and len(set(image.convert("L").resize((40, 40)).tobytes())) > 3


def test_experiments_are_made_again_and_a_tampered_score_is_found(changed: Tree) -> None:
    root = changed.root
    assert list(experiments_again(root / "results")) == []
    scores = root / "results/scores/small/pets/uce/s0/lora/f0/scores/step-000004/scores.parquet"
    rows = pd.read_parquet(scores)
    rows.assign(clip_score=rows["clip_score"] + 1).to_parquet(scores)
    told_files = list(experiments_again(root / "results"))
    assert {Path(line.split()[0]).name for line in told_files} >= {"fig5.csv", "steps.csv"}
    assert any("scores.parquet" in line for line in problems(root / "results"))


def test_a_reference_verifies_and_a_score_tampered_with_care_is_found(experiments: Tree, tmp_path: Path) -> None:
    """Tables, experiments and packed scores; then a score is changed, and the checksum of its file, too."""
    out = tmp_path / "reference"
    write_reference(out, experiments.root)
    root = out / "results"
    assert {path.name for path in root.iterdir()} == {"tables", "figures", "experiments", "scores", "made.json"}
    assert {path.name for path in (root / "scores").iterdir()} == {"scores.parquet", "manifests.parquet"}
    assert "frechet" in (root / "tables/cells.csv").read_text()
    assert not any("argv" in path.read_text() for path in root.rglob("*run.json"))
    arguments = Namespace(folder=root, tables=True, against=experiments.root / "results/tables")
    run(arguments)
    with pytest.raises(FileExistsError, match="remove it"):
        write_reference(out, experiments.root)

    file = root / "scores/scores.parquet"
    rows = pd.read_parquet(file)
    changed = (rows["model"] == "pets/uce/s0/lora/f0") & (rows["step"] == 4)
    assert changed.any()
    rows.loc[changed, "clip_score"] += 1
    rows.to_parquet(file, index=False)
    assert any("scores.parquet has changed" in line for line in problems(root))
    made = json.loads((root / "made.json").read_text())
    made["files"]["scores/scores.parquet"] = sha256(file)
    (root / "made.json").write_text(json.dumps(made))
    assert list(problems(root)) == []
    with pytest.raises(ValueError, match=r"9 files or rows of .* differ"):
        run(arguments)
    lines = list(tables_again(root))
    assert {Path(line.split()[0]).name for line in lines} == {"cells.csv", "means.csv", "resurgence.csv", "seeds.csv"}


def test_changing_a_claim_makes_its_experiment_again_and_nothing_else(changed: Tree) -> None:
    changed.edit(OVERLAY, "Both are alike.", "Both are the same.")
    assert changed.jobs("results") == ["Experiment fig5", "Results of all experiments"]
