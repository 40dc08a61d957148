"""After a whole run, a change runs again exactly the jobs that depend on it, listed here."""

from __future__ import annotations

from pathlib import Path

import pytest
from tree import Tree, messages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SHOWN = [
    "Cost of the study",
    "Figures of the study",
    "Grids of images and masks",
    "Report of the study",
    "Tables of the study",
]
SCORES = ["", "/mace/s0", "/mace/s0/lora/f0", "/uce/s0", "/uce/s0/lora/f0"]


def model_jobs(eraser: str) -> list[str]:
    """All jobs of an eraser from the erased model on."""
    erased = f"pets/{eraser}/s0"
    models = (erased, f"{erased}/lora/f0")
    return [
        f"Erase pets with {eraser}, seed 0",
        f"Fine-tune pets / {eraser} with lora, seed 0",
        *(f"Sample {model}" for model in models),
        *(f"Score the images of {model}" for model in models),
    ]


def expected(*jobs: str) -> list[str]:
    return sorted(jobs)


def test_mapping_concept(copy: Tree) -> None:
    copy.edit("data/small/tasks/pets.yaml", "mapping: ground", "mapping: sky")
    loras = "LoRAs of pets for mace, seed 0"
    assert copy.jobs() == expected(loras, *model_jobs("mace"), *model_jobs("uce"), *SHOWN)


def test_mapping_concept_of_a_new_variant_only_adds_jobs(copy: Tree) -> None:
    copy.edit("tests/small.yaml", "uce: {", "uce: {variants: {default: {}, to-sky: {mapping: sky}}, ")
    assert copy.jobs() == expected(*model_jobs("uce.to-sky"), *SHOWN)


def test_one_line_in_uce(copy: Tree) -> None:
    """Really run: the jobs that the dry run names are those that run, and then nothing is left."""
    line = "edit = shared_edit("
    copy.edit("src/resurgence/erasers/closed_form/uce.py", line, f"gram = gram * 1.0\n    {line}")
    jobs = expected(*model_jobs("uce"), *SHOWN)
    assert copy.jobs() == jobs
    assert messages(copy.snakemake("--cores", "2")) == jobs
    assert copy.jobs() == []


def test_one_metric(copy: Tree) -> None:
    source = copy.root / "src/resurgence/scorers/clip.py"
    source.write_text(source.read_text() + "\nADDED = 0\n")
    shown = [job for job in SHOWN if not job.startswith("Grids")]
    assert copy.jobs() == expected(*(f"Score the images of pets{model}" for model in SCORES), *shown)


def test_setting_of_a_metric(copy: Tree) -> None:
    """Really run."""
    copy.edit("tests/small.yaml", "resamples: 100", "resamples: 120")
    jobs = [job for job in SHOWN if not job.startswith("Grids")]
    assert copy.jobs() == jobs
    assert messages(copy.snakemake("--cores", "2")) == jobs
    assert "120" in (copy.root / "results/tables/intervals.csv").read_text()


def test_two_parameters_swapped(copy: Tree) -> None:
    copy.edit(
        "tests/small.yaml",
        "train_preserve_scale: 1.0e-3\n    fuse_preserve_scale: 1.0e-4",
        "train_preserve_scale: 1.0e-4\n    fuse_preserve_scale: 1.0e-3",
    )
    assert copy.jobs() == expected("LoRAs of pets for mace, seed 0", *model_jobs("mace"), *SHOWN)


def test_setting_of_the_fusion_keeps_the_loras(copy: Tree) -> None:
    copy.edit("tests/small.yaml", "fuse_preserve_scale: 1.0e-4", "fuse_preserve_scale: 1.0e-2")
    assert copy.jobs() == expected(*model_jobs("mace"), *SHOWN)


def test_longer_fine_tune(copy: Tree) -> None:
    copy.edit("tests/small.yaml", "steps: 4, checkpoints: [2, 4]", "steps: 6, checkpoints: [2, 6]")
    names = [job for e in ("mace", "uce") for job in model_jobs(e) if "lora" in job]
    assert copy.jobs() == expected(*names, *SHOWN)


def test_seeds_of_the_prompts_leave_erasing_alone(copy: Tree) -> None:
    copy.edit("data/small/tasks/pets.yaml", "seeds: {erase: 2", "seeds: {erase: 3")
    sampled = [f"{what} pets{model}" for what in ("Sample", "Score the images of") for model in SCORES]
    assert copy.jobs() == expected("Prompts of pets", *sampled, *SHOWN)


def test_unrelated_file_reformatted(copy: Tree) -> None:
    """A module that no job imports, and new times of change on everything else."""
    source = copy.root / "src/resurgence/cli/models.py"
    source.write_text(source.read_text().replace('"""\n\nfrom', '"""\n\n\n# reformatted\nfrom', 1))
    for file in Path(copy.root).rglob("*.py"):
        file.touch()
    for file in Path(copy.root / "data").rglob("*.safetensors"):
        file.touch()
    assert copy.jobs() == []
    assert "Nothing to be done" in copy.snakemake("--cores", "2")


def test_device_and_comments_run_nothing(copy: Tree) -> None:
    copy.edit("tests/small.yaml", "device: cpu}", "device: auto}  # whatever there is")
    assert copy.jobs() == []
