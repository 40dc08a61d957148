"""The graph in Python against Snakemake's: the same jobs, inputs, settings and versions of code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tree import ROOT, Tree

LIST = """\
from pathlib import Path
from resurgence.config.load import load_study
from resurgence.workflow import graph
for job in graph.jobs(load_study([Path("params.yaml"), Path("tests/small.yaml")])):
    print(job.rule.name, job.out, job.code, *sorted(job.digested))
"""


def snakemake_jobs(text: str) -> dict[str, tuple[str, set[str]]]:
    """Manifest of each job -> its rule and inputs, from what `snakemake -n` prints."""
    found = {}
    for name, body in re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", text, flags=re.MULTILINE):
        fields = dict(re.findall(r"^    (input|output): (.+)$", body, flags=re.MULTILINE))
        outputs = fields.get("output", "").split(", ")
        made = [path for path in outputs if Path(path).name in ("manifest.json", "made.json", "report.json")]
        if made:
            found[made[0]] = name, set(fields["input"].split(", ")) if "input" in fields else set()
    return found


def test_jobs_and_inputs_are_those_of_snakemake(fresh: Tree) -> None:
    theirs = snakemake_jobs(fresh.snakemake("-n", "-F"))
    environment = {**os.environ, "PYTHONPATH": str(fresh.root / "src")}
    command = [sys.executable, "-c", LIST]
    done = subprocess.run(command, cwd=fresh.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours, codes, seen = {}, {}, set()
    for line in done.stdout.splitlines():
        rule, out, code, *inputs = line.split(" ")
        ours[out], codes[out] = (rule, set(inputs)), code
        above = {path for path in inputs if path.startswith("results/") and path.endswith("manifest.json")}
        assert above <= seen, f"{out} comes before what it reads"
        seen.add(out)
    assert ours == theirs and len(ours) > 20
    assert all(re.fullmatch(r"[0-9a-f]{16}", code) for code in codes.values())


def test_reading_the_graph_needs_no_torch(fresh: Tree) -> None:
    code = (
        f"import sys\n{LIST}\nprint([m for m in ('torch', 'diffusers', 'transformers', 'pandas') if m in sys.modules])"
    )
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=fresh.root, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


@pytest.mark.parametrize("rule", ["sample", "closed_form", "masks", "finetune"])
def test_a_job_that_can_use_a_gpu_says_so(rule: str) -> None:
    """The stage takes a GPU only with the flag, and the rule asks Snakemake for it: both come from the record."""
    from resurgence.workflow.rule_table import RULES

    assert RULES[rule].gpu and " --gpu " in RULES[rule].command
