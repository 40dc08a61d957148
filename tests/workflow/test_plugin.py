"""An eraser in a package of its own (examples/neggrad): built, installed and run by the graph as a user would."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tree import ROOT, Tree, messages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STUDY = """\
erasers:
  neggrad: {steps: 3, batch: 2, lr: 1.0e-4}
"""


@pytest.fixture
def plugged(copy: Tree, tmp_path: Path) -> tuple[Tree, dict[str, str], Path]:
    """The finished small study, its overlay with the new eraser, and a folder in which the package is installed."""
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(ROOT / "examples/neggrad", source)
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    overlay = copy.root / copy.overlay
    overlay.write_text(overlay.read_text().replace("erasers:\n", STUDY, 1))
    return copy, {"PYTHONPATH": str(site)}, site / "neggrad"


def test_one_file_and_one_entry_are_enough(plugged: tuple[Tree, dict[str, str], Path]) -> None:
    tree, environment, package = plugged
    target = "results/images/small/pets/neggrad/s0/images/manifest.json"
    told = tree.snakemake("--cores", "2", target, environment=environment)
    assert messages(told) == [
        "Erase pets with neggrad, seed 0",
        "Images of the concepts that pets retains, made by small",
        "Sample pets/neggrad/s0",
    ]
    manifest = json.loads((tree.root / "results/erased/small/pets/neggrad/s0/delta/manifest.json").read_text())
    assert manifest["parameters"]["method"] == "neggrad"
    assert manifest["parameters"]["settings"]["alpha"] == 0.9

    # a changed line of the plug-in runs its erasure and what follows, and nothing else
    assert messages(tree.snakemake("-n", target, environment=environment)) == []
    loss = package / "objective.py"
    loss.write_text(loss.read_text().replace("self.cfg.alpha * retain", "2 * self.cfg.alpha * retain"))
    jobs = messages(tree.snakemake("-n", target, environment=environment))
    assert jobs == ["Erase pets with neggrad, seed 0", "Sample pets/neggrad/s0"]

    # without the package the name is unknown, and that is told before any job
    told = tree.snakemake("-n", check=False)
    assert "erasers.neggrad.method" in told and "neggrad" in told
