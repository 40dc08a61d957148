"""The layers of the package, and what a study is read with: the contracts of pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]


def test_imports_keep_the_contracts(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [Path(sys.executable).parent / "lint-imports", "pyproject.toml", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[done.stdout.find("Contracts") :]
    assert "2 kept, 0 broken" in done.stdout


def test_no_import_goes_in_a_circle() -> None:
    """Imports inside of functions count too; TopologicalSorter raises CycleError, with the modules."""
    graph = grimp.build_graph("resurgence", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 200
    order = list(TopologicalSorter(imports).static_order())
    assert order.index("resurgence.cli.audit") < order.index("resurgence.cli.main")
