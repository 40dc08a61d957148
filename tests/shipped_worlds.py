"""Tests of the shipped worlds: skipped where one is not pulled, except where continuous integration pulls it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PULLED = {"miniature": ("nightly",), "miniature-2": ("1", "nightly")}
"""World -> the values of RESURGENCE_CI with which it is there: `make setup` pulls the second, `make worlds` both."""


def require_world(name: str) -> Path:
    """The folder of a shipped world; skip the test where it was not pulled."""
    folder = ROOT / "data" / name
    if not (folder / "base/model_index.json").is_file():
        pulled = os.environ.get("RESURGENCE_CI") in PULLED[name]
        assert not pulled, f"data/{name} is not here, though RESURGENCE_CI is set: `make worlds` pulls it"
        pytest.skip(f"data/{name} is not here; run `dvc pull data/{name}/dvc.yaml`")
    return folder
