"""What a reviewer holds: provenance of any number or image, a tree hashed again, an archive unpacked elsewhere."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from tree import Tree

from resurgence.files import sha256
from resurgence.provenance.trace import provenance
from resurgence.provenance.verify import problems
from resurgence.stages.remake import tables_again
from resurgence.workflow.archive import write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FOLDER = re.compile(r"^ *(results/\S+): [\w -]+, manifest (\w{12}), as it was written$", flags=re.MULTILINE)


def test_ten_random_rows_reach_the_seeds_of_the_world(finished: tuple[Tree, str]) -> None:
    root, draw = finished[0].root, random.Random(7)
    world = yaml.safe_load((root / "config/world.yaml").read_text())
    for name in ("cells", "resurgence"):
        table = pd.read_csv(root / f"results/tables/{name}.csv", keep_default_na=False, dtype=str)
        for number in draw.sample(range(1, len(table) + 1), 5):
            text, row = "\n".join(provenance(Path(f"results/tables/{name}.csv"), number, root)), table.iloc[number - 1]
            seen = dict(FOLDER.findall(text))
            for folder, digest in seen.items():
                assert sha256(root / folder / "manifest.json").startswith(digest)
            wanted = {f"results/{part}/small/pets/{part}" for part in ("scores", "images")}
            if row["eraser"]:
                model = f"small/pets/{row['eraser']}/s0"
                wanted = {f"results/erased/{model}/delta"}
                wanted |= set() if row["finetune"] and name == "cells" else {f"results/scores/{model}/scores"}
            if row["finetune"]:
                model = f"{model}/lora/f0"
                wanted |= {f"results/scores/{model}/scores", f"results/finetuned/{model}/weights"}
                wanted |= {"results/data/small/pets/finetune_sets/random"}
            assert wanted | {"results/data/small/pets/prompts"} <= set(seen)
            assert len(seen) == len(set(seen)) and "CHANGED" not in text and "MISSING" not in text
            assert f"{name}.csv, row {number}: base small, task pets" in text
            assert "data/small/base/unet/diffusion_pytorch_model.safetensors" in text
            assert all(f"{p}: seed {world[p]['seed']}" in text for p in ("autoencoder", "base", "recogniser", "clip"))
            assert all(f"drawings: {package} {v}" in text for package, v in world["packages"].items())


def test_an_image_leads_to_its_prompt_and_seed(finished: tuple[Tree, str]) -> None:
    root = finished[0].root
    file = Path("results/images/small/pets/uce/s0/images/step-000000.parquet")
    row = pd.read_parquet(root / file, columns=["prompt", "seed"]).iloc[4]
    lines = list(provenance(file, 5, root))
    assert f"prompt {row['prompt']}" in lines[0] and f"seed {row['seed']}" in lines[0]
    assert any("results/erased/small/pets/uce/s0/delta: erased delta" in line for line in lines)


def test_provenance_tells_what_it_cannot_follow(copy: Tree) -> None:
    with pytest.raises(ValueError, match="say which row"):
        list(provenance(Path("results/tables/cells.csv"), None, copy.root))
    with pytest.raises(ValueError, match=r"rows 1 to \d+"):
        list(provenance(Path("results/tables/cells.csv"), 0, copy.root))
    with pytest.raises(ValueError, match=r"take a row of cells\.csv"):
        list(provenance(Path("results/tables/seeds.csv"), 1, copy.root))
    with pytest.raises(ValueError, match="belongs to no artefact"):
        list(provenance(Path("params.yaml"), None, copy.root))
    weights = copy.root / "data/small/base/vae/config.json"
    weights.write_text(weights.read_text() + "\n")
    (copy.root / "results/data/small/pets/prompts/prompts.csv").write_text("prompt\n")
    text = "\n".join(provenance(Path("results/scores/small/pets/scores"), None, copy.root))
    assert re.search(r"data/small/base/vae/config\.json \w{12} CHANGED", text)
    assert re.search(r"pets/prompts: prompt set, manifest \w{12}, CHANGED: .*prompts\.csv has changed", text)


def test_verify_names_every_missing_changed_and_foreign_file(copy: Tree) -> None:
    results = copy.root / "results"
    assert list(problems(results)) == []
    (results / "tables/cells.csv").write_text("")
    (results / "figures/compare_recogniser_accuracy.png").unlink()
    (results / "data/small/pets/prompts/prompts.csv").unlink()
    (results / "erased/small/pets/uce/s0/delta/more.txt").write_text("x")
    (results / "scores/notes.txt").write_text("x")
    (results / "grids/made.json").write_text("{")
    found = sorted(line.replace(f"{results}/", "") for line in problems(results))
    kinds = [re.sub(r" \(sha256 .*", "", line) for line in found if not line.startswith("grids/pets")]
    assert kinds == [
        "data/small/pets/prompts/prompts.csv is missing",
        "erased/small/pets/uce/s0/delta/more.txt is not part of the artefact",
        "figures/compare_recogniser_accuracy.png is missing",
        "grids/made.json is damaged: it is no manifest",
        "scores/notes.txt is not listed in any manifest",
        "tables/cells.csv has changed since it was written",
    ]
    assert len(found) - len(kinds) == 5  # grids that no manifest names any longer


def test_tables_are_made_again_from_the_scores(copy: Tree) -> None:
    results = copy.root / "results"
    assert list(tables_again(results)) == []
    file = results / "tables/resurgence.csv"
    file.write_text(file.read_text().replace(",8,", ",9,", 1))
    assert list(tables_again(results)) == [f"{file} is not what the stored scores give"]


@pytest.mark.parametrize("images", [False, True])
def test_archive_verifies_elsewhere(finished: tuple[Tree, str], tmp_path: Path, images: bool) -> None:
    root, place = finished[0].root, tmp_path / "elsewhere"
    number = write(tmp_path / "a.tar.gz", "study", root, images=images)
    write(tmp_path / "b.tar.gz", "study", root, images=images)
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    shutil.unpack_archive(tmp_path / "a.tar.gz", place, filter="data")
    study = place / "study"
    assert len([p for p in study.rglob("*") if p.is_file()]) == number
    subprocess.run(["sha256sum", "--quiet", "--check", "SHA256SUMS"], cwd=study, check=True)
    command = [sys.executable, "-m", "resurgence.cli", "verify", "results", "--tables"]
    environment = {**os.environ, "PYTHONPATH": "src"}
    done = subprocess.run(command, cwd=study, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "none is missing, none foreign" in done.stdout, done.stdout + done.stderr
    assert "made again from the stored scores, the same numbers" in done.stdout
    omitted = json.loads((study / "results/omitted.json").read_text())
    assert bool(omitted) != images and all(not (study / "results" / name).exists() for name in omitted)
    for kept in ("erased/small/pets/uce/s0/delta/delta.safetensors", "tables/cells.csv", "report.html"):
        assert (study / "results" / kept).is_file()
    scores = study / "results/scores/small/pets/uce/s0/scores/step-000000/scores.parquet"
    scores.write_bytes(scores.read_bytes()[:-1])
    done = subprocess.run(command, cwd=study, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "scores.parquet has changed" in done.stdout
