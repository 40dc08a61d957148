"""How a study is cut into pieces does not show: other batches, order of jobs and cores give the same tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from tree import Tree, clone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LAST = "results/scores/small/pets/uce/s0/lora/f0/scores/manifest.json"


def test_batches_order_and_cores_leave_the_tables_alone(
    finished: tuple[Tree, str], fresh: Tree, tmp_path: Path
) -> None:
    tree = Tree(clone(fresh.root, tmp_path / "tree"))
    tree.edit("tests/small.yaml", "guidance: 4.0, batch: 16", "guidance: 4.0, batch: 5")
    told = tree.snakemake("tables", "--cores", "1", "--scheduler", "greedy", "--prioritize", LAST)
    assert order(told) != order(finished[1])
    names = ["cells.csv", "resurgence.csv", "intervals.csv", "seeds.csv", "metrics.json", "resurgence.md"]
    for name in names:
        one, other = (root / "results/tables" / name for root in (finished[0].root, tree.root))
        assert one.read_bytes() == other.read_bytes(), name
    assert len(pd.read_csv(tree.root / "results/tables/cells.csv")) > 0


def order(told: str) -> list[str]:
    """The sampling jobs in the order in which they were started."""
    return [line for line in told.splitlines() if ": Sample " in line]
