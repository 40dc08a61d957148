"""The layers of the package, and what a study is read with: the contracts of pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_keep_the_contracts(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [Path(sys.executable).parent / "lint-imports", "pyproject.toml", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[done.stdout.find("Contracts") :]
    assert "2 kept, 0 broken" in done.stdout
