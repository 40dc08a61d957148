"""What the other scores say beside an accuracy, against the images counted one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from resurgence.analysis import cells, tables
from resurgence.analysis.estimates import estimates
from resurgence.analysis.headline import MARK
from resurgence.analysis.score_sets import ImageSet
from resurgence.analysis.scorer_checks import check_names, checks, checks_page, with_checks
from scored import study_sets


def seen(sets: list[ImageSet]) -> list[ImageSet]:
    """The sets with labels: every third image is taken for a ship, every fifth is blank."""
    found = []
    for one in sets:
        numbers = np.arange(len(one.rows))
        labels = np.where(numbers % 3 == 0, "Ship", "cat")
        found.append(replace(one, rows=one.rows.assign(recogniser_top1=labels, blank=(numbers % 5 == 0).astype(float))))
    return found


def shown_cells(sets: list[ImageSet]) -> pd.DataFrame:
    every, _ = estimates(sets, only=["recogniser_accuracy"])
    pairs = tables.paired_rows(every) if any(s.key["state"] == "finetuned" for s in sets) else tables.erased_rows(every)
    return cells.table(cells.pool_seeds([row for row in pairs if row["role"] in ("erase", "retain")]), 0.95)


@pytest.mark.parametrize("steps", [(50, 100), ()])
def test_checks_are_shares_of_the_images_of_the_last_step(steps: tuple[int, ...]) -> None:
    sets = seen([one for one in study_sets(steps) if one.key["task"] == "ship"])
    found = checks(sets, shown_cells(sets), ["recogniser_accuracy"], 0.95)
    state = "finetuned" if steps else "erased"
    assert set(found["metric"]) == {"clip_accuracy", "agreement", "false_alarm", "blank"}
    assert set(found["eraser"]) == {"mace", "uce"}
    for row in found.to_dict("records"):
        (one,) = [one for one in sets if one.key["state"] == state and one.key["eraser"] == row["eraser"]
                  and one.key["step"] in (None, *steps[-1:])]  # fmt: skip
        part = one.rows[one.rows["role"] == row["role"]]
        values = {
            "clip_accuracy": part["clip_correct"],
            "agreement": [a == b for a, b in zip(part["recogniser_correct"], part["clip_correct"], strict=True)],
            "false_alarm": [label == "Ship" for label in part["recogniser_top1"]],
            "blank": part["blank"],
        }[row["metric"]]
        assert row[f"{state}_value"] == pytest.approx(100 * np.mean(values), rel=1e-5), row["metric"]
        assert row["role"] == {"agreement": "erase", "false_alarm": "retain"}.get(row["metric"], row["role"])


def test_stored_columns_stay_and_missing_ones_are_added() -> None:
    one = seen(study_sets(()))[0]
    stored = replace(one, rows=one.rows.assign(agreement=0.25, false_alarm=0.5))
    assert with_checks(stored) is stored
    half = with_checks(replace(one, rows=one.rows.assign(agreement=0.25)))
    assert (half.rows["agreement"] != 0.25).any() and half.rows["false_alarm"].notna().any()
    assert "agreement" not in one.rows


def test_the_page_has_a_row_a_cell_and_marks_other_objectives() -> None:
    sets = seen(study_sets())
    page = checks_page(checks(sets, shown_cells(sets), ["recogniser_accuracy"], 0.95), {"uce": "lamb: 1"})
    assert list(page["eraser"]) == ["mace", f"uce {MARK}"] * 2 and list(page["fine-tune"]) == ["lora"] * 4
    assert page.iloc[:, 3:].map(lambda text: " -> " in text and "[" in text).all(axis=None)
    assert "CLIP accuracy (%), erased concepts" in page and "Images on which the detectors agree (%)" in page


def test_nothing_stands_beside_what_is_no_accuracy() -> None:
    sets = seen(study_sets())
    assert check_names(["clip_score"]) == [] and checks(sets, shown_cells(sets), ["clip_score"], 0.95).empty
    assert "clip_accuracy" not in check_names(["recogniser_accuracy", "clip_accuracy"])
