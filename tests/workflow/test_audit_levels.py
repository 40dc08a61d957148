"""Audits of a small random Stable Diffusion."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_world import make_clip
from test_audit import environment
from tree import ROOT

from audit_place import make_place
from resurgence.workflow.snakemake import job_counts

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1800)]
CLIP = ("--scorer", "clip", "path=scorer")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user, with a random CLIP."""
    root = make_place(tmp_path_factory.mktemp("levels"))
    (root / "scorer").rmdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make_clip(root / "scorer")
    return root


def audit(
    place: Path, out: str, *words: str, steps: int = 3, home: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command in the folder, as small as it can be, with nothing in the cache of the hub and no way to it."""
    line = [sys.executable, "-m", "resurgence.cli", "audit", "erased", "--erased", "ship", "--retained", "retained.txt"]
    line += ["--pairs", "4", "--retained-pairs", "3", "--sampling", "steps=2", "size=16", "batch=64"]
    line += ["--update", f"steps={steps}", "batch=2", "--cores", "2", "--device", "cpu", "--out", out, *words]
    offline = {"HF_HUB_OFFLINE": "1", **({"HF_HOME": str(home)} if home else {})}
    return subprocess.run(line, cwd=place, env=environment() | offline, capture_output=True, text=True)


def test_the_folder_of_a_plan_is_run_by_the_commands_for_a_cluster(place: Path) -> None:
    """Those of docs/slurm.md: a dry run with the profile submits what the plan has said."""
    planned = audit(place, "cluster", "--images", "pictures", *CLIP, "--plan")
    assert planned.returncode == 0, planned.stderr
    (line,) = re.findall(r"^ +(snakemake --snakefile CHECKOUT.*)$", (ROOT / "docs/slurm.md").read_text(), re.M)
    assert line in (ROOT / "docs/audit.md").read_text()
    command = [sys.executable, "-m", *shlex.split(line.replace("CHECKOUT", str(ROOT))), "-n", "-q", "rules"]
    done = subprocess.run(command, cwd=place / "cluster", env=environment(), capture_output=True, text=True)
    counts = job_counts(done.stdout)
    assert done.returncode == 0 and counts["audit"] == counts["finetune"] == 1, done.stderr
    (whole,) = re.findall(r"^all +(\d+) ", planned.stdout, re.M)
    assert counts.total() == int(whole)
