"""The tests of one file run in one process, and those that start SLURM one after the other."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group by file for `--dist loadgroup`: fixtures of a file are made once, and two tests never share a port."""
    for item in items:
        group = "slurm" if "slurm" in item.path.parts else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
