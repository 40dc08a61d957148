"""Blank images: found in the scores, shown in every table, and warned of above 1 %."""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from resurgence.analysis import headline, tables
from resurgence.analysis.estimates import estimates
from resurgence.analysis.read import read_table
from resurgence.analysis.score_sets import ImageSet
from resurgence.config.task import Task
from resurgence.files import write_json
from resurgence.scorers import LoadedScorer, ScorerConfig, blank, score_images, write_scores
from resurgence.stages.figures import page
from resurgence.stages.run_summary import summary
from scored import study_sets, write_scores_folder

TASK = Task(name="x", kind="object", erase=("a",), retain=("b",), mapping={"a": "b"}, templates=("{}",),
            seeds={"erase": 1, "retain": 1})  # fmt: skip


def picture(kind: str) -> np.ndarray:
    """(3, 16, 16) uint8; noise values differ by one grey level at most."""
    grid = np.zeros((3, 16, 16))
    if kind == "half":
        grid[:, :8] = 2.0  # a standard deviation of 1
    if kind == "almost half":
        grid[:, :8] = 2.0
        grid[:, 0, 0] = 1.0
    if kind == "noise":
        grid += np.random.default_rng(0).integers(0, 2, grid.shape)
    if kind == "one channel":
        grid[2] += np.arange(16)[:, None]
    if kind == "one dot":
        grid[:, 3, 4] = 255
    solid = {"white": 255.0, "red": np.array([255.0, 0, 0])[:, None, None], "grey": 127.0}
    return (grid + solid.get(kind, 0)).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("black", 1), ("white", 1), ("red", 1), ("grey", 1), ("noise", 1), ("almost half", 1), ("half", 0),
     ("one channel", 0), ("one dot", 0)],
)  # fmt: skip
def test_which_images_are_blank(kind: str, expected: int) -> None:
    images = torch.from_numpy(np.stack([picture(kind), picture("one channel")]))
    assert blank(images).tolist() == [expected, 0]


@settings(max_examples=100, deadline=None)
@given(arrays(np.uint8, (2, 3, 4, 4), elements=st.integers(0, 5)))
def test_the_same_as_the_standard_deviation_in_double_precision(images: np.ndarray) -> None:
    deviations = images.astype(np.float64).std(axis=(2, 3)).max(axis=1)
    clear = abs(deviations - 1) > 1e-6
    assert (blank(torch.from_numpy(images)) == (deviations < 1))[clear].all()


def test_the_column_of_the_scores() -> None:
    rows = pd.DataFrame({"prompt": ["a", "b", "c"], "seed": [0, 1, 2], "concept": "", "role": "erase"})
    images = torch.from_numpy(np.stack([picture(kind) for kind in ("one dot", "red", "half")]))
    scores, _ = score_images(images, rows, TASK, {})
    assert list(scores) == [*rows, "blank"] and scores["blank"].tolist() == [0.0, 1.0, 0.0]
    assert len(blank(images.repeat(50, 1, 1, 1))) == 150


@pytest.mark.parametrize("column", ["blank", "false_alarm", "agreement"])
def test_no_scorer_can_declare_a_column_of_all_scores(column: str) -> None:
    @dataclass(frozen=True)
    class Config(ScorerConfig):
        columns: ClassVar = (column,)

    scorer = SimpleNamespace(score=lambda images, *_: {column: [0.0] * len(images)})
    rows = pd.DataFrame({"prompt": ["a"], "seed": [0], "concept": "", "role": "erase"})
    images = torch.from_numpy(picture("half"))[None]
    with pytest.raises(ValueError, match=f"scorer mine: the column '{column}' is there already; rename it"):
        score_images(images, rows, TASK, {"mine": LoadedScorer(Config(), scorer)})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_an_infinite_score_is_refused_and_none_is_not(value: float) -> None:
    @dataclass(frozen=True)
    class Config(ScorerConfig):
        columns: ClassVar = ("sharpness",)

    scorer = SimpleNamespace(score=lambda images, *_: {"sharpness": [value] * len(images)})
    rows = pd.DataFrame({"prompt": ["a"], "seed": [0], "concept": "", "role": "erase"})
    images, mine = torch.from_numpy(picture("half"))[None], {"mine": LoadedScorer(Config(), scorer)}
    refused = pytest.raises(ValueError, match="scorer mine: the column 'sharpness' holds infinity")
    with refused if math.isinf(value) else contextlib.nullcontext():
        score_images(images, rows, TASK, mine)


# --- tables


def with_blanks(sets: list[ImageSet], share: float, only: str | None = None) -> list[ImageSet]:
    """The first `share` of the rows of each fine-tuned set (of `only` one task) are blank; others have none."""

    def column(one: ImageSet) -> np.ndarray:
        count = round(share * len(one.rows)) if one.key["state"] == "finetuned" else 0
        return (np.arange(len(one.rows)) < count).astype(float)

    chosen = [only in (None, one.key["task"]) for one in sets]
    pairs = zip(sets, chosen, strict=True)
    return [replace(one, rows=one.rows.assign(blank=column(one))) if has else one for one, has in pairs]


def written(sets: list[ImageSet], place: Path) -> tuple[dict[str, bytes], str]:
    """The files of the tables, and the text for the terminal."""
    entries = [write_scores_folder(place / "scores" / str(number), one) for number, one in enumerate(sets)]
    text = tables.write_tables(entries, place / "tables", 0.95)
    return {file.name: file.read_bytes() for file in sorted((place / "tables").iterdir())}, text


def rows_of(name: str, place: Path) -> pd.DataFrame:
    return pd.read_csv(place / "tables" / name, dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def sets() -> list[ImageSet]:
    return study_sets()


def test_all_other_rows_are_those_of_scores_without_the_column(sets: list[ImageSet], tmp_path: Path) -> None:
    before, old_text = written(sets, tmp_path / "before")
    after, new_text = written(with_blanks(sets, 0.0), tmp_path / "after")
    for name in ("cells.csv", "resurgence.csv", "seeds.csv"):
        assert b"blank" not in before[name] and b",blank," in after[name]
        lines = [line for line in after[name].splitlines() if b",blank," not in line]
        assert lines == before[name].splitlines()
    for name in ("intervals.csv", "metrics.json"):
        assert after[name] == before[name]
    assert b"Blank" not in before["resurgence.md"] and old_text == new_text
    added = after["resurgence.md"].decode().split("## Blank images (%)")[1].split("##")[0]
    assert (
        after["resurgence.md"].decode().replace(f"## Blank images (%){added}", "") == before["resurgence.md"].decode()
    )


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_share_stands_in_every_table(sets: list[ImageSet], tmp_path: Path, share: float) -> None:
    marked = with_blanks(sets, share)
    written(marked, tmp_path)
    cells = read_table(tmp_path / "tables/cells.csv").query("metric == 'blank'")
    assert set(cells["role"]) == {"erase", "retain", "synonym"} and set(cells["state"]) == {
        "base",
        "erased",
        "finetuned",
    }
    sums = (cells["value"] * cells["n"] / 100).groupby(cells["state"]).sum()
    images = {state: sum(len(one.rows) for one in marked if one.key["state"] == state) for state in sums.index}
    assert sums["base"] == sums["erased"] == 0
    assert sums["finetuned"] == pytest.approx(share * images["finetuned"], rel=1e-5)
    last = read_table(tmp_path / "tables/resurgence.csv").query("metric == 'blank' and step == 100")
    assert set(last["erased_value"]) == {0.0} and last["finetuned_value"].max() == 100
    assert set(read_table(tmp_path / "tables/seeds.csv").query("metric == 'blank'")["runs"]) == {1}


@pytest.mark.parametrize("place", ["one set", "the base", "another task"])
def test_scores_stored_before_print_a_dash(sets: list[ImageSet], tmp_path: Path, place: str) -> None:
    marked = with_blanks(sets, 0.0, "ship" if place == "another task" else None)
    number = {"one set": 2, "the base": 0}.get(place)
    if number is not None:
        marked[number] = replace(marked[number], rows=marked[number].rows.drop(columns="blank"))
    written(marked, tmp_path)
    missing = {tuple(str(one.key[k] if one.key[k] is not None else "") for k in ("task", "eraser", "state", "step"))
               for one in marked if "blank" not in one.rows}  # fmt: skip
    cells = rows_of("cells.csv", tmp_path).query("metric == 'blank'")
    found = cells[cells["value"] == ""][["task", "eraser", "state", "step"]]
    assert set(found.itertuples(index=False, name=None)) == missing and len(missing) == (7 if number is None else 1)
    section = (tmp_path / "tables/resurgence.md").read_text().split("## Blank images (%)")[1].split("##")[0]
    text = {"one set": "0.0 -> 0.0 -> -", "the base": "- -> 0.0 -> 0.0", "another task": "- -> - -> -"}[place]
    if place != "one set":  # that is not a last step
        assert text in section


def test_scores_are_read_back_from_a_file_with_an_empty_column(sets: list[ImageSet], tmp_path: Path) -> None:
    """As unpacked from a reference in which other models have the column."""
    entries = [write_scores_folder(tmp_path / str(number), one) for number, one in enumerate(with_blanks(sets, 0.5))]
    file = Path(entries[0]["path"])
    rows = pd.read_parquet(file / "scores.parquet")
    write_scores(file, rows.assign(blank=None), {})
    tables.write_tables(entries, tmp_path / "tables", 0.95)
    assert (rows_of("cells.csv", tmp_path).query("metric == 'blank' and value == ''")["state"] == "base").all()


# --- the warning


def cells_of(shares: dict[str, list[float]]) -> pd.DataFrame:
    """cells.csv of an erased model per name, with the share of each of its roles, of 50 images each."""
    common = {**dict.fromkeys(tables.CELLS, ""), "base": "m", "task": "t", "erase_seed": 0, "state": "erased"}
    rows = [
        {**common, "eraser": name, "step": np.nan, "role": role, "metric": "blank", "n": 50, "value": value}
        for name, values in shares.items()
        for role, value in zip(("erase", "retain"), values, strict=False)
    ]
    return pd.DataFrame(rows, columns=tables.CELLS)


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        ({}, ""),
        ({"a": [0.0, 0.0]}, ""),
        ({"a": [2.0, 0.0], "b": [0.0, 0.0]}, ""),  # 1 % of both together
        ({"a": [np.nan, np.nan]}, ""),  # scores without the column
        ({"a": [4.0, 0.0], "b": [0.0, 0.0]}, r"in 1 of 2 image sets .* 2.0 % in the worst .*eraser a"),
        ({"a": [4.0], "b": [10.0, 100.0], "c": [np.nan]}, r"in 2 of 2 image sets .* 55.0 % in the worst .*eraser b"),
    ],
)
def test_a_warning_above_one_percent(shares: dict[str, list[float]], text: str) -> None:
    told = headline.blank_warning(cells_of(shares))
    assert re.search(text, told) and bool(told) == bool(text)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_warning_is_in_the_terminal_the_page_and_the_report(
    sets: list[ImageSet], tmp_path: Path, share: float
) -> None:
    files, text = written(with_blanks(sets, share), tmp_path)
    stored = [read_table(tmp_path / f"tables/{name}.csv") for name in ("cells", "resurgence", "seeds")]
    (tmp_path / "cost").mkdir()
    write_json(tmp_path / "tables/made.json", {"parameters": {"models": []}, "files": {}})
    pd.DataFrame({"device": ["cpu"], "seconds": [1.0]}).to_csv(tmp_path / "cost/cost.csv")
    shown = [text, files["resurgence.md"].decode(), page(*stored), summary(tmp_path, 0.95)]
    assert ["in 8 of 14 image sets more than 1 % of the images are blank, 3" in one for one in shown] == [share > 0] * 4


def test_tables_without_the_column_have_no_warning(sets: list[ImageSet]) -> None:
    estimated, _ = estimates(sets)
    assert "blank" not in set(estimated["metric"]) and headline.blank_warning(tables.cells(estimated, 0.95)) == ""
