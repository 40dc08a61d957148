"""Through a real `snakemake`: a mistake stops it before any job, and it prints key, value and remedy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tree import Tree, clone

CASES = {
    "octal": ("steps: 4,", "steps: 010,", ["small.yaml, line 22", "'010'", "would be 8; write 10"]),
    "key twice": (
        "study: small",
        "study: small\nstudy: again",
        ["small.yaml", "'study'", "is listed twice; remove one"],
    ),
    "size of no latents": ("size: 16}", "size: 17}", ["sampling.size", "17", "must be a multiple of 2"]),
    "seed of 64 bits": (
        "statistics: {",
        "seeds: {erase: [9223372036854775808]}\nstatistics: {",
        ["seeds.erase[0]", "less than"],
    ),
    "not finite": ("guidance: 4.0", "guidance: .nan", ["sampling.guidance", "nan", "must be a finite number"]),
    "unknown key": ("erasers:", "eraserz: {}\nerasers:", ["eraserz", "did you mean 'erasers'"]),
    "number read as text": ("lamb: 1.0", "lamb: 1e-4", ["erasers.mace.lamb", "'1e-4'", "write 1.0e-4"]),
    "unknown eraser": (
        "  uce:",
        "  uce: {method: uci}\n  other:",
        ["erasers.uce.method", "'uci'", "did you mean 'uce'"],
    ),
    "checkpoint beyond the steps": ("[2, 4]", "[2, 8]", ["finetunes.lora.checkpoints", "[2, 8]", "last step"]),
}


@pytest.mark.parametrize("case", CASES)
def test_mistake_in_the_study(case: str, fresh: Tree, tmp_path: Path) -> None:
    old, new, told = CASES[case]
    tree = Tree(fresh.root, str(tmp_path / "small.yaml"))
    shutil.copy2(fresh.root / "tests/small.yaml", tmp_path / "small.yaml")
    text = Path(tree.overlay).read_text()
    assert text.count(old) == 1
    Path(tree.overlay).write_text(text.replace(old, new))
    stops(tree, told)


def test_concept_erased_and_retained(fresh: Tree, tmp_path: Path) -> None:
    tree = Tree(clone(fresh.root, tmp_path / "tree"))
    tree.edit("data/small/tasks/pets.yaml", "retain: [dog", "retain: [cat, dog")
    stops(tree, ["pets.yaml: retain", "'cat'", "is also in erase; remove it"])


def test_missing_weights_stop_a_run_before_any_job_but_not_the_plan(fresh: Tree, tmp_path: Path) -> None:
    tree = Tree(fresh.root, str(tmp_path / "small.yaml"))
    text = (fresh.root / "tests/small.yaml").read_text()
    Path(tree.overlay).write_text(text.replace("path: data/small/base", "path: nobody/nothing, revision: abc"))
    planned = tree.snakemake("-n", "-q", "rules")
    assert "sample" in planned and "hf download" not in planned
    output = tree.snakemake("--cores", "1", check=False)
    assert "hf download nobody/nothing --revision abc" in output and "base.path = 'nobody/nothing'" in output
    assert "Prompts of pets" not in output and not (tree.root / "results").exists()


def stops(tree: Tree, told: list[str]) -> None:
    """Assert that a run fails with these words, and that no job was started."""
    output = tree.snakemake("--cores", "1", check=False)
    assert "ConfigError" in output and "Job stats" not in output
    assert [part for part in told if part not in output] == []
    assert not (tree.root / "results").exists()
