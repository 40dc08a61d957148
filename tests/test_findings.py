"""Findings: seeds together, half recovery, verdicts; against loops on the rows and cases with known answers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from resurgence.analysis import cells, claims, tables
from resurgence.analysis.estimates import estimates
from resurgence.analysis.half_recovery import half_recovery, half_recovery_table
from resurgence.analysis.intervals import holm, interval
from resurgence.analysis.random_effects import Estimate, Part, difference, over_runs
from resurgence.analysis.weight_movement import correlations
from resurgence.config.experiment import Cells, Claim
from resurgence.figures.experiments import bars, curves, heatmap, line, similarities, weights
from resurgence.figures.style import save
from scored import study_sets


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    every, _ = estimates(study_sets(), only=["recogniser_accuracy"])
    return tables.paired_rows(every)


def test_only_one_metric_is_estimated_and_it_is_that_of_the_tables(rows: list[dict]) -> None:
    assert {row["metric"] for row in rows} == {"recogniser_accuracy"}
    whole, _ = estimates(study_sets())
    whole = [row for row in tables.paired_rows(whole) if row["metric"] == "recogniser_accuracy"]
    assert len(whole) == len(rows)
    for one, other in zip(rows, whole, strict=True):
        assert interval(one["estimates"]["gain"], 0.95) == interval(other["estimates"]["gain"], 0.95)
        assert one["estimates"]["gain"].value == other["estimates"]["gain"].value


def test_pooled_is_the_mean_over_seeds_at_the_last_step() -> None:
    sets = study_sets(erase_seeds=(0, 1), erasers=("mace",))
    paired = tables.paired_rows(estimates(sets, only=["recogniser_accuracy"])[0])
    pooled = cells.pool_seeds(paired)
    assert {row["runs"] for row in pooled} == {2} and {row["step"] for row in pooled} == {100}
    for row in pooled:
        runs = [r["estimates"] for r in paired if all(r[key] == row[key] for key in ("task", "role", "step"))]
        gains = [run["gain"] for run in runs]
        assert row["gain"].value == pytest.approx(np.mean([gain.value for gain in gains]))
        assert interval(row["gain"], 0.95) == interval(over_runs(gains), 0.95) and row["gain"].runs == 2
        assert row["gains"] == [gain.value for gain in gains] and row["base"].parts[0].runs == 1
    table = cells.table(pooled, 0.95)
    deviations = [abs(a - b) / 2 for a, b in (row["gains"] for row in pooled)]
    np.testing.assert_allclose(table["deviation"], deviations, rtol=1e-5)
    assert (table["p_holm"] >= table["p"]).all() and set(table["n"]) == {row["gain"].n for row in pooled}
    assert cells.display_table(table)["n"].str.endswith(" x 2").all()
    single = [row for row in paired if row["erase_seed"] == 0]
    alone = cells.display_table(cells.table(cells.pool_seeds(single), 0.95))
    assert alone["n"].str.endswith(", this run").all() and set(alone["median ± deviation"]) == {"-"}
    assert cells.display_table(table)["median ± deviation"].str.contains(" ± ").all()


def test_half_recovery() -> None:
    erased, base = np.array(0.0), np.array(100.0)
    at = lambda values: float(half_recovery([50, 150, 300], np.array(values, dtype=float), erased, base))  # noqa: E731
    assert at([50, 60, 70]) == 50
    assert at([0, 100, 100]) == 100  # halfway between 50 and 150
    assert at([10, 30, 60]) == 150 + 150 * 20 / 30
    assert at([100, 0, 0]) == 25  # the first crossing counts
    assert math.isinf(at([10, 20, 49.9]))
    erased, base = np.array(20.0), np.array(100.0)  # half of what was erased, not half of the base's value
    assert at([50, 60, 70]) == 150 and at([20, 40, 70]) == 150 + 150 * 20 / 30
    nothing = half_recovery([50], np.array([[80.0]]), np.array([50.0]), np.array([50.0]))
    assert math.isinf(nothing[0])  # nothing was erased
    many = half_recovery([10, 20], np.array([[60.0, 0.0], [80.0, 100.0]]), np.zeros(2), np.full(2, 100.0))
    np.testing.assert_allclose(many, [50 / 6, 15])


def test_interval_of_half_recovery_ends_where_the_limits_of_the_distance_to_it_cross(rows: list[dict]) -> None:
    """At the first end the upper limit of tuned - (erased + base) / 2 is 0, at the second the lower one."""
    ends = half_recovery_table(cells.pool_seeds(rows, last=False), 0.95)
    assert (ends["steps_low"] <= ends["steps"]).all() and (ends["steps"] <= ends["steps_high"]).all()
    row = ends[(ends["task"] == "identities-4") & (ends["eraser"] == "mace")].squeeze()
    chosen = [r for r in rows if (r["task"], r["eraser"], r["role"]) == ("identities-4", "mace", "erase")]
    points = {0: chosen[0]["estimates"]["erased"]} | {r["step"]: r["estimates"]["finetuned"] for r in chosen}
    points = dict(sorted(points.items()))
    base, half = chosen[0]["estimates"]["base"], []
    for estimate in points.values():
        middle = Estimate(
            (base.value + points[0].value) / 2, (*base.parts, *points[0].parts), lambda v: float(v.mean()), base.n
        )
        half.append(interval(difference(estimate, middle), 0.95))
    for end, limits in ((row["steps_high"], [low for low, _ in half]), (row["steps_low"], [high for _, high in half])):
        if math.isfinite(end):
            assert np.interp(end, list(points), limits) == pytest.approx(0, abs=1e-6)
        else:
            assert max(limits) < 0
    assert 0 < row["steps_low"] < 100


def spread(value: float, width: float) -> Estimate:
    """An estimate whose 95 % interval is value -+ width, about."""
    table = np.random.default_rng(0).standard_normal((1000, 1))
    table = value + (table - table.mean()) / table.std() * np.sqrt(1000) * width / 1.96
    return Estimate(value, (Part(value, value, table, 1000, 1.0),), lambda v: float(v[0]), 1000)


def test_the_table_has_the_step_at_which_half_of_what_was_erased_is_back() -> None:
    """Erased to 20 of 100: half is back at 60, in step 100; half of the base's value, 50, would be step 75."""
    cell = {"task": "ship", "eraser": "mace", "finetune": "lora", "role": "erase"}
    ends = {"erased": spread(20, 1), "base": spread(100, 1)}
    values = {50: 40, 100: 60, 200: 80}
    rows = [{**cell, **ends, "step": step, "finetuned": spread(value, 1)} for step, value in values.items()]
    row = half_recovery_table(rows, 0.95).squeeze()
    assert row["steps"] == pytest.approx(100) and 90 < row["steps_low"] < 101 and 99 < row["steps_high"] < 120


def test_without_an_interval_there_are_no_limits_of_half_recovery() -> None:
    """Nothing repeats, so nothing is known of the step, not that it is 0."""
    one = lambda value: Estimate(value, (Part(value, "u", np.array([[value]]), 1, 1.0),), lambda v: float(v[0]), 1)  # noqa: E731
    row = {"task": "ship", "eraser": "mace", "finetune": "lora", "role": "erase", "erased": one(0.0), "base": one(9.0)}
    table = half_recovery_table([{**row, "step": 50, "finetuned": one(9.0)}], 0.95).squeeze()
    assert table["steps"] == 25 and math.isnan(table["steps_low"]) and math.isnan(table["steps_high"])
    assert table["text"] == "25 [-, -]"


def test_where_nothing_was_erased_no_half_can_return() -> None:
    same = {"erased": spread(40, 1), "base": spread(40, 1), "finetuned": spread(40, 1)}
    row = {"task": "ship", "eraser": "mace", "finetune": "lora", "role": "erase", "step": 50, **same}
    table = half_recovery_table([row], 0.95).squeeze()
    assert math.isinf(table["steps"]) and table["text"] == "-"


def test_no_change_at_all_does_not_contradict_a_change_of_any_size() -> None:
    """An interval that ends at than + margin is not below it."""
    none = Estimate(0.0, (Part("a", "u", np.zeros((5, 1)), 5, 1.0),), lambda v: float(v[0]), 5)
    assert interval(none, 0.95) == (0, 0)
    assert claims.verdict(none, Claim("", Cells(), "above", margin=0.0), 0.95) is None


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
    assert claims.verdict(spread(value, width), claim, 0.95) is decided


def share(number: int, images: int, name: str = "a") -> Estimate:
    """The share of `images` in percent, of which a number is 1."""
    values = 100.0 * (np.arange(images) < number)
    part = Part((name, number), "u", values[:, None], images, 0.5, 100.0)
    return Estimate(part.value, (part,), lambda v: float(v[0]), images)


@pytest.mark.parametrize(("images", "margin", "decided"), [(40, 5, None), (40, 10, True), (100, 5, True)])
def test_none_of_few_images_does_not_mean_never(images: int, margin: float, decided: bool | None) -> None:
    """0 of 40 images: up to 8.8 % of all would show in none of them with a chance of 2.5 %."""
    never = share(0, images)
    assert claims.verdict(never, Claim("", Cells(), "equal", margin=margin), 0.95) is decided
    above = claims.verdict(never, Claim("", Cells(), "above", margin=margin), 0.95)
    assert above is (False if decided else None)


def test_claims_of_a_page_are_judged_together() -> None:
    """Four claims of which the second is decided alone (p = 0.02) and not among four (Holm: 0.06)."""
    table = pd.DataFrame({"p": [0.001, 0.02, 0.3, 0.6], "verdict": ["same", "different", "cannot tell", "cannot tell"]})
    judged = claims.judge(table, 0.95)
    np.testing.assert_allclose(judged["p_holm"], [0.004, 0.06, 0.6, 0.6])
    assert judged["verdict"].tolist() == ["same", *["cannot tell"] * 3]


def test_p_is_adjusted_within_the_last_steps_of_a_role(rows: list[dict]) -> None:
    every = cells.table(cells.pool_seeds(rows, last=False), 0.95)
    ends = cells.table(cells.pool_seeds(rows), 0.95)
    last = every[every["step"] == 100]
    assert every.loc[every["step"] < 100, "p_holm"].isna().all() and len(last) == len(ends)
    for role, part in ends.groupby("role"):
        expected = holm(part["p"])
        np.testing.assert_allclose(part["p_holm"], expected, rtol=1e-5)
        np.testing.assert_allclose(last[last["role"] == role]["p_holm"].sort_values(), np.sort(expected), rtol=1e-5)


def test_no_interval_decides_nothing() -> None:
    one = Estimate(3.0, (Part("a", "u", np.array([[3.0]]), 1, 1.0),), lambda v: float(v[0]), 1)
    assert claims.verdict(one, Claim("", Cells(), "above"), 0.95) is None


def test_judged_compares_the_cells_it_names(rows: list[dict]) -> None:
    ends = cells.pool_seeds(rows)
    task = "identities-4"
    claim = Claim("A", Cells(task=task, eraser="mace"), "above", against=Cells(task=task, eraser="uce"))
    found = claims.evaluate_claims(ends, [claim], 0.95).iloc[0]
    gain = {r["eraser"]: r["gain"] for r in ends if r["task"] == task and r["role"] == "erase"}
    assert found["value"] == pytest.approx(gain["mace"].value - gain["uce"].value, abs=1e-4)
    expected = interval(difference(gain["mace"], gain["uce"]), 0.95)
    np.testing.assert_allclose(found[["low", "high"]].astype(float), expected, rtol=1e-5)
    assert found["n"] == gain["mace"].n == 32 and found["runs"] == 1
    at_p = [claims.verdict(difference(gain["mace"], gain["uce"]), claim, 1 - found["p"] * k) for k in (0.98, 1.02)]
    assert at_p[0] is None and at_p[1] is not None
    assert "minus that of identities-4, uce" in found["compared"]
    with pytest.raises(LookupError, match="no row"):
        claims.evaluate_claims(ends, [Claim("B", Cells(task="nothing"), "above")], 0.95)


def test_what_is_compared_is_said_with_all_that_is_not_usual() -> None:
    of, against = Cells(task="ship", eraser="mace", role="retain"), Cells(finetune="full")
    claim = Claim("", of, "equal", against, metric="clip_score", value="finetuned", than=2.5, margin=3.0)
    expected = "clip_score, finetuned of ship, mace (retain) minus that of full; expected equal 2.5 within 3"
    assert claims.comparison_text(claim) == expected
    assert claims.comparison_text(Claim("", Cells(), "above")) == "resurgence of all cells; expected above 0"


def test_bars_of_one_fine_tune_by_two_names_stand_in_one_panel(rows: list[dict]) -> None:
    ends = cells.table(cells.pool_seeds(rows), 0.95)
    ends = ends[ends["role"] == "erase"]
    named = ends.assign(finetune=np.where(ends["eraser"] == "uce", "lora.end", "lora"))
    for table in (named, ends):
        shown = [axis for axis in bars(table, "eraser", "Bars").axes if axis.has_data()]
        assert len(shown) == ends["task"].nunique()
        assert all(len(axis.get_xticks()) == 2 for axis in shown)
    both = pd.concat([ends, ends.assign(finetune="full")])  # two fine-tunes of the same model: a panel each
    assert len([a for a in bars(both, "eraser", "Bars").axes if a.has_data()]) == 2 * ends["task"].nunique()


def test_figures_are_drawn_and_equal_tables_give_equal_bytes(rows: list[dict], tmp_path) -> None:
    ends, steps = (cells.table(cells.pool_seeds(rows, last), 0.95) for last in (True, False))
    drawn = {
        "bars": lambda: bars(ends, "eraser", "A title that is too long for one line of the figure " * 2),
        "line": lambda: line(ends.assign(x=[10.0**-i for i in range(len(ends))]), "lambda", "Line"),
        "curves": lambda: curves(steps, "Curves"),
        "heatmap": lambda: heatmap(
            pd.DataFrame({"task": "t", "eraser": "e", "finetune": "f", "concept": ["a", "b"] * 2,
                          "column": ["base"] * 2 + ["5"] * 2, "value": [100.0, 90.0, 0.0, 60.0]}),
            "recogniser_accuracy", "Heat",
        ),
        "similarities": lambda: similarities(
            pd.DataFrame({"task": "t", "concept": list("abc"), "similarity": [0.1, 0.5, 0.9], "tercile": [1, 2, 3],
                          "drawn": [True, False, True]}), "Terciles",
        ),
    }  # fmt: skip
    models = pd.DataFrame(np.random.default_rng(0).random((12, 3)), columns=["resurgence", "a", "b"])
    models["task"], models["eraser"] = ["t1", "t2"] * 6, [f"e{i}" for i in range(12)]
    names = ("erased_erased_distance", "erased_finetuned_distance", "erased_cosine", "erased_undone")
    for name in names:
        models[name] = models["a"]
    found = correlations(models, "resurgence", names, 100, 0.95, 0)
    drawn["weights"] = lambda: weights(models, found, "Weights")
    for name, make in drawn.items():
        save(make(), tmp_path / name)
        first = (tmp_path / f"{name}.svg").read_bytes()
        save(make(), tmp_path / name)
        assert (tmp_path / f"{name}.svg").read_bytes() == first and len(first) > 5000


def pooled(task: str, finetuned: Estimate) -> dict:
    """A row of pool_seeds of which only the value of the fine-tuned model counts."""
    cell = {"task": task, "eraser": "mace", "finetune": "lora", "role": "erase", "metric": "share"}
    return {**cell, **dict.fromkeys(cells.STATES, finetuned)}


@pytest.mark.parametrize(
    ("numbers", "margin", "shows_concept", "verdict"),
    [
        ((0, 0), 5, True, "floor"),  # upper ends 3.6 %
        ((0, 0), 2, True, "cannot tell"),  # 3.6 % is more than the margin
        ((0, 0), 5, False, "same"),  # a distance of 0 is no floor
        ((0, 60), 5, True, "different"),  # one side shows the concept
        ((60, 60), 40, True, "same"),
    ],
)
def test_a_comparison_of_two_sides_that_show_nothing_is_at_the_floor(
    numbers: tuple[int, int], margin: float, shows_concept: bool, verdict: str
) -> None:
    rows = [pooled(task, share(number, 100, task)) for task, number in zip(("a", "b"), numbers, strict=True)]
    claim = Claim("", Cells(task="a"), "equal", Cells(task="b"), value="finetuned", margin=margin)
    visible = ["share"] if shows_concept else []
    table = claims.evaluate_claims(rows, [claim], 0.95, ["lamb (1 against 2)"], visible)
    assert table["verdict"].tolist() == [verdict] and table["differences"].tolist() == ["lamb (1 against 2)"]
    judged = claims.judge(pd.concat([table.assign(p=1.0)] * 2), 0.95)
    assert set(judged["verdict"]) == {"floor" if verdict == "floor" else "cannot tell"}
    assert "| lamb (1 against 2) |" in claims.claims_table(judged)
    alone = claims.evaluate_claims(rows[:1], [Claim("", Cells(task="a"), "equal")], 0.95, [""], visible)
    assert alone["verdict"].tolist() != ["floor"]  # a value by itself is compared with a number


def test_fine_tuning_that_changes_nothing_of_what_is_seen_is_no_floor() -> None:
    """90 of 100 images before and after two fine-tunes show the concept; none of 100 does, before and after two."""
    claim = Claim("", Cells(finetune="a"), "equal", Cells(finetune="b"), margin=20.0)
    found = []
    for number in (90, 0):
        rows = []
        for finetune in ("a", "b"):
            before, after = (share(number, 100, f"{state} {finetune}") for state in ("erased", "finetuned"))
            states = {"base": before, "erased": before, "finetuned": after, "gain": difference(after, before)}
            rows.append(pooled("t", after) | states | {"finetune": finetune})
        found += claims.evaluate_claims(rows, [claim], 0.95, [""], ["share"])["verdict"].tolist()
    assert found == ["same", "floor"]


def test_a_claim_about_a_distance_with_a_floor_is_open_whatever_its_interval() -> None:
    """A rise of 10 +- 2 of a Fréchet distance may be that of two draws of one model; one of a share is a rise."""
    rows = [pooled("a", spread(10, 2))]
    table = claims.evaluate_claims(rows, [Claim("It rises.", Cells(), "above", value="finetuned")] * 2, 0.95)
    assert table["verdict"].tolist() == ["same", "same"] and (table["p"] < 0.01).all()
    found = claims.without_floors(table, [True, False])
    assert found["verdict"].tolist() == ["cannot tell", "same"] and found["p"].tolist() == [1.0, table["p"][1]]
    assert found["compared"][0].endswith("expected above 0; " + claims.UNDECIDED)
    assert found["compared"][1] == table["compared"][1] and found["value"].equals(table["value"])
    pd.testing.assert_frame_equal(claims.without_floors(found, [True, False]), found)
    assert len(claims.without_floors(table[:0], [])) == 0


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({"metric": "frechet"}, [True, False]),
        ({"metric": "kid"}, [False, False]),
        ({"metrics": ["recogniser_accuracy", "frechet"], "metric": "clip_score"}, [False, False]),
        ({"metrics": ["frechet_reference", "kid"], "metric": "clip_score"}, [True, False]),
    ],
)
def test_the_distances_with_a_floor_are_the_frechet_distances(shown: dict, expected: list[bool]) -> None:
    assert (
        claims.have_floor({**shown, "claims": [{"says": "of the first"}, {"says": "of kid", "metric": "kid"}]})
        == expected
    )


def test_claims_of_a_study_are_not_called_the_papers() -> None:
    table = claims.evaluate_claims(
        [pooled("a", spread(10, 2))], [Claim("A", Cells(), "above", value="finetuned")], 0.95
    )
    assert claims.claims_table(table).startswith("| the paper |")
    assert claims.claims_table(table, "study").startswith("| claim |")


def test_an_erased_model_of_several_fine_tunes_counts_with_all_its_seeds() -> None:
    """Three seeds under one fine-tune, the first of them alone under another, whichever is listed last."""
    values = [[0.0, 2.0, 4.0], [10.0, 12.0, 17.0]]
    table = np.array(values)
    three, one = (Part(name, "u", t, t.size, 1.0, None, t.shape[1]) for name, t in (("a", table), ("b", table[:, :1])))
    rows = [
        pooled("t", Estimate(part.value, (part,), lambda v: float(v[0]), 2)) | {"finetune": name}
        for name, part in (("lora", three), ("full", one))
    ]
    for order in (rows, rows[::-1]):
        found = claims.quantity(order, Cells(task="t"), "erased")
        assert found.value == pytest.approx(np.mean(values)) and found.runs == 3
    assert claims.quantity(rows, Cells(finetune="full"), "finetuned").value == 5.0


@pytest.mark.parametrize(
    ("metric", "values", "limits", "label"),
    [
        ("recogniser_accuracy", [40.0, 60.0], (0, 100), "recognised (%)"),
        ("esr_1", [40.0, 60.0], (0, 100), "ESR-1: erased class not in the top 1 (%)"),
        ("clip_score", [18.0, 31.0], (18, 31), "CLIP score (100 cos)"),
        ("recogniser_accuracy", [np.nan, 60.0], (0, 100), "recognised (%)"),
    ],
)
def test_a_heat_map_has_the_scale_and_the_name_of_its_metric(
    metric: str, values: list[float], limits: tuple[float, float], label: str
) -> None:
    rows = pd.DataFrame({"task": "t", "eraser": "e", "finetune": "f", "concept": "a", "column": ["base", "5"]})
    figure = heatmap(rows.assign(value=values), metric, "Heat")
    panel, scale = figure.axes
    assert panel.images[0].get_clim() == limits and scale.get_ylabel() == label
    shown = "-" if np.isnan(values[0]) else f"{values[0]:.0f}"
    assert panel.texts[0].get_text() == shown


def test_a_loss_is_no_floor() -> None:
    """One fine-tune takes half of the retained concepts away, the other nothing: both end below the margin."""
    lost, kept = (difference(share(after, 100, name), share(60, 100, f"{name} before"))
                  for name, after in (("a", 10), ("b", 60)))  # fmt: skip
    assert not claims.at_floor([lost, kept], 5, 0.95) and interval(lost, 0.95)[1] < -5
    assert claims.at_floor([share(0, 100), share(1, 100)], 6, 0.95)
    assert not claims.at_floor([share(0, 100), share(4, 100)], 6, 0.95)
