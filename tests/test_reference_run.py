"""The reference run of the repository: whole, made again from its scores, and what docs/results.md shows."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import parts
import pytest
import results
import studies

from resurgence.cli import main
from resurgence.files import sha256, write_json
from resurgence.provenance.manifest import read_manifest
from resurgence.provenance.manifest_table import read_manifests
from resurgence.provenance.trace import provenance

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "reference/miniature-full/results"


def test_numbers_of_the_readme_are_those_of_the_results() -> None:
    """The table at its top is a part of the results of the default study."""
    block = (ROOT / "README.md").read_text(encoding="utf-8").partition("```\nResurgence:")[2].partition("```")[0]
    rows = [line for line in block.splitlines() if " -> " in line and "step" not in line]
    page = results.PAGE.read_text(encoding="utf-8").partition("<!-- default study -->")[2]
    page = page.partition("<!-- end of default study -->")[0]
    assert len(rows) == 4
    verdicts = {}
    for metric in ("Recogniser accuracy", "CLIP accuracy"):
        table = page.partition(f"### {metric}")[2].partition("###")[0]
        verdicts[metric] = next(line.split(" | ")[6] for line in table.splitlines() if line.startswith("| ship | uce"))
    assert verdicts["CLIP accuracy"] == "yes" and verdicts["Recogniser accuracy"].startswith("no")  # as it says below
    for row in rows:
        numbers = re.findall(r"[\d.]+ -> [\d.]+ -> [\d.]+|[\d.]+ \[[-\d.]+, [-\d.]+\] this run", row)
        assert len(numbers) == 3 and any(all(n in line for n in numbers) for line in page.splitlines()), row


def test_page_shows_the_reference() -> None:
    page = results.PAGE.read_text(encoding="utf-8")
    assert parts.filled(results.PAGE, results.parts_of(REFERENCE)) == page
    assert sum(page.count(f"| {word} |") for word in results.WORDS) >= 40
    pictures = [
        line.partition("](")[2].rstrip(")")
        for line in page.splitlines()
        if line.startswith("![") and "](../reference/" in line
    ]
    assert len(pictures) >= 15 and all((results.DOCS / picture).stat().st_size > 5000 for picture in pictures)


def test_the_page_of_the_makers_shows_its_reference() -> None:
    page = results.DOCS / "sources.md"
    assert parts.filled(page, studies.sources(ROOT / "reference/sources/results")) == page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("ends", "p", "expected"),
    [
        ((20.0, 40.0), 0.01, "Came back after `lora`, 30.0 [20.0, 40.0]."),
        ((20.0, 40.0), 0.06, "Open after `lora`, 30.0 [20.0, 40.0]."),  # alone it would be yes
        ((20.0, 40.0), float("nan"), "Open after"),
        ((-8.0, 17.0), 1.0, "Open after"),
        ((-8.0, 8.0), 1.0, "By its interval alone, at most 10 % of the base's value came back after `lora`"),
        ((-8.0, 8.1), 1.0, "Open after"),
    ],
)
def test_a_sentence_says_no_more_than_the_verdict(ends: tuple[float, float], p: float, expected: str) -> None:
    row = {"task": "ship", "eraser": "uce", "finetune": "lora", "role": "erase", "base_value": 80.0, "p_holm": p}
    row |= {"resurgence": sum(ends) / 2, "resurgence_low": ends[0], "resurgence_high": ends[1]}
    retained = {**row, "role": "retain", "finetune": "full"}
    clip = {"metric": "clip_accuracy", **row}
    said = studies.came_back(pd.DataFrame([row, retained]), pd.DataFrame([clip]), 0.95)
    assert f"- **ship, uce:** {expected}" in said and "full" not in said and "at most 0.05" in said
    assert ". By CLIP" not in said


def test_what_clip_says_otherwise_is_said() -> None:
    row = {"task": "ship", "eraser": "uce", "role": "erase", "base_value": 80.0, "p_holm": 0.01, "resurgence": 1.0}
    row |= {"resurgence_low": -8.0, "resurgence_high": 7.0}
    seen = {"metric": "clip_accuracy", "resurgence": 60.0, "resurgence_low": 50.0, "resurgence_high": 70.0}
    table = pd.DataFrame([row | {"finetune": name} for name in ("lora", "full")])
    other = pd.DataFrame([row | seen | {"finetune": "lora"}, row | {"metric": "clip_accuracy", "finetune": "full"}])
    said = studies.came_back(table, other, 0.95)
    assert said.endswith("`full`, 1.0 [-8.0, 7.0]. By CLIP came back after `lora`, 60.0 [50.0, 70.0].")
    assert "| ship | objects hardly come back | uce | no, 1.0 [-8.0, 7.0] |" in studies.paper_by_maker(table, 0.95)


@pytest.mark.parametrize(
    ("ends", "word"), [((-4, 5), "stay"), ((-9, -6), "move"), ((-6, 0), "open"), ((-6, 6), "open")]
)
def test_retained_concepts_stay_within_the_papers_margin(ends: tuple[float, float], word: str) -> None:
    row = {"resurgence": -1.0, "resurgence_low": float(ends[0]), "resurgence_high": float(ends[1])}
    assert studies.stays(row).startswith(f"{word}, -1.0 [")


@pytest.mark.timeout(600)
def test_tables_and_experiments_follow_from_the_scores(capsys) -> None:
    """What a reviewer runs as `make verify`."""
    assert main.main(["verify", str(REFERENCE), "--tables"]) == 0
    assert "made again from the stored scores, the same numbers" in capsys.readouterr().out


def test_the_manifests_are_those_that_the_tables_were_made_from() -> None:
    inputs = read_manifest(REFERENCE / "tables/made.json")["inputs"]
    rows = read_manifests(REFERENCE / "scores/manifests.parquet")
    digests = {
        f"results/{row['folder']}/manifest.json": hashlib.sha256(row["manifest"].encode()).hexdigest() for row in rows
    }
    assert inputs.items() <= digests.items() and len(inputs) > 200
    assert all("argv" not in json.loads(row["run"]) for row in rows)


def test_a_row_leads_to_the_models_and_the_files_of_their_scorers() -> None:
    lines = list(provenance(REFERENCE / "tables/resurgence.csv", 3, ROOT))
    heads = [line for line in lines if line.endswith(", packed")]
    assert [head.split(":")[0] for head in heads] == [
        f"results/scores/miniature/automobile/{model}scores" for model in ("mace/s0/lora.last/f0/", "mace/s0/", "")
    ]
    assert any("commit d5534963bc" in line for line in lines)
    assert any("data/miniature/clip/open_clip_model.safetensors" in line for line in lines)
    assert not any("CHANGED" in line for line in lines)


def reduce_to(task: str, folder: Path) -> None:
    """Leave only the models and table rows of one task, whose intervals do not depend on the others."""
    manifest = read_manifest(folder / "tables/made.json")
    parameters = manifest["parameters"]
    parameters["models"] = [model for model in parameters["models"] if model.split("/")[0] == task]
    for file in (folder / "tables").glob("*.csv"):
        rows = pd.read_csv(file, dtype=str, keep_default_na=False)
        rows[rows["task"] == task].to_csv(file, index=False, lineterminator="\n")
        manifest["files"][file.name] = sha256(file)
    write_json(folder / "tables/made.json", manifest)


def test_a_tampered_score_is_found(tmp_path: Path, capsys) -> None:
    """Ten images of one model called recognised, the checksum made to fit: the tables no longer follow."""
    copy = tmp_path / "results"
    for part in ("tables", "scores"):
        shutil.copytree(REFERENCE / part, copy / part, ignore=shutil.ignore_patterns("*.html"))  # that of the figures
    shutil.copy2(REFERENCE / "made.json", copy)
    reduce_to("bird", copy)
    assert main.main(["verify", str(copy), "--tables"]) == 0

    file = copy / "scores/scores.parquet"
    scores = pd.read_parquet(file)
    erased = scores[(scores["model"] == "bird/mace/s0") & (scores["role"] == "erase")]
    scores.loc[erased.index[:10], "recogniser_correct"] = 1.0
    file.chmod(0o644)
    scores.to_parquet(file, index=False)
    capsys.readouterr()
    assert main.main(["verify", str(copy), "--tables"]) != 0
    assert "scores.parquet has changed since it was written" in capsys.readouterr().out
    made = read_manifest(copy / "made.json")
    made["files"]["scores/scores.parquet"] = sha256(file)
    write_json(copy / "made.json", made)
    assert main.main(["verify", str(copy), "--tables"]) != 0
    printed = capsys.readouterr()
    assert "tables/cells.csv is not what the stored scores give" in printed.out + printed.err


def test_scores_that_were_not_pulled_are_named_with_the_command(tmp_path: Path, capsys) -> None:
    (tmp_path / "results").mkdir()
    shutil.copy2(REFERENCE / "made.json", tmp_path / "results")
    assert main.main(["verify", str(tmp_path / "results"), "--tables"]) == 1
    assert f"run `dvc pull {tmp_path / 'dvc.yaml'}`" in capsys.readouterr().err
