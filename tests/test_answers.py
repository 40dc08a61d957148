"""The sentence of an eraser says what the verdict of the tables says, and no more."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pandas as pd
import pytest

from resurgence.analysis.answers import Clause, answer, clause, sentence
from resurgence.analysis.headline import markdown, outcome, verdict

CELL = {
    "base": "miniature", "task": "ship", "eraser": "uce", "variant": "default", "finetune": "lora",
    "finetune_variant": "default", "step": 300, "role": "erase", "metric": "recogniser_accuracy",
}  # fmt: skip


def tables(
    *intervals: tuple[float, float],
    mean: tuple[float, float] | None = None,
    scope: str = "seeds",
    erased: float = 2.0,
    metric: str = "recogniser_accuracy",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of resurgence.csv and seeds.csv of one cell whose base has 100, one interval a run."""  # fmt: skip
    cell = CELL | {"metric": metric}
    rows = pd.DataFrame([
        {**cell, "finetune_seed": seed, "base_value": 100.0, "erased_value": erased, "resurgence": (low + high) / 2,
         "resurgence_low": low, "resurgence_high": high}
        for seed, (low, high) in enumerate(intervals)
    ])  # fmt: skip
    low, high = mean or intervals[0]
    over = {"scope": scope, "resurgence_mean": (low + high) / 2, "resurgence_low": low, "resurgence_high": high}
    return rows, pd.DataFrame([cell | over])


BACK, NOT_BACK, MAYBE = "came back", "did not come back", "may or may not have come back"
MOST, TENTH = (
    "points at most, no more than 10 % of the base's value.",
    "includes 0 and ends above 10 % of the base's value.",
)
# tables, verdict of the tables, sentence after "What uce erased"
SENTENCES = {
    "yes": (
        tables((4.0, 8.0)), "yes", f"{BACK} after lora in this run: by 6.0 points [4.0, 8.0] of the base's 100.0 %."
    ),
    "no": (tables((-1.0, 8.0)), "no (up to 8.0 %)", f"{NOT_BACK} after lora in this run: by 8.0 {MOST}"),
    "no, and less than before": (tables((-8.0, -1.0)), "no", f"{NOT_BACK} after lora in this run."),
    "open": (tables((-1.0, 30.0)), "open", f"{MAYBE} after lora in this run: the interval {TENTH}"),
    "no interval": (
        tables((math.nan, math.nan)), "open", f"{MAYBE} after lora in this run: there is no interval."
    ),
    "seeds": (
        tables((1.0, 9.0), (-1.0, 11.0), (2.0, 8.0), mean=(2.0, 8.0)), "yes (2 of 3)",
        f"{BACK} after lora on average over seeds (2 of 3 runs alone show a return): by 5.0 points [2.0, 8.0] of the "
        "base's 100.0 %.",
    ),
    "runs of one seed": (
        tables((1.0, 9.0), (-1.0, 11.0), mean=(-2.0, 12.0), scope="this run"), "open (1 of 2)",
        f"{MAYBE} after lora on average of these 2 runs (1 of 2 runs alone show a return): the interval {TENTH}",
    ),
    "hardly erased": (
        tables((-9.0, 4.0), erased=60.0), "no (up to 4.0 %)",
        f"{NOT_BACK} after lora in this run: by 4.0 {MOST} Erasing itself left 60.0 % of the base's 100.0 %.",
    ),
    "no share": (
        tables((4.0, 8.0), metric="clip_score"), "yes",
        f"{BACK} after lora in this run: by 6.0 [4.0, 8.0] of the base's 100.0.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SENTENCES)
def test_sentence_of_a_verdict(name: str) -> None:
    (rows, seeds), word, text = SENTENCES[name]
    assert verdict(rows, seeds) == word
    assert sentence("uce", [clause(rows, seeds)]) == f"What uce erased {text}"


def clauses(**intervals: tuple[float, float]) -> list[Clause]:
    """The clause of each fine-tune from its interval."""
    return [replace(clause(*tables(interval)), finetune=name) for name, interval in intervals.items()]


def test_several_fine_tunes_are_one_sentence_whose_answer_is_the_worst() -> None:
    yes, is_open, no = (4.0, 8.0), (-1.0, 30.0), (-1.0, 8.0)
    assert answer(clauses(lora=no, full=yes, random=is_open)) == "yes"
    assert answer(clauses(lora=no, full=is_open)) == "open"
    assert answer(clauses(lora=no, full=no)) == "no"
    assert sentence("uce", clauses(lora=no, full=yes, random=is_open, other=no)) == (
        "What uce erased came back after full in this run; it may or may not have come back after random in this run; "
        "it did not come back after lora, other in this run."
    )


def test_the_page_names_the_share_of_the_base_below_which_a_concept_did_not_come_back() -> None:
    nothing = pd.DataFrame(columns=["metric"])
    page = markdown(nothing, nothing, pd.DataFrame({"unit": ["concept"]}), 0.95)
    (percent,) = re.findall(r"at or below ([\d.]+) % of the base's value", page)
    limit = float(percent) / 100 * 80.0
    assert [outcome(-1.0, high, 80.0) for high in (limit, limit + 0.01)] == ["no", "open"]
