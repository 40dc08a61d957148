"""A mistake in a study stops it before any job, with key, value and remedy; some of them through a real `snakemake`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from snakemake.cli import parse_args
from tree import Tree, clone

from resurgence.config.fields import ConfigError
from resurgence.config.load import load_study

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
def test_mistake_in_the_study(case: str, fresh: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh.root)
    file, told = changed(case, fresh, tmp_path)
    with pytest.raises(ConfigError) as error:
        load_study([Path("params.yaml"), file])
    assert [part for part in told if part not in str(error.value)] == []


def test_a_mistake_in_the_study_stops_snakemake(fresh: Tree, tmp_path: Path) -> None:
    file, told = changed("unknown key", fresh, tmp_path)
    stops(Tree(fresh.root, str(file)), ["ConfigError", *told])


@pytest.mark.parametrize(
    ("old", "new", "encoding", "sentence"),
    [
        ("study:", "study:", "utf-16", "{} is in UTF-16; save it in UTF-8, e.g. by iconv -f UTF-16 -t UTF-8"),
        (
            *("study: small", "study: naïve", "latin-1"),
            "{}: line 3 holds the byte 0xef, which is not UTF-8; save the file in UTF-8, e.g. by iconv -f WINDOWS-1252",
        ),
        (
            *("steps: 4,", "steps: 010,", "utf-8"),
            "file {}, line 22 = '010': is octal in YAML 1.1 and would be 8; write 10",
        ),
        ("study: small", "study: [", "utf-8", "file = '{}': is not valid YAML: "),
    ],
    ids=["UTF-16", "Latin-1", "octal", "syntax"],
)
def test_a_file_that_snakemake_would_read_otherwise_is_refused_in_one_sentence(
    old: str, new: str, encoding: str, sentence: str, fresh: Tree, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Snakemake reads the profile, and the profile the overlays; a whole command is in the next test."""
    text, file = (fresh.root / "tests/small.yaml").read_text(), tmp_path / "small.yaml"
    file.write_bytes(text.replace(old, new, 1).encode(encoding))
    for profile in ("profiles/default", "profiles/slurm"):
        command = ["snakemake", "--workflow-profile", profile, "-n", "--configfiles", str(file)]
        monkeypatch.chdir(fresh.root)
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit, match=re.escape(f"snakemake: {sentence.format(file)}")) as error:
            parse_args(command[1:])
        assert "\n" not in error.value.code
    capsys.readouterr()


def test_an_overlay_in_another_encoding_stops_snakemake(fresh: Tree, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text((fresh.root / "tests/small.yaml").read_text(), encoding="utf-16")
    told = stops(Tree(fresh.root, str(file)), [f"snakemake: {file} is in UTF-16; save it in UTF-8"])
    assert "Traceback" not in told and len(told.splitlines()) == 2  # the first names the profile


def test_a_study_in_another_encoding_stops_snakemake(fresh: Tree, tmp_path: Path) -> None:
    """Below the overlays; the Snakefile reads it."""
    tree = Tree(clone(fresh.root, tmp_path / "tree"))
    file = tree.root / "params.yaml"
    file.write_text(file.read_text(), encoding="utf-16")
    stops(tree, ["params.yaml is in UTF-16; save it in UTF-8, e.g. by iconv -f UTF-16 -t UTF-8"])


def test_concept_erased_and_retained(fresh: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(clone(fresh.root, tmp_path / "tree"))
    tree.edit("data/small/tasks/pets.yaml", "retain: [dog", "retain: [cat, dog")
    monkeypatch.chdir(tree.root)
    with pytest.raises(ConfigError, match=r"pets\.yaml: retain = 'cat': is also in erase; remove it"):
        load_study([Path("params.yaml"), Path(tree.overlay)])


def test_names_with_equal_tokens_stop_a_run_before_any_job(fresh: Tree, tmp_path: Path) -> None:
    """A synonym and a concept of a set; as text they differ, so the plan does not know."""
    tree = Tree(clone(fresh.root, tmp_path / "tree"))
    task = yaml.safe_load((tree.root / "data/small/tasks/pets.yaml").read_text())
    task["synonyms"] = {task["erase"][0]: ["ice-cream"]}
    (tree.root / "data/small/tasks/pets.yaml").write_text(yaml.safe_dump(task))
    tree.edit("tests/small.yaml", "{concepts: task,", "{concepts: [bee, ice - cream],")
    output = tree.snakemake("--cores", "1", check=False)
    assert "finetune_sets.random.concepts = 'ice - cream': has the same tokens as 'ice-cream' in synonyms." in output
    assert "remove it from the set" in output and not (tree.root / "results").exists()


def test_missing_weights_stop_a_run_before_any_job_but_not_the_plan(fresh: Tree, tmp_path: Path) -> None:
    tree = Tree(fresh.root, str(tmp_path / "small.yaml"))
    text = (fresh.root / "tests/small.yaml").read_text()
    Path(tree.overlay).write_text(text.replace("path: data/small/base", "path: nobody/nothing, revision: abc"))
    planned = tree.snakemake("-n", "-q", "rules")
    assert "sample" in planned and "hf download" not in planned
    output = tree.snakemake("--cores", "1", check=False)
    assert "hf download nobody/nothing --revision abc" in output and "base.path = 'nobody/nothing'" in output
    assert "Prompts of pets" not in output and not (tree.root / "results").exists()


def changed(case: str, fresh: Tree, folder: Path) -> tuple[Path, list[str]]:
    """The study with a mistake, below a folder, and what the error says of it."""
    old, new, told = CASES[case]
    text = (fresh.root / "tests/small.yaml").read_text()
    assert text.count(old) == 1
    (folder / "small.yaml").write_text(text.replace(old, new))
    return folder / "small.yaml", told


def stops(tree: Tree, told: list[str]) -> str:
    """Assert that a run fails with these words, and that no job was started; returns what it printed."""
    output = tree.snakemake("--cores", "1", check=False)
    assert "Job stats" not in output
    assert [part for part in told if part not in output] == []
    assert not (tree.root / "results").exists()
    return output
