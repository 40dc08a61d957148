"""The small study from nothing to its report, and what a second look at it finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from tree import ROOT, Tree, messages

from resurgence.files import sha256
from resurgence.provenance.manifest import verify

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SHOWN = [  # these write into folders that they share
    "Cost of the study",
    "Figures of the study",
    "Grids of images and masks",
    "Page of the study",
    "Report of the study",
    "Tables of the study",
]
MODELS = ["", "/mace/s0", "/mace/s0/lora/f0", "/uce/s0", "/uce/s0/lora/f0"]
ARTEFACTS = [
    "Erase pets with mace, seed 0",
    "Erase pets with uce, seed 0",
    "Fine-tune pets / mace with lora, seed 0",
    "Fine-tune pets / uce with lora, seed 0",
    "Fine-tuning set random of pets, made by small",
    "Images of the concepts that pets erases, made by small",
    "LoRAs of pets for mace, seed 0",
    "Masks of the concepts that pets erases",
    "Prompts of pets",
    *(f"Sample pets{model}" for model in MODELS),
    *(f"Score the images of pets{model}" for model in MODELS),
    "Second moment of the concepts that pets retains",
    "Second moment of the general captions under small",
]
JOBS = sorted([*ARTEFACTS, *SHOWN])


def test_every_job_runs_once_and_says_what_it_does(finished: tuple[Tree, str]) -> None:
    assert messages(finished[1]) == JOBS


def test_second_run_has_nothing_to_do(finished: tuple[Tree, str]) -> None:
    told = finished[0].snakemake("-n")
    assert "Nothing to be done" in told and not messages(told)


def test_end_of_the_run_tells_table_report_and_cost(finished: tuple[Tree, str]) -> None:
    told = finished[1]
    assert "Resurgence: Recogniser accuracy" in told
    assert f"Open: {finished[0].root}/results/index.html" in told
    assert f"Report: {finished[0].root}/results/report.html" in told
    assert f"of work in {len(ARTEFACTS)} steps on cpu" in told


def test_artefacts_are_as_their_manifests_say(finished: tuple[Tree, str]) -> None:
    found = sorted((finished[0].root / "results").rglob("manifest.json"))
    assert len(found) == len(ARTEFACTS)  # every other job writes a folder of its own
    assert [problem for manifest in found for problem in verify(manifest.parent)] == []


def test_manifests_name_inputs_and_runs_the_code(finished: tuple[Tree, str]) -> None:
    place = finished[0].root / "results/erased/small/pets"
    manifest = json.loads((place / "mace/s0/delta/manifest.json").read_text())
    assert manifest["kind"] == "erased delta" and manifest["seeds"] == {"seed": 0}
    assert "results/erased/small/pets/mace/s0/loras/manifest.json" in manifest["inputs"]
    assert "data/small/base/unet/diffusion_pytorch_model.safetensors" in manifest["inputs"]
    assert manifest["parameters"]["method"] == "mace"  # by the name of the registry, not that of a module
    runs = [json.loads((place / eraser / "s0/delta/run.json").read_text()) for eraser in ("mace", "uce")]
    assert runs[0]["manifest"] == sha256(place / "mace/s0/delta/manifest.json")
    assert runs[0]["code"] != runs[1]["code"]
    assert (place / "mace/s0/loras/loras/ship/pytorch_lora_weights.safetensors").exists()


def test_tables(finished: tuple[Tree, str]) -> None:
    table = pd.read_csv(finished[0].root / "results/tables/resurgence.csv")
    wanted = (
        "base task eraser variant erase_seed finetune finetune_variant finetune_seed step role metric n base_value "
        "erased_value finetuned_value resurgence resurgence_low resurgence_high recovered_fraction"
    )
    assert list(table) == wanted.split()
    assert set(table["eraser"]) == {"mace", "uce"} and set(table["step"]) == {2, 4}
    assert set(table["role"]) == {"erase", "retain", "synonym", "all"}
    difference = table["finetuned_value"] - table["erased_value"] - table["resurgence"]
    assert difference.abs().max() < 1e-3


def test_every_rule_has_log_and_benchmark(finished: tuple[Tree, str]) -> None:
    root = finished[0].root
    assert len(list((root / "results/benchmarks").rglob("*.jsonl"))) == len(JOBS)
    logs = list((root / "logs").rglob("*.log"))
    assert len(logs) == len(JOBS) and all("host " in log.read_text() for log in logs)


def test_copies_keep_what_snakemake_knows(copy: Tree) -> None:
    assert copy.jobs() == []


def test_plan_in_a_dozen_lines(finished: tuple[Tree, str]) -> None:
    command = [sys.executable, "-m", "resurgence.cli", "plan", "--overlay", "tests/small.yaml", "--cores", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=finished[0].root, env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) <= 12
    assert lines[0] == "Study small on small: pets; 2 erased and 2 fine-tuned models"
    assert [line.split()[:3] for line in lines if line.startswith("all")] == [["all", "0", str(len(JOBS))]]
    sets = (finished[0].root / "results/images").rglob("*.parquet")
    images = sum(len(pd.read_parquet(file, columns=["seed"])) for file in sets)
    assert any(line.startswith(f"{images} images") for line in lines)
