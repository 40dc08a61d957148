"""Tables: every number against plain pandas on the rows, columns, order, pairing errors, files."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from resurgence.analysis import headline, tables
from resurgence.analysis.estimates import estimates
from resurgence.analysis.score_sets import ImageSet, image_set, pairs, read_states
from resurgence.figures.numbers import Numbers
from resurgence.figures.page import metric_table
from resurgence.scorers import frechet, write_scores
from resurgence.scorers.kernel_distance import paired_distance
from scored import PEOPLE, features, prompt_rows, score, study_sets, write_scores_folder

CELL = {"eraser": "mace", "variant": "default", "erase_seed": 0}
TUNED = {**CELL, "finetune": "lora", "finetune_variant": "default", "finetune_seed": 0, "step": 100}
COLUMNS = (
    "base, task, eraser, variant, erase_seed, finetune, finetune_variant, finetune_seed, step, role, metric, n, "
    "base_value, erased_value, finetuned_value, resurgence, resurgence_low, resurgence_high, recovered_fraction"
)


@pytest.fixture(scope="module")
def sets() -> list[ImageSet]:
    return study_sets()


@pytest.fixture(scope="module")
def estimated(sets: list[ImageSet]) -> pd.DataFrame:
    return estimates(sets)[0]


@pytest.fixture(scope="module")
def table(estimated: pd.DataFrame) -> pd.DataFrame:
    return tables.resurgence(estimated, 0.95)


def rows_of(sets: list[ImageSet], task: str, **key: object) -> pd.DataFrame:
    """The per-image rows of one image set."""
    (one,) = (s for s in sets if s.key["task"] == task and all(s.key[k] == v for k, v in key.items()))
    return one.rows


def pick(table: pd.DataFrame, **key: object) -> pd.Series:
    """The one row with these values."""
    for name, value in key.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_columns_are_those_of_the_study(table: pd.DataFrame, estimated: pd.DataFrame) -> None:
    assert ", ".join(table.columns) == COLUMNS
    cells = tables.cells(estimated, 0.95)
    head = COLUMNS.split(", step")[0]
    assert ", ".join(cells.columns) == head + ", state, step, role, metric, n, value, low, high"


@pytest.mark.parametrize(
    ("metric", "column", "scale"),
    [
        ("recogniser_accuracy", "recogniser_correct", 100),
        ("clip_accuracy", "clip_correct", 100),
        ("clip_probability", "clip_probability", 100),
        ("clip_score", "clip_score", 1),
    ],
)
@pytest.mark.parametrize(("task", "role"), [("identities-4", "erase"), ("identities-4", "retain"), ("ship", "synonym")])
def test_values_are_means_of_the_rows(
    sets: list[ImageSet], table: pd.DataFrame, task: str, role: str, metric: str, column: str, scale: float
) -> None:
    row = pick(table, task=task, eraser="uce", step=100, role=role, metric=metric)
    rows = {
        "base": rows_of(sets, task, state="base"),
        "erased": rows_of(sets, task, state="erased", eraser="uce"),
        "finetuned": rows_of(sets, task, state="finetuned", eraser="uce", step=100),
    }
    means = {state: scale * part.loc[part["role"] == role, column].mean() for state, part in rows.items()}
    for state, mean in means.items():
        assert row[f"{state}_value"] == pytest.approx(mean, rel=1e-5)
    joined = rows["finetuned"].merge(rows["erased"], on=["prompt", "seed"], suffixes=("_after", "_before"))
    joined = joined[joined["role_after"] == role]
    gain = scale * (joined[f"{column}_after"] - joined[f"{column}_before"]).mean()
    assert row["resurgence"] == pytest.approx(gain, rel=1e-5, abs=1e-9) and row["n"] == len(joined)
    lost = means["base"] - means["erased"]
    assert row["recovered_fraction"] == pytest.approx((means["finetuned"] - means["erased"]) / lost, rel=1e-4)
    assert row["resurgence_low"] <= row["resurgence"] <= row["resurgence_high"]


def test_interval_is_students_of_the_paired_differences_of_concepts(sets: list[ImageSet], table: pd.DataFrame) -> None:
    task = "identities-4"
    before, after = (rows_of(sets, task, eraser="mace", **k) for k in ({"state": "erased"}, {"step": 50}))
    joined = after.merge(before, on=["prompt", "seed", "role", "concept"])
    joined = joined[joined["role"] == "erase"]
    means = [(p["clip_score_x"] - p["clip_score_y"]).mean() for _, p in joined.groupby("concept", sort=True)]
    row = pick(table, task=task, eraser="mace", step=50, role="erase", metric="clip_score")
    assert len(means) == 4
    expected = scipy.stats.t.interval(0.95, 3, np.mean(means), scipy.stats.sem(means))
    np.testing.assert_allclose([row["resurgence_low"], row["resurgence_high"]], expected, rtol=1e-5)


def test_frechet_is_the_distance_to_the_base_of_the_same_role(sets: list[ImageSet], table: pd.DataFrame) -> None:
    base, erased = (
        next(
            s for s in sets if s.key["task"] == "ship" and s.key["state"] == state and s.key["eraser"] in (None, "mace")
        )
        for state in ("base", "erased")
    )
    mask = (base.rows["role"] == "retain").to_numpy()
    row = pick(table, task="ship", eraser="mace", step=50, role="retain", metric="frechet")
    assert row["erased_value"] == pytest.approx(frechet.distance(base.features[mask], erased.features[mask]), rel=1e-5)
    assert row["base_value"] == 0 and row["n"] == mask.sum()
    assert row["resurgence_low"] < row["resurgence"] < row["resurgence_high"]


def test_harmonic_means_follow_the_task(sets: list[ImageSet], table: pd.DataFrame) -> None:
    row = pick(table, task="identities-4", eraser="mace", step=100, metric="H_c")
    rows = rows_of(sets, "identities-4", state="finetuned", eraser="mace", step=100)
    acc = rows.groupby("role")["recogniser_correct"].mean()
    assert row["finetuned_value"] == pytest.approx(100 * 2 / (1 / (1 - acc["erase"]) + 1 / acc["retain"]), rel=1e-5)
    assert row["role"] == "all" and row["n"] == len(rows)
    row = pick(table, task="ship", eraser="mace", step=100, metric="H_o")
    acc = rows_of(sets, "ship", state="finetuned", eraser="mace", step=100).groupby("role")["clip_correct"].mean()
    expected = 300 / (1 / (1 - acc["erase"]) + 1 / acc["retain"] + 1 / (1 - acc["synonym"]))
    assert row["finetuned_value"] == pytest.approx(expected, rel=1e-5)
    assert not ((table["task"] == "ship") & (table["metric"] == "H_c")).any()


def test_synonyms_of_retained_concepts_are_a_role_of_their_own() -> None:
    prompts = prompt_rows({"erase": ["ship"], "retain": ["cat"], "synonym": ["ship", "cat"]}, seeds=1)
    prompts["seed"] = range(len(prompts))
    one = image_set({"base": "m", "task": "t", "state": "base"}, score(prompts, dict.fromkeys(prompts["role"], 0.5), 0))
    roles = one.rows.groupby("concept")["role"].unique().map(set).to_dict()
    assert roles == {"ship": {"erase", "synonym"}, "cat": {"retain", "synonym-retain"}}


def test_the_random_units_are_recorded(sets: list[ImageSet]) -> None:
    units = estimates(sets)[1]
    used = {(row.task, row.role): (row.unit, row.units, row.images) for row in units.itertuples()}
    assert used["identities-4", "erase"] == ("concept", 4, 32)
    assert used["ship", "erase"] == ("pair", 8, 8)
    assert used["ship", "retain"] == ("concept", 3, 24)


def test_nothing_depends_on_the_order_of_sets_and_rows(sets: list[ImageSet], table: pd.DataFrame) -> None:
    shuffled = []
    for one in reversed(sets):
        order = np.random.default_rng(len(shuffled)).permutation(len(one.rows))
        shuffled.append(image_set(one.key, one.rows.iloc[order], one.features[order]))
    pd.testing.assert_frame_equal(tables.resurgence(estimates(shuffled)[0], 0.95), table)


def test_the_control_without_erasing_recovers_nothing(sets: list[ImageSet]) -> None:
    base = sets[0]
    none = {"base": "miniature", "task": "identities-4", **TUNED, "eraser": "none"}
    erased = image_set({**none, "state": "erased"}, base.rows, base.features)
    tuned = image_set({**none, "state": "finetuned"}, base.rows, base.features)
    made = tables.resurgence(estimates([base, erased, tuned])[0], 0.95)
    assert (made["resurgence"] == 0).all() and made["recovered_fraction"].isna().all()
    rows = made[(made["metric"] == "recogniser_accuracy") & (made["role"] == "erase")]
    reach = 100 * (1 - 0.025 ** (1 / 32))  # none of 32 images changed
    low, high = rows[["resurgence_low", "resurgence_high"]].squeeze()
    assert -2 * reach < low == -high < -reach


def test_over_seeds_is_the_median_and_largest_deviation() -> None:
    sets = study_sets(steps=(100,), erase_seeds=(0, 1, 2), erasers=("mace",))
    table = tables.resurgence(estimates(sets)[0], 0.95)
    estimated = estimates(sets)[0]
    seeds = tables.over_seeds(estimated, 0.95)
    row = pick(seeds, task="ship", role="erase", metric="clip_accuracy")
    values = table[(table["task"] == "ship") & (table["role"] == "erase") & (table["metric"] == "clip_accuracy")]
    assert row["runs"] == 3 and len(values) == 3
    middle = sorted(values["finetuned_value"])[1]
    assert row["finetuned_median"] == middle
    assert row["finetuned_deviation"] == pytest.approx(max(abs(values["finetuned_value"] - middle)))
    assert row["resurgence_mean"] == pytest.approx(values["resurgence"].mean(), rel=1e-5)
    assert row["resurgence_low"] < row["resurgence_mean"] < row["resurgence_high"]
    assert row["scope"] == "seeds" and row["n"] == values["n"].iloc[0]
    text = headline.terminal(table, seeds, 0.95)
    assert ", 3 runs: " in text and "of 3" in text


def test_interval_over_seeds_is_that_of_concepts_and_seeds() -> None:
    """The analysis of variance of the differences of each concept and seed, written out; and the mean of the states."""
    sets = study_sets(steps=(100,), erase_seeds=(0, 1, 2), erasers=("mace",))
    chosen = {"task": "identities-4", "role": "erase", "metric": "clip_score"}
    estimated = estimates(sets)[0]
    row = pick(tables.over_seeds(estimated, 0.95), **chosen)

    def concepts(state: str) -> np.ndarray:
        runs = [s.rows for s in sets if s.key["task"] == "identities-4" and s.key["state"] == state]
        return np.stack([r[r["role"] == "erase"].groupby("concept")["clip_score"].mean() for r in runs], axis=1)

    table = concepts("finetuned") - concepts("erased")
    units, runs = 3 * table.mean(1).var(ddof=1), 4 * table.mean(0).var(ddof=1)
    rest = (table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()).ravel() @ table.ravel() / 6
    terms = [(units, 3, units > rest), (runs, 2, runs > rest)]
    terms.append((rest, 6, 1 - (units > rest) - (runs > rest)))
    total = sum(square * weight for square, _, weight in terms)
    df = total**2 / sum((square * weight) ** 2 / degrees for square, degrees, weight in terms)
    reach = scipy.stats.t.ppf(0.975, df) * math.sqrt(total / 12)
    ends = row[["resurgence_low", "resurgence_high"]].astype(float)
    np.testing.assert_allclose(ends, (table.mean() - reach, table.mean() + reach), rtol=1e-4)
    means = tables.means(estimated, 0.95)
    erased = pick(means, **chosen, state="erased")
    assert erased["value"] == pytest.approx(concepts("erased").mean(), rel=1e-5) and erased["runs"] == 3
    assert pick(means, **chosen, state="base")["scope"] == "this run"


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.1, 30, "yes"), (-9, 9, "no (up to 9.0 %)"), (-9, 9.1, "open"), (-30, -1, "no"), (math.nan, math.nan, "open")],
)
def test_came_back_says_yes_no_or_open(low: float, high: float, word: str) -> None:
    row = {"metric": "clip_accuracy", "resurgence_low": low, "resurgence_high": high, "base_value": 90.0}
    assert headline.verdict(pd.DataFrame([row]), pd.DataFrame()) == word


def make_pair(change: str) -> list[ImageSet]:
    """A base and an erased image set of which the second differs in one way."""
    prompts = score(prompt_rows(PEOPLE), {"erase": 0.5, "retain": 0.5}, 0)
    values = features(prompts, 0.0, 0)
    key = {"base": "miniature", "task": "identities-4"}
    base = image_set({**key, "state": "base"}, prompts, values)
    rows = prompts.copy()
    if change == "lacks":
        rows, values = rows.drop(index=5), np.delete(values, 5, 0)
    elif change == "seed":
        rows.loc[5, "seed"] = 77
    elif change == "more":
        rows = pd.concat([rows, rows.iloc[[5]].assign(seed=77)])
        values = np.concatenate([values, values[:1]])
    elif change == "twice":
        rows = pd.concat([rows, rows.iloc[[5]]])
        values = np.concatenate([values, values[:1]])
    return [base, image_set({**key, **CELL, "state": "erased"}, rows, None if change == "features" else values)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "lacks",
            r"erased base=miniature task=identities-4 eraser=mace .* lacks \('a sketch of the princess', seed 5001",
        ),
        (
            "seed",
            r"lacks \('a sketch of the princess', seed 5001\) of base base=miniature .*; sample and score it again",
        ),
        ("more", r"base base=miniature task=identities-4 lacks \('a sketch of the princess', seed 77\)"),
        ("twice", r"scores twice: \('a sketch of the princess', seed 5001\)"),
        ("features", r"erased .* has no features and others have"),
    ],
)
def test_unpaired_images_are_named(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimates(make_pair(change))


def test_missing_states_are_named(sets: list[ImageSet]) -> None:
    with pytest.raises(ValueError, match="task 'identities-4' of base 'miniature' has no image set of the base"):
        estimates(sets[1:3])
    with pytest.raises(ValueError, match="image set given twice: erased"):
        estimates([*sets[:2], sets[1]])
    tuned = next(s for s in sets if s.key["state"] == "finetuned")
    with pytest.raises(ValueError, match=r"has .* and no erased image set has; score that one too"):
        tables.resurgence(estimates([sets[0], tuned])[0], 0.95)
    with pytest.raises(ValueError, match="no scores"):
        estimates([])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ({"state": "tuned"}, "state = 'tuned'.*known: base, erased, finetuned"),
        ({"base": "m", "task": "t", "state": "erased", "eraser": "uce", "variant": "default"}, "has no erase_seed"),
        ({"base": "m", "task": "t", **TUNED, "step": None, "state": "finetuned"}, "has no step"),
    ],
)
def test_incomplete_keys_are_named(key: dict, message: str) -> None:
    rows = score(prompt_rows(PEOPLE), {"erase": 0.5, "retain": 0.5}, 0)
    with pytest.raises(ValueError, match=message):
        image_set(key, rows)


def test_general_prompts_have_a_score_and_no_accuracy() -> None:
    prompts = prompt_rows(PEOPLE)
    captions = [(f"caption {k}", "", "general", "", 10**6 + k, 0) for k in range(8)]
    prompts = pd.concat([prompts, pd.DataFrame(captions, columns=prompts.columns)], ignore_index=True)
    rows = score(prompts, {"erase": 0.5, "retain": 0.5, "general": 0.2}, 0)
    rows.loc[rows["role"] == "general", ["recogniser_correct", "clip_correct", "clip_probability"]] = np.nan
    one = image_set({"base": "miniature", "task": "t", "state": "base"}, rows, features(rows, 0, 0))
    cells = tables.cells(estimates([one])[0], 0.95)
    assert set(cells.loc[cells["role"] == "general", "metric"]) == {"clip_score", "frechet", "kid"}


def test_floats_have_six_digits_and_no_minus_zero() -> None:
    rows = [{"base": "m", "state": "base", "metric": "H_c", "role": "all", "value": v, "n": 3} for v in (1 / 3, -0.0)]
    frame = tables.tidy(
        [{**r, "step": k, "low": 123456.789, "high": math.nan} for k, r in enumerate(rows)], tables.CELLS
    )
    assert frame.to_csv(index=False).splitlines()[1:] == [
        "m,,,,,,,,base,0,all,H_c,3,0.333333,123457.0,",
        "m,,,,,,,,base,1,all,H_c,3,0.0,123457.0,",
    ]


@pytest.fixture
def entries(sets: list[ImageSet], tmp_path: Path) -> list[dict]:
    """Scores folders of the synthetic study, with their entries."""
    return [write_scores_folder(tmp_path / "scores" / str(k), one) for k, one in enumerate(sets)]


def test_files_are_complete_and_equal_for_equal_scores(entries: list[dict], tmp_path: Path) -> None:
    entries = json.loads(json.dumps(entries))  # keys as they come from a configuration
    told = tables.write_tables(entries, tmp_path / "a", 0.95)
    tables.write_tables(entries[::-1], tmp_path / "b", 0.95)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(tables.FILES)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    read = pd.read_csv(tmp_path / "a" / "resurgence.csv")
    assert ", ".join(read.columns) == COLUMNS and read["n"].dtype == np.int64
    assert "identities-4" in told and "Recogniser accuracy" in told
    assert max(len(line) for line in told.splitlines()) <= 140


def test_reading_states_names_the_features(entries: list[dict], tmp_path: Path) -> None:
    (one,) = read_states(entries[:1])
    assert one.features.shape == (len(one.rows), 5) and one.key["state"] == "base"
    with pytest.raises(ValueError, match="holds no features of 'clip'"):
        read_states(entries[:1], "clip")
    with pytest.raises(FileNotFoundError, match=r"no scores\.parquet"):
        read_states([{**entries[0], "path": str(tmp_path / "nowhere")}])


def test_without_fine_tuning_there_is_a_cell_table_and_no_resurgence(sets: list[ImageSet]) -> None:
    estimated = estimates([s for s in sets if s.key["state"] != "finetuned"])[0]
    table = tables.resurgence(estimated, 0.95)
    assert table.empty and ", ".join(table.columns) == COLUMNS
    seeds = tables.over_seeds(estimated, 0.95)
    assert seeds.empty and len(tables.cells(estimated, 0.95))
    assert "no resurgence table" in headline.terminal(table, seeds, 0.95)


def test_summary_shows_the_last_step_with_its_interval(table: pd.DataFrame, sets: list[ImageSet]) -> None:
    row = pick(table, task="identities-4", eraser="mace", step=100, role="erase", metric="recogniser_accuracy")
    seeds = tables.over_seeds(estimates(sets)[0], 0.95)
    line = next(t for t in headline.terminal(table, seeds, 0.95).splitlines() if t.startswith("identities-4  mace"))
    shown = [headline.number(row[c]) for c in ("resurgence", "resurgence_low", "resurgence_high")]
    assert "{} [{}, {}] this run".format(*shown) in line and " 100 " in line and " 50 " not in line
    assert ("yes" in line) == (row["resurgence_low"] > 0)
    text = headline.markdown(table, seeds, estimates(sets)[1], 0.95)
    for title in ("Recogniser accuracy", "CLIP accuracy", "Fréchet distance", "H_c", "H_o", "Intervals"):
        assert f"## {title}" in text or title in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("| identities-4")]
    assert widths and "came back" not in text.split("Fréchet distance")[1].split("##")[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (-0.0, "0.0"),
        (84.375, "84.4"),
        (4.7e-15, "0.0"),
        (0.04321, "0.043"),
        (-12.0, "-12.0"),
        (math.nan, "-"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert headline.number(value) == text


def test_kernel_distance_is_that_of_pairs_and_its_interval_the_jackknife_of_concepts(
    sets: list[ImageSet], table: pd.DataFrame
) -> None:
    """Each distance again with one concept left out, from the images themselves."""

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        return 1000 * paired_distance(x, y, np.arange(len(x)))(np.ones(len(x), dtype=bool))

    key = {"task": "ship", "eraser": "mace"}
    base, erased = (
        next(s for s in sets if s.key["task"] == "ship" and s.key["state"] == state and s.key["eraser"] == eraser)
        for state, eraser in (("base", None), ("erased", "mace"))
    )
    rows = base.rows[base.rows["role"] == "retain"]
    x, y = (images.features[rows.index] for images in (base, erased))
    row = pick(table, **key, step=50, role="retain", metric="kid")
    assert row["base_value"] == 0.0 and row["erased_value"] == pytest.approx(distance(x, y), rel=1e-5)
    concepts = sorted(set(rows["concept"]))
    left = [rows["concept"].to_numpy() != concept for concept in concepts]
    without = np.array([distance(x[mask], y[mask]) for mask in left])
    every, _ = estimates(sets)
    every = every[(every["task"] == "ship") & (every["role"] == "retain") & (every["metric"] == "kid")]
    (estimate,) = every[(every["state"] == "erased") & (every["eraser"] == "mace")]["estimate"]
    pseudo = distance(x, y) + (len(concepts) - 1) * (without.mean() - without)
    np.testing.assert_allclose(np.sort(estimate.parts[0].table[:, 0]), np.sort(pseudo), rtol=1e-8)


def test_features_of_several_scorers_are_to_be_chosen(sets: list[ImageSet], tmp_path: Path) -> None:
    two = {"recogniser": sets[0].features, "clip": sets[0].features + 1}
    write_scores(tmp_path, sets[0].rows, {name: torch.from_numpy(values) for name, values in two.items()})
    entry = {k: v for k, v in sets[0].key.items() if v is not None} | {"path": str(tmp_path)}
    with pytest.raises(ValueError, match="features of clip, recogniser; say which to use"):
        read_states([entry])
    np.testing.assert_array_equal(read_states([entry], "clip")[0].features, two["clip"])
    with pytest.raises(ValueError, match="no features of 'inception'"):
        read_states([entry], "inception")


def test_a_message_names_three_pairs_and_counts_the_others() -> None:
    rows = pd.DataFrame({"prompt": list("abcde"), "seed": range(5)})
    assert pairs(rows) == "('a', seed 0), ('b', seed 1), ('c', seed 2) and 2 more"
    assert pairs(rows[:3]) == "('a', seed 0), ('b', seed 1), ('c', seed 2)" and pairs(rows[:1]) == "('a', seed 0)"


def test_the_terminal_says_what_the_dagger_means(table: pd.DataFrame) -> None:
    text = headline.terminal(table, pd.DataFrame(columns=tables.SEEDS), 0.95, {"mace": "lamb: 1"})
    assert "mace †" in text and "† not the published objective: mace has lamb: 1." in text
    assert "†" not in headline.terminal(table, pd.DataFrame(columns=tables.SEEDS), 0.95)


def test_a_set_without_features_has_no_frechet(sets: list[ImageSet]) -> None:
    plain = [dataclasses.replace(one, features=None) for one in sets[:2]]
    assert not {"frechet", "kid"} & set(estimates(plain)[0]["metric"])


def test_names_of_digits_stay_as_they_are(tmp_path: Path) -> None:
    """Variants 01 and 2 of all erasers, a fine-tune 001 and a task 2024: each number of a page is still found."""
    sets = [one for one in study_sets() if one.key["task"] == "ship"]
    names = {"mace": ("uce", "01"), "uce": ("uce", "2")}
    renamed = []
    for one in sets:
        key = {**one.key, "task": "2024"}
        if key["state"] != "base":
            key["eraser"], key["variant"] = names[key["eraser"]]
        if key["state"] == "finetuned":
            key["finetune_variant"] = "001"
        renamed.append(ImageSet(key, one.rows, one.features))
    tables.write_tables([write_scores_folder(tmp_path / f"scores {n}", one) for n, one in enumerate(renamed)],
                        tmp_path / "tables", 0.95)  # fmt: skip
    numbers = Numbers(tmp_path / "tables")
    assert set(numbers.resurgence["variant"]) == {"01", "2"} and set(numbers.seeds["finetune_variant"]) == {"001"}
    (table,) = [metric_table(numbers, numbers.resurgence, "recogniser_accuracy")]
    assert [row["eraser"] for row in table["rows"]] == ["uce.01", "uce.2"]
    for row in table["rows"]:
        assert row["task"] == "2024" and row["finetune"] == "lora.001"
        assert all(row["roles"]["erase"][state] is not None for state in ("base", "erased", "finetuned", "gain"))


def test_the_content_of_a_style_prompt_is_not_what_was_erased() -> None:
    """More houses in the images of an erased style do not say that the style came back."""
    sets = [dataclasses.replace(one, rows=one.rows.assign(recogniser_content_correct=one.rows["recogniser_correct"]))
            for one in study_sets()]  # fmt: skip
    estimated, _ = estimates(sets, only=["recogniser_accuracy", "recogniser_content"])
    table, seeds = tables.resurgence(estimated, 0.95), tables.over_seeds(estimated, 0.95)
    shown = {m: headline.headline(table, seeds, m) for m in ("recogniser_accuracy", "recogniser_content")}
    assert (shown["recogniser_accuracy"]["resurgence"] == shown["recogniser_content"]["resurgence"]).all()
    assert ["came back" in frame for frame in shown.values()] == [True, False]
