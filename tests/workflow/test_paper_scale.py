"""The studies of Stable Diffusion through a real `snakemake -n`, without weights: everything is planned."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from tree import ROOT, Tree

from resurgence.config.load import load_study
from resurgence.workflow.gpu_hours import Coster, by_rule, prompts_of, read_rates
from resurgence.workflow.jobs import jobs as study_jobs
from resurgence.workflow.plan import job_counts
from shipped_worlds import require_world


@pytest.mark.parametrize("name", ["sd14", pytest.param("sd21", marks=pytest.mark.nightly)])
def test_the_whole_study_is_planned(name: str, fresh: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = ROOT / f"studies/{name}.yaml"
    told = Tree(fresh.root, str(overlay)).snakemake("-n", "-p")
    monkeypatch.chdir(fresh.root)
    study = load_study([fresh.root / "params.yaml", overlay])
    jobs, counts = study_jobs(study), job_counts(told)
    assert Counter(job.rule.name for job in jobs) == {k: n for k, n in counts.items() if not k.startswith("coco_")}
    assert counts["coco_captions"] == counts["coco_annotations"] == 1
    # Linux takes 128 KiB in one argument of a command, and a job's command line is one; 4 KiB for the shell's prefix
    assert max(len(line.encode()) for line in told.splitlines()) < 2**17 - 2**12
    models = len(study.tasks.names) + sum(study.erasers[e.eraser].config is not None for e in study.erasures())
    assert counts["sample"] == counts["score"] == models + len(list(study.cells()))
    costs = by_rule(jobs, Coster(study, read_rates(fresh.root), "a100"))
    sampled = [study.task(job.out.parts[3]) for job in jobs if job.rule.name == "sample"]
    assert costs["sample"].images == sum(map(prompts_of, sampled))
    assert all(costs[rule].seconds > 0 for rule in ("loras", "closed_form", "finetune", "sample", "score", "masks"))


def test_a_subset_is_planned_by_hand(fresh: Tree) -> None:
    target = "results/scores/sd14/ship/uce/s0/scores/manifest.json"
    overlay = str(ROOT / "studies/sd14.yaml")
    command = [sys.executable, "-m", "resurgence.cli", "plan", "--overlay", overlay, "--target", target]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=fresh.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {line[:26].strip(): line[26:].split() for line in done.stdout.splitlines()}
    assert rows["sample"][0] == rows["score"][0] == "1" and rows["fine-tune"][0] == "0"
    assert rows["sample"][2] == "2,600" and "computed" in done.stdout


@pytest.mark.parametrize(
    ("name", "target", "models"),
    [
        ("sd14-eap", "eap_tab1", 4 + 16),  # the base on four splits, and four erasers
        pytest.param("sd14-doco", "doco_tab1", 3 * (1 + 4 * 3), marks=pytest.mark.nightly),
        pytest.param("eap", "eap_tab1_finetuned", 4 + 16 + 32, marks=pytest.mark.nightly),
        pytest.param("doco", "doco_tab1", 3 * (1 + 4 * 3), marks=pytest.mark.nightly),
    ],
)
def test_a_table_of_a_paper_plans_its_models_alone(name: str, target: str, models: int, fresh: Tree) -> None:
    if not name.startswith("sd14"):
        world = require_world("miniature-2")
        if not (fresh.root / "data/miniature-2").exists():
            (fresh.root / "data/miniature-2").symlink_to(world)
    counts = job_counts(Tree(fresh.root, str(ROOT / f"studies/{name}.yaml")).snakemake(target, "-n", "-q", "rules"))
    assert counts["sample"] == counts["score"] == models and counts[target] == 1
