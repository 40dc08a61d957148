"""Comparison of two runs' tables: equal numbers, numbers within their intervals, and what is to be named."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from resurgence.analysis.tables import CELLS, RESURGENCE
from resurgence.stages.remake import differing


def write(folder: Path, shift: float = 0.0, drop: bool = False) -> Path:
    """Tables with one row each; the interval of every value is -+ 5."""
    key = {"base": "b", "task": "t", "eraser": "mace", "variant": "default", "erase_seed": 0, "finetune": "lora",
           "finetune_variant": "default", "finetune_seed": 0, "step": 9, "metric": "clip_accuracy", "n": 4}  # fmt: skip
    cells = pd.DataFrame([{**key, "state": "finetuned", "role": role, "value": 40 + shift, "low": 35 + shift,
                           "high": 45 + shift} for role in ("erase", "retain")])[CELLS]  # fmt: skip
    gain = {"base_value": 90, "erased_value": 10, "finetuned_value": 40 + shift, "recovered_fraction": 0.4}
    gain |= {"resurgence": 30 + shift, "resurgence_low": 25 + shift, "resurgence_high": 35 + shift}
    resurgence = pd.DataFrame([{**key, "role": "erase", **gain}])[RESURGENCE]
    folder.mkdir()
    (cells.head(1) if drop else cells).to_csv(folder / "cells.csv", index=False)
    resurgence.to_csv(folder / "resurgence.csv", index=False)
    return folder


def test_the_same_tables_and_numbers_within_their_intervals_agree(tmp_path: Path) -> None:
    own = write(tmp_path / "own")
    assert list(differing(own, write(tmp_path / "same"))) == []
    assert list(differing(own, write(tmp_path / "near", shift=4.0))) == []


def test_numbers_apart_and_missing_rows_are_named(tmp_path: Path) -> None:
    own = write(tmp_path / "own")
    apart = list(differing(own, write(tmp_path / "far", shift=20.0)))
    assert len(apart) == 3
    assert any("resurgence.csv" in line and "30 [25, 35] against 50 [45, 55]" in line for line in apart)
    assert all("task t, eraser mace" in line for line in apart)
    missing = list(differing(write(tmp_path / "less", drop=True), own))
    assert len(missing) == 1 and "has no row" in missing[0] and "role retain" in missing[0]
    with pytest.raises(FileNotFoundError, match=r"cells\.csv is missing"):
        list(differing(own, tmp_path / "nothing"))
