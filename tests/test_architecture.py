"""The examples of docs/architecture.md, a new rule and a new eraser: their diffs apply to the source, and work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DIFFS = re.findall(r"^```diff\n(.*?)^```", (ROOT / "docs/architecture.md").read_text(), flags=re.MULTILINE | re.DOTALL)
RULE = """
import json
from pathlib import Path
import pandas as pd
from resurgence.config.fields import ConfigError
from resurgence.config.load import load_study
from resurgence.stages import image_count
from resurgence.stages.job import Job
from resurgence.workflow.jobs import jobs
from resurgence.workflow.rule_table import TASK, every_manifest, folders_beside

study = load_study([Path("params.yaml")])
planned = [job for job in jobs(study) if job.rule.name in ("sample", "image_count")]
counts = [job for job in planned if job.rule.name == "image_count"]
assert len(counts) == len(planned) / 2 and len({job.code for job in counts}) == 1
assert {str(job.out) for job in counts} <= set(every_manifest(study)) and "image_count" in folders_beside(TASK)
assert [job.above for job in counts] == [[job.out] for job in planned if job.rule.name == "sample"]
pd.DataFrame({"image": [b"a", b"b", b"c"]}).to_parquet(OUT / "images.parquet")
image_count.make(Job({}, OUT / "manifest.json", {"images": (OUT / "manifest.json",)}, "cpu"), OUT)
count = json.loads((OUT / "count.json").read_text())
print(json.dumps({"jobs": len(counts), "stage": counts[0].rule.dvc_stage, "count": count}))
"""
ERASER = """
import json
import torch
from resurgence.config.settings import make_eraser
from resurgence.erasers import EraserData
from resurgence.erasers.closed_form.scale import erase
from resurgence.erasers.toolkit import projection_weights
from resurgence.workflow.code_entries import function_of
from tiny import make_pipeline

method = make_eraser("scale", {"scale": 0.2})
pipe = make_pipeline()
delta, weights = erase(pipe, None, method.config(**method.settings), EraserData(), 0), projection_weights(pipe.unet)
same = [torch.equal(delta[f"unet.{name}.weight"], 0.2 * weight) for name, weight in weights.items()]
print(json.dumps({"same": all(same) and len(same) == len(delta) > 0, "entries": function_of("scale", "erase")}))
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str, str], Any]:
    """What a script prints as JSON, by a copy of the source to which a diff is applied."""

    def of(diff: str, script: str) -> Any:
        shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        apply = ["git", "apply", "--whitespace=error", "-"]
        environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)}  # no repository around it
        subprocess.run(apply, cwd=tmp_path, env=environment, input=diff, text=True, check=True)
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}{os.pathsep}{ROOT / 'tests'}"}
        command = [sys.executable, "-c", f"from pathlib import Path\nOUT = Path({str(tmp_path)!r})\n{script}"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return of


def test_the_diffs_are_a_rule_and_an_eraser_with_one_new_file_and_one_entry_each() -> None:
    assert len(DIFFS) == 2
    for diff, table in zip(DIFFS, ("workflow/rule_table.py", "config/erasers.py"), strict=True):
        assert re.findall(r"^--- (\S+)", diff, flags=re.MULTILINE) == ["/dev/null", f"a/src/resurgence/{table}"]
        assert len(re.findall(r"^@@", diff, flags=re.MULTILINE)) == 2


def test_the_new_rule_has_jobs_and_its_stage_runs(run: Callable[[str, str], Any]) -> None:
    shown = run(DIFFS[0], RULE)
    assert shown == {"jobs": 10, "stage": "scores", "count": {"images": 3}}
    assert "lists ten more jobs" in (ROOT / "docs/architecture.md").read_text()


def test_the_new_eraser_is_registered_and_erases(run: Callable[[str, str], Any]) -> None:
    module = "resurgence.erasers.closed_form.scale"
    assert run(DIFFS[1], ERASER) == {"same": True, "entries": [f"{module}:erase", f"{module}:ScaleConfig"]}
