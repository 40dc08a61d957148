"""Findings: seeds together, half recovery, verdicts; against loops on the rows and cases with known answers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from resurgence.analysis import bootstrap, claims, tables
from resurgence.analysis.bootstrap import Estimate
from resurgence.analysis.estimates import estimates
from resurgence.analysis.weight_movement import correlations
from resurgence.config.experiment import Cells, Claim
from resurgence.figures.experiments import bars, curves, heatmap, line, similarities, weights
from resurgence.figures.style import save
from scored import study_sets


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    every, _ = estimates(study_sets(), 300, 0, only="recogniser_accuracy")
    return tables.paired_rows(every)


def test_only_one_metric_is_estimated_and_it_is_that_of_the_tables(rows: list[dict]) -> None:
    assert {row["metric"] for row in rows} == {"recogniser_accuracy"}
    whole, _ = estimates(study_sets(), 300, 0)
    whole = [row for row in tables.paired_rows(whole) if row["metric"] == "recogniser_accuracy"]
    assert len(whole) == len(rows)
    for one, other in zip(rows, whole, strict=True):
        assert one["estimates"]["gain"].value == other["estimates"]["gain"].value
        np.testing.assert_array_equal(one["estimates"]["gain"].replicates, other["estimates"]["gain"].replicates)


def test_pooled_is_the_mean_over_seeds_at_the_last_step(rows: list[dict]) -> None:
    seeds = [{**row, "erase_seed": seed} for seed in (0, 1) for row in rows]
    for row in seeds[len(rows) :]:  # a second seed, in which everything is 10 points higher
        up = {k: e._replace(value=e.value + 10, replicates=e.replicates + 10) for k, e in row["estimates"].items()}
        row["estimates"] = up
    made = claims.pool_seeds(seeds)
    for row in made:
        own = [r for r in rows if (r["task"], r["eraser"], r["role"]) == (row["task"], row["eraser"], row["role"])]
        last = max(r["step"] for r in own)
        single = next(r for r in own if r["step"] == last)
        assert row["step"] == last and row["runs"] == 2
        assert row["gain"].value == pytest.approx(single["estimates"]["gain"].value + 5)
        assert row["gains"] == pytest.approx([single["estimates"]["gain"].value + shift for shift in (0, 10)])
        np.testing.assert_allclose(row["gain"].replicates, single["estimates"]["gain"].replicates + 5)
    table = claims.table(made, 0.95)
    assert (table["deviation"] == 5).all() and (table["median"].round(4) == table["resurgence"].round(4)).all()
    assert (table["p_holm"] >= table["p"]).all() and (table["n"] > 0).all()
    assert claims.display_table(table)["n"].str.endswith("(2 runs)").all()


def test_half_recovery() -> None:
    erased, base = np.array(0.0), np.array(100.0)
    at = lambda values: float(claims.half_recovery([50, 150, 300], np.array(values, dtype=float), erased, base))  # noqa: E731
    assert at([50, 60, 70]) == 50
    assert at([0, 100, 100]) == 100  # halfway between 50 and 150
    assert at([10, 30, 60]) == 150 + 150 * 20 / 30
    assert at([100, 0, 0]) == 25  # the first crossing counts
    assert math.isinf(at([10, 20, 49.9]))
    nothing = claims.half_recovery([50], np.array([[80.0]]), np.array([50.0]), np.array([50.0]))
    assert math.isinf(nothing[0])  # nothing was erased
    many = claims.half_recovery([10, 20], np.array([[60.0, 0.0], [80.0, 100.0]]), np.zeros(2), np.full(2, 100.0))
    np.testing.assert_allclose(many, [50 / 6, 15])


def spread(value: float, width: float) -> Estimate:
    """An estimate whose 95 % interval is value -+ width, about."""
    return Estimate(value, value + width / 1.96 * np.random.default_rng(0).standard_normal(20_000), 40)


@pytest.mark.parametrize(
    ("expect", "value", "width", "than", "decided"),
    [
        ("above", 20, 10, 0, True),
        ("above", 20, 30, 0, None),
        ("above", 0, 3, 0, False),  # at most 3, which is too small to matter
        ("above", -20, 10, 0, False),
        ("above", 40, 5, 50, False),
        ("above", 60, 5, 50, True),
        ("below", -20, 10, 0, True),
        ("below", 20, 10, 0, False),
        ("below", -20, 30, 0, None),
        ("equal", 1, 3, 0, True),
        ("equal", 4, 3, 0, None),
        ("equal", 20, 10, 0, False),
        ("equal", -20, 10, 0, False),
        ("equal", 49, 3, 50, True),
    ],
)
def test_verdict(expect: str, value: float, width: float, than: float, decided: bool | None) -> None:
    claim = Claim("", Cells(), expect, than=than)
    assert claims.verdict(spread(value, width), 40, claim, 0.95) is decided


@pytest.mark.parametrize(("images", "margin", "decided"), [(40, 5, None), (40, 10, True), (100, 5, True)])
def test_none_of_few_images_does_not_mean_never(images: int, margin: float, decided: bool | None) -> None:
    """0 of 40 images: up to 8.8 % of all would show in none of them with a chance of 2.5 %. One of many decides no more
    than none of as many does."""
    once_seen = np.random.default_rng(0).binomial(images, 1 / images, 2000) * 100 / images
    few = Estimate(100 / images, once_seen, images, clusters=images)
    assert claims.claim_interval(few, images, 0.95) == bootstrap.interval(few, 0.95)
    never = Estimate(0.0, np.zeros(200), images, clusters=5)
    reach = claims.claim_interval(never, images, 0.95)[1]
    assert (1 - reach / 100) ** images == pytest.approx(0.025)
    assert claims.verdict(never, images, Claim("", Cells(), "equal", margin=margin), 0.95) is decided
    assert claims.verdict(never, images, Claim("", Cells(), "above", margin=margin), 0.95) is (
        False if decided else None
    )


def test_p_is_adjusted_within_the_last_steps_of_a_role(rows: list[dict]) -> None:
    every = claims.table(claims.pool_seeds(rows, last=False), 0.95)
    ends = claims.table(claims.pool_seeds(rows), 0.95)
    last = every[every["step"] == 100]
    assert every.loc[every["step"] < 100, "p_holm"].isna().all() and len(last) == len(ends)
    for role, part in ends.groupby("role"):
        expected = bootstrap.holm(part["p"])
        np.testing.assert_allclose(part["p_holm"], expected, rtol=1e-5)
        np.testing.assert_allclose(last[last["role"] == role]["p_holm"].sort_values(), np.sort(expected), rtol=1e-5)


def test_no_interval_decides_nothing() -> None:
    assert claims.verdict(Estimate(3.0, np.array([]), 4), 4, Claim("", Cells(), "above"), 0.95) is None


def test_judged_compares_the_cells_it_names(rows: list[dict]) -> None:
    ends = claims.pool_seeds(rows)
    task = "identities-4"
    claim = Claim("A", Cells(task=task, eraser="mace"), "above", against=Cells(task=task, eraser="uce"))
    found = claims.evaluate_claims(ends, [claim], 0.95).iloc[0]
    gain = {r["eraser"]: r["gain"] for r in ends if r["task"] == task and r["role"] == "erase"}
    assert found["value"] == pytest.approx(gain["mace"].value - gain["uce"].value, abs=1e-4)
    low, high = np.quantile(gain["mace"].replicates - gain["uce"].replicates, [0.0, 1.0])
    assert low <= found["low"] < found["high"] <= high
    assert "minus that of identities-4, uce" in found["compared"]
    with pytest.raises(LookupError, match="no row"):
        claims.evaluate_claims(ends, [Claim("B", Cells(task="nothing"), "above")], 0.95)


def test_bars_of_one_fine_tune_by_two_names_stand_in_one_panel(rows: list[dict]) -> None:
    ends = claims.table(claims.pool_seeds(rows), 0.95)
    ends = ends[ends["role"] == "erase"]
    named = ends.assign(finetune=np.where(ends["eraser"] == "uce", "lora.end", "lora"))
    for table in (named, ends):
        shown = [axis for axis in bars(table, "eraser", "Bars").axes if axis.has_data()]
        assert len(shown) == ends["task"].nunique()
        assert all(len(axis.get_xticks()) == 2 for axis in shown)
    both = pd.concat([ends, ends.assign(finetune="full")])  # two fine-tunes of the same model: a panel each
    assert len([a for a in bars(both, "eraser", "Bars").axes if a.has_data()]) == 2 * ends["task"].nunique()


def test_figures_are_drawn_and_equal_tables_give_equal_bytes(rows: list[dict], tmp_path) -> None:
    ends, steps = (claims.table(claims.pool_seeds(rows, last), 0.95) for last in (True, False))
    drawn = {
        "bars": lambda: bars(ends, "eraser", "A title that is too long for one line of the figure " * 2),
        "line": lambda: line(ends.assign(x=[10.0**-i for i in range(len(ends))]), "lambda", "Line"),
        "curves": lambda: curves(steps, "Curves"),
        "heatmap": lambda: heatmap(
            pd.DataFrame({"task": "t", "eraser": "e", "finetune": "f", "concept": ["a", "b"] * 2,
                          "column": ["base"] * 2 + ["5"] * 2, "value": [100.0, 90.0, 0.0, 60.0]}), "Heat",
        ),
        "similarities": lambda: similarities(
            pd.DataFrame({"task": "t", "concept": list("abc"), "similarity": [0.1, 0.5, 0.9], "tercile": [1, 2, 3],
                          "drawn": [True, False, True]}), "Terciles",
        ),
    }  # fmt: skip
    cells = pd.DataFrame(np.random.default_rng(0).random((12, 3)), columns=["resurgence", "a", "b"])
    cells["task"], cells["eraser"] = ["t1", "t2"] * 6, [f"e{i}" for i in range(12)]
    names = ("erased_erased_distance", "erased_finetuned_distance", "erased_cosine", "erased_undone")
    for name in names:
        cells[name] = cells["a"]
    found = correlations(cells, "resurgence", names, 100, 0.95, 0)
    drawn["weights"] = lambda: weights(cells, found, "Weights")
    for name, make in drawn.items():
        save(make(), tmp_path / name)
        first = (tmp_path / f"{name}.svg").read_bytes()
        save(make(), tmp_path / name)
        assert (tmp_path / f"{name}.svg").read_bytes() == first and len(first) > 5000
