"""How a study is cut into pieces does not show: other files, order of jobs, cores and batches give the same tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tree import Tree, clone

from image_readers import read_sets

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LAST = "results/scores/small/pets/uce/s0/lora/f0/scores/manifest.json"
BATCH = "guidance: 4.0, batch: 16, size: 16"


@pytest.mark.nightly
def test_shards_order_and_cores_leave_the_tables_alone(finished: tuple[Tree, str], fresh: Tree, tmp_path: Path) -> None:
    tree = Tree(clone(fresh.root, tmp_path / "tree"))
    tree.edit("tests/small.yaml", BATCH, BATCH + ", shard: 17")
    told = tree.snakemake("tables", "--cores", "1", "--prioritize", LAST)
    assert order(told) != order(finished[1])
    assert len(list(tree.root.glob("results/images/small/pets/images/*-of-0002.parquet"))) == 2
    names = ["cells.csv", "means.csv", "resurgence.csv", "intervals.csv", "seeds.csv", "metrics.json", "resurgence.md"]
    for name in names:
        one, other = (root / "results/tables" / name for root in (finished[0].root, tree.root))
        assert one.read_bytes() == other.read_bytes(), name
    assert len(pd.read_csv(tree.root / "results/tables/cells.csv")) > 0


@pytest.mark.nightly
def test_batches_change_images_and_tables_by_rounding_only(copy: Tree) -> None:
    """What a batch of another shape is summed to differs in its last digits; a pixel may round to the next level."""
    before = {file: read_sets([file])[1].int() for file in copy.root.glob("results/images/**/*.parquet")}
    table = pd.read_csv(copy.root / "results/tables/cells.csv")
    copy.edit("tests/small.yaml", BATCH, BATCH.replace("16,", "5,"))
    copy.snakemake("tables", "--cores", "2")
    assert len(before) > 5
    for file, images in before.items():
        assert (read_sets([file])[1] - images).abs().max() <= 1, file
    again = pd.read_csv(copy.root / "results/tables/cells.csv")
    numbers = ["value", "low", "high"]
    assert again.drop(columns=numbers).equals(table.drop(columns=numbers))
    # Frechet distances of these random models are of the size of rounding itself
    own = table["metric"] != "frechet"
    np.testing.assert_allclose(again.loc[own, numbers], table.loc[own, numbers], rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(again.loc[~own, numbers], table.loc[~own, numbers], atol=1e-5)


def order(told: str) -> list[str]:
    """The sampling jobs in the order in which they were started."""
    return [line for line in told.splitlines() if ": Sample " in line]
