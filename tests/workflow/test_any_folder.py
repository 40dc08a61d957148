"""The study in a folder of the user's: defaults come from the checkout, results and overlays stay there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tree import Tree

from resurgence.provenance.manifest import verify


@pytest.mark.slow
def test_study_in_another_folder(fresh: Tree, tmp_path: Path) -> None:
    """The user's own captions are read there; base, tasks and everything else in the checkout."""
    (tmp_path / "general.txt").write_text("a dog\n")
    overlay = tmp_path / "mine.yaml"
    text = (fresh.root / "tests/small.yaml").read_text()
    overlay.write_text(text.replace("prior: data/small/general.txt", "prior: general.txt"))
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SNAKEMAKE_PROFILE")}
    artefacts = [tmp_path / "results/data/small" / name for name in ("moments", "pets/prompts")]
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(fresh.root / "Snakefile"), "--cores", "1"]
    command += [
        "--configfile",
        str(overlay),
        "--",
        *(f"{path.relative_to(tmp_path)}/manifest.json" for path in artefacts),
    ]
    before = {path for path in fresh.root.rglob("*") if "__pycache__" not in path.parts}
    done = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [verify(path) for path in artefacts] == [[], []]
    assert '"general.txt": "' in (artefacts[0] / "manifest.json").read_text()
    assert {path for path in fresh.root.rglob("*") if "__pycache__" not in path.parts} == before
