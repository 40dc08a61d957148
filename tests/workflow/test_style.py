"""The workflow is clean: lint, format, rules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.cli import parse_args
from tree import ROOT, Tree, messages, workflow_of

from resurgence.workflow.rule_table import RULES

SMALL = yaml.safe_load((ROOT / "tests/small.yaml").read_text())


def test_lint(fresh: Tree) -> None:
    assert "Congratulations, your workflow is in a good condition" in fresh.snakemake("--lint", check=False)


def test_format() -> None:
    files = [ROOT / "Snakefile", *sorted((ROOT / "workflow/rules").glob("*.smk"))]
    done = subprocess.run(
        [Path(sys.executable).parent / "snakefmt", "--check", "--diff", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def rules(fresh: Tree) -> dict[str, Any]:
    """Snakemake's rules by name, as on a machine with a GPU."""
    return {rule.name: rule for rule in workflow_of(fresh, base={**SMALL["base"], "device": "cuda"}).rules}


def test_every_job_says_what_it_does_and_writes_a_log_and_a_benchmark(rules: dict[str, Any]) -> None:
    jobs = [rule for rule in rules.values() if rule.shellcmd]
    assert {rule.name for rule in jobs} > set(RULES)
    for rule in jobs:
        assert rule.message and rule.log and rule.benchmark, rule.name
        assert rule.shellcmd.endswith("> {log} 2>&1"), rule.name  # else a message is lost


def test_every_rule_of_the_study_has_a_record(rules: dict[str, Any]) -> None:
    """By which it is planned, costed and tracked."""
    others = ("coco_", "list_", "world")
    assert {name for name, rule in rules.items() if rule.shellcmd and not name.startswith(others)} == set(RULES)


def test_rules_that_run_a_model_take_one_gpu_and_no_others(rules: dict[str, Any]) -> None:
    on_gpu = {name: rule.resources["gpu"].value for name, rule in rules.items() if "gpu" in rule.resources}
    assert set(on_gpu.values()) == {1}
    assert {name for name in on_gpu if not name.startswith("world_")} == {r.name for r in RULES.values() if r.gpu}
    trained = {"autoencoder", "base", "recogniser", "clip", "quality"}
    assert {name for name in on_gpu if name.startswith("world_")} == {f"world_{part}" for part in trained}


def test_on_a_cluster_what_reads_tables_and_words_runs_where_snakemake_runs(rules: dict[str, Any]) -> None:
    local = {name for name, rule in rules.items() if rule.shellcmd and name in rule.workflow._localrules}
    fetched = {name for name in rules if name.startswith(("coco_", "list_"))}
    assert fetched and local == fetched | {rule.name for rule in RULES.values() if rule.local}


def test_a_workstation_runs_one_model_at_a_time() -> None:
    _, args = parse_args(["--profile", str(ROOT / "profiles/default"), "--cores", "8"])
    assert args.resources == {"gpu": 1}


def test_the_world_can_be_made_again(fresh: Tree) -> None:
    start = Path("data/weights/resnet18-f37072fd.pth")  # what the recogniser starts from, which is fetched by hand
    assert start.as_posix() in fresh.snakemake("-n", "world", check=False)
    (fresh.root / start).parent.mkdir(parents=True, exist_ok=True)
    (fresh.root / start).touch()
    told = messages(fresh.snakemake("-n", "world"))
    assert told == [
        "Compose pictures for fine-tuning",
        "Measure the world",
        "Render the drawings of the world",
        "Train the autoencoder of the miniature",
        "Train the miniature base",
        "Train the recogniser",
        "Train the small CLIP",
    ]
