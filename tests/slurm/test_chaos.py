"""Twenty kills with a fixed seed, on this machine and on SLURM: the tables are those of a quiet run, byte for byte."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import Chaos
from cluster import Cluster, small_tree
from tree import Tree

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(params=["local", "slurm"])
def where(request: pytest.FixtureRequest) -> Iterator[Cluster | None]:
    """No cluster, or a running one."""
    if request.param == "local":
        yield None
        return
    assert shutil.which("slurmctld", path=f"/usr/sbin:{os.environ['PATH']}"), "install slurm-wlm and munge"
    cluster = Cluster.start()
    yield cluster
    cluster.stop()


def test_tables_after_twenty_kills(where: Cluster | None, fresh: Tree, tmp_path: Path) -> None:
    quiet = Chaos(small_tree(fresh, tmp_path / "quiet"), where, 0).complete()
    chaos = Chaos(small_tree(fresh, tmp_path / "disturbed"), where, seed=20)
    chaos.disturb(20)
    assert chaos.killed.total() == 20 and len(chaos.killed) >= 3
    assert chaos.complete() == quiet
