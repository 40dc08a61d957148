"""The workflow is clean: lint, format, a fast start, and a schema that says what the code accepts."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tree import ROOT, Tree, messages

from resurgence.config import consistency, settings
from resurgence.config.study import Study
from resurgence.workflow.plan import STAGES


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


def test_reading_the_study_is_fast_and_needs_no_torch(fresh: Tree) -> None:
    code = (
        "import sys; from pathlib import Path; from resurgence.config.study import load_study\n"
        "from resurgence import blocks, presentation\n"
        "study = load_study([Path('params.yaml'), Path('tests/small.yaml')])\n"
        "[blocks.erase(study, e) for e in study.erasures()]; presentation.grids(study)\n"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'pandas') if m in sys.modules])"
    )
    start = time.process_time()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=fresh.root,
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stderr
    assert time.process_time() - start < 3


def blocks_of_schema() -> dict:
    return yaml.safe_load((ROOT / "workflow/schemas/params.schema.yaml").read_text())["properties"]


def test_schema_has_the_keys_of_the_study() -> None:
    assert set(blocks_of_schema()) == {f.name for f in dataclasses.fields(Study)} - {"loaded"}


@pytest.mark.parametrize(
    ("key", "cls"),
    [
        ("base", settings.Base),
        ("tasks", settings.Tasks),
        ("moments", settings.Moments),
        ("concept_images", settings.ConceptImages),
        ("seeds", settings.Seeds),
        ("statistics", settings.Statistics),
        ("figures", settings.Figures),
    ],
)
def test_schema_has_the_keys_of_each_block(key: str, cls: type) -> None:
    assert set(blocks_of_schema()[key]["properties"]) == {f.name for f in dataclasses.fields(cls)}


def test_schema_refuses_what_is_unknown() -> None:
    import jsonschema

    schema = yaml.safe_load((ROOT / "workflow/schemas/params.schema.yaml").read_text())
    study = yaml.safe_load((ROOT / "params.yaml").read_text())
    jsonschema.validate(study, schema)
    with pytest.raises(jsonschema.ValidationError, match="unknown_key"):
        jsonschema.validate({**study, "unknown_key": 1}, schema)


def rules_text() -> str:
    return "\n".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))


def test_every_rule_has_message_log_and_benchmark_and_redirects() -> None:
    for body in re.split(r"^(?:use )?rule ", rules_text(), flags=re.MULTILINE)[1:]:
        name = body.partition(":")[0]
        if " as " in name:  # the rest is inherited
            own = ("benchmark:",) if "wildcard_constraints:" in body else ("message:", "log:", "benchmark:", "output:")
            for directive in own:
                assert f"\n    {directive}" in body, (name, directive)
        elif "shell:" in body:
            for directive in ("message:", "log:", "benchmark:", "conda:", "params:"):
                assert f"\n    {directive}" in body, (name, directive)
            assert "> {log} 2>&1" in body, name


def test_no_experiment_takes_the_name_of_a_rule() -> None:
    names = set(re.findall(r"^(?:use rule \w+ as|rule) (\w+)(?: with)?:", rules_text(), flags=re.MULTILINE))
    assert names | {"all"} == consistency.RULES


def test_plan_and_its_defaults_know_every_rule() -> None:
    names = re.findall(r"^(?:use rule \w+ as|rule) (\w+)(?: with)?:", rules_text(), flags=re.MULTILINE)
    targets = {"data", "erased", "finetuned", "images", "scores", "presented"}
    rules = {name for name in names if not name.startswith("world")} - targets
    assert {rule for group in STAGES.values() for rule in group} == rules
    assert set(yaml.safe_load((ROOT / "workflow/seconds.yaml").read_text())) == rules


def test_a_gpu_runs_one_model_at_a_time() -> None:
    assert yaml.safe_load((ROOT / "profiles/default/profile.yaml").read_text())["resources"] == ["gpu=1"]
    assert json.dumps(rules_text()).count("**ON_GPU") >= 10


def test_the_world_can_be_made_again(fresh: Tree) -> None:
    told = messages(fresh.snakemake("-n", "world"))
    assert told == [
        "Measure the world",
        "Render the drawings of the world",
        "Train the autoencoder of the miniature",
        "Train the miniature base",
        "Train the recogniser",
        "Train the small CLIP",
    ]
