"""Figures: what is drawn is what the tables hold; files are deterministic and small enough to read."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from resurgence.analysis import headline, tables
from resurgence.analysis import read as read_module
from resurgence.analysis.estimates import estimates
from resurgence.figures import metrics, study, style
from scored import study_sets


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of a synthetic study with two erase seeds."""
    out = tmp_path_factory.mktemp("tables")
    estimated = estimates(study_sets(steps=(40, 80), erase_seeds=(0, 1)))[0]
    tables.cells(estimated, 0.95).to_csv(out / "cells.csv", index=False)
    tables.means(estimated, 0.95).to_csv(out / "means.csv", index=False)
    tables.resurgence(estimated, 0.95).to_csv(out / "resurgence.csv", index=False)
    tables.over_seeds(estimated, 0.95).to_csv(out / "seeds.csv", index=False)
    return out


@pytest.fixture(scope="module")
def cells(folder: Path) -> pd.DataFrame:
    return read_module.read_table(folder / "cells.csv")


@pytest.fixture(scope="module")
def means(folder: Path) -> pd.DataFrame:
    return read_module.read_table(folder / "means.csv")


def axes_of(figure: Figure, title: str) -> object:
    """The panel with this title."""
    return next(axis for axis in figure.axes if axis.get_title() == title)


def chosen(cells: pd.DataFrame, **key: object) -> pd.DataFrame:
    """Rows with these values."""
    for name, value in key.items():
        cells = cells[cells[name] == value]
    return cells


def test_table_read_from_a_file_keeps_names_and_numbers(cells: pd.DataFrame) -> None:
    base = cells[cells["state"] == "base"]
    assert (base["eraser"] == "").all() and base["step"].isna().all()
    assert cells["value"].dtype == np.float64 and set(cells.loc[cells["state"] == "finetuned", "step"]) == {40.0, 80.0}


def test_the_summary_of_a_file_is_that_of_the_table(folder: Path) -> None:
    estimated = estimates(study_sets(steps=(40, 80), erase_seeds=(0, 1)))[0]
    table = tables.resurgence(estimated, 0.95)
    read = [read_module.read_table(folder / f"{name}.csv") for name in ("resurgence", "seeds")]
    assert headline.terminal(*read, 0.95) == headline.terminal(table, tables.over_seeds(estimated, 0.95), 0.95)


def test_bars_have_the_heights_and_intervals_of_the_table(means: pd.DataFrame, cells: pd.DataFrame) -> None:
    axis = axes_of(study.before_after(means, cells, "clip_score"), "identities-4: erased concepts")
    key = {"metric": "clip_score", "task": "identities-4", "role": "erase"}
    expected = []
    for eraser in ("mace", "uce"):
        states = [{"state": "base"}, {"state": "erased", "eraser": eraser}, {"step": 80.0, "eraser": eraser}]
        expected += [chosen(means, **key, **state).squeeze() for state in states]
        value = chosen(cells, **key, **states[1])["value"].mean()
        assert expected[-2]["value"] == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose([bar.get_height() for bar in axis.patches], [row["value"] for row in expected])
    ends = [
        container.lines[2][0].get_segments()[0][:, 1] for container in axis.containers if hasattr(container, "lines")
    ]
    np.testing.assert_allclose(ends, [(row["low"], row["high"]) for row in expected])
    assert [text.get_text() for text in axis.get_xticklabels()] == ["mace\nlora", "uce\nlora"]
    dots = [line for line in axis.lines if line.get_marker() == "."]
    assert [len(line.get_ydata()) for line in dots] == [2, 2, 2, 2]  # seeds of erased and fine-tuned models


def test_curves_start_at_the_erased_model_and_show_the_base(means: pd.DataFrame) -> None:
    axis = axes_of(study.curves(means, "recogniser_accuracy"), "ship: erased concepts")
    key = {"metric": "recogniser_accuracy", "task": "ship", "role": "erase"}
    drawn = {line.get_color(): line for line in axis.lines if line.get_marker() not in ("", "None")}
    uce = drawn[style.LINES[1]]
    np.testing.assert_array_equal(uce.get_xdata(), [0, 40, 80])
    expected = [chosen(means, **key, state="erased", eraser="uce")["value"].item()]
    expected += [chosen(means, **key, eraser="uce", step=step)["value"].item() for step in (40.0, 80.0)]
    np.testing.assert_allclose(uce.get_ydata(), expected)
    dashed = [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"]
    assert dashed == [chosen(means, **key, state="base")["value"].item()]
    assert len(axis.collections) == 2  # a band for each model


def test_gains_start_at_zero_and_hold_the_paired_difference(folder: Path) -> None:
    table = read_module.read_table(folder / "seeds.csv")
    axis = axes_of(study.gains(table, "recogniser_accuracy"), "ship: erased concepts")
    mace = next(line for line in axis.lines if line.get_marker() == style.MARKS[0])
    rows = chosen(table, metric="recogniser_accuracy", task="ship", role="erase", eraser="mace")
    expected = [0.0, *rows.sort_values("step")["resurgence_mean"]]
    np.testing.assert_allclose(mace.get_ydata(), expected)


def test_many_models_are_drawn_in_several_panels_without_bands(means: pd.DataFrame) -> None:
    tuned = means[means["state"] == "finetuned"]
    more = pd.concat([means, *(tuned.assign(finetune_variant=f"v{k}") for k in range(5))])
    groups = study.models_of(more, 8)
    assert [(task, len(models)) for task, models in groups] == [("identities-4", 6)] * 2 + [("ship", 6)] * 2
    figure = study.curves(more, "clip_accuracy")
    assert len(figure.axes) == 8 and len(figure.axes[0].containers) == 6  # error bars
    assert study.before_after(more, more, "clip_accuracy").get_size_inches()[0] <= 16


def test_no_two_states_or_lines_share_a_colour() -> None:
    colours = [matplotlib.colors.to_hex(c) for c in style.LINES]
    assert len(set(colours)) == len(colours) == len(style.MARKS)
    assert len({colour for _, colour in style.STATES.values()}) == 3


def test_training_curves_take_both_kinds_of_file(tmp_path: Path) -> None:
    (tmp_path / "curve.json").write_text(
        json.dumps([{"step": 50, "loss": 2.0, "lr": 1.0}, {"step": 100, "loss": 0.001}])
    )
    (tmp_path / "curves.json").write_text(json.dumps({"ship": [3.0, 2.0, 1.0], "cat": [4.0, 3.0, 2.0]}))
    losses = {name: read_module.read_curves(tmp_path / f"{name}.json") for name in ("curve", "curves")}
    assert losses == {
        "curve": {"loss": [(50, 2.0), (100, 0.001)]},
        "curves": {"ship": [(1, 3.0), (2, 2.0), (3, 1.0)], "cat": [(1, 4.0), (2, 3.0), (3, 2.0)]},
    }
    figure = study.training_losses(losses)
    first, second = figure.axes[:2]
    assert first.get_yscale() == "log" and second.get_yscale() == "linear"
    assert [text.get_text() for text in second.get_legend().get_texts()] == ["ship", "cat"]
    (tmp_path / "bad.json").write_text('{"loss": 3}')
    with pytest.raises(ValueError, match=r"bad\.json holds neither"):
        read_module.read_curves(tmp_path / "bad.json")


def test_cost_adds_the_seconds_of_each_stage(tmp_path: Path) -> None:
    for name, kind, seconds in (("a", "image set", 30.0), ("b", "image set", 12.5), ("c", "scores", 1.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps({"kind": kind, "files": {}}))
        (tmp_path / name / "run.json").write_text(json.dumps({"seconds": seconds, "device": "cpu"}))
    runs = read_module.read_runs(sorted(tmp_path.iterdir()))
    figure = study.cost(runs)
    (axis,) = figure.axes
    assert [(bar.get_width()) for bar in axis.patches] == [1.5, 42.5]
    assert [text.get_text() for text in axis.texts] == [" 1.5 s in 1", " 42 s in 2"]
    assert figure.get_suptitle() == "Cost by stage: 44 s in 3 runs"


def test_files_are_equal_for_equal_tables_and_narrow_enough(folder: Path, tmp_path: Path) -> None:
    made = study.write_figures(folder, tmp_path / "a", ["recogniser_accuracy"])
    again = study.curves(read_module.read_table(folder / "means.csv"), "recogniser_accuracy")
    style.save(again, tmp_path / "b" / "steps_recogniser_accuracy")
    names = ["before_after_recogniser_accuracy", "steps_recogniser_accuracy", "resurgence_recogniser_accuracy"]
    assert [stem.name for stem in made] == names
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(
        f"{n}.{k}" for n in names for k in ("svg", "png")
    )
    for path in (tmp_path / "b").iterdir():
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), path.name
    for name in names:
        assert Image.open(tmp_path / "a" / f"{name}.png").width <= 1600
        text = (tmp_path / "a" / f"{name}.svg").read_text()
        assert "<dc:date>" not in text and "http-equiv" not in text


def test_an_unknown_metric_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metric 'fid' is not in .*cells\.csv"):
        study.write_figures(folder, tmp_path, ["fid"])


def test_labels_do_not_overlap(means: pd.DataFrame, tmp_path: Path) -> None:
    tuned = means[means["state"] == "finetuned"]
    more = pd.concat([means, *(tuned.assign(finetune_variant=f"tercile-{k}") for k in range(3))])
    figure = study.before_after(more, more, "recogniser_accuracy")
    style.save(figure, tmp_path / "bars")
    for axis in figure.axes:
        boxes = [text.get_window_extent() for text in axis.get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def dot_rows(models: int, finetune: str = "") -> pd.DataFrame:
    """Rows of an experiment's table with three concepts, one of them in two roles; every value differs."""
    rows = []
    for model in range(models):
        for number, (concept, role) in enumerate([("ship", "erase"), ("cat", "retain"), ("ship", "synonym")]):
            value = 10.0 * number + model
            row = {"task": "pets", "eraser": f"method{model}", "finetune": finetune, "metric": "recogniser_accuracy",
                   "concept": concept, "role": role, "base_value": 90.0 + number, "erased_value": value,
                   "erased_low": value - 1, "erased_high": value + 3}  # fmt: skip
            rows.append(row | {f"finetuned_{key}": row[f"erased_{key}"] + 40 for key in ("value", "low", "high")})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("models", "finetune"), [(2, ""), (5, ""), (2, "lora")])
def test_dots_of_concepts_stand_at_their_values_with_intervals_and_the_base(models: int, finetune: str) -> None:
    rows = dot_rows(models, finetune)
    figure = metrics.concept_dots(rows, "title")
    (axis,) = figure.axes
    labels = [text.get_text() for text in axis.get_yticklabels()]
    concepts = ["ship, erase *", "cat", "ship, synonym"]
    assert labels == (concepts if models < 3 else [f"method{model}" for model in range(models)])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["base", *([f"method{model}" for model in range(models)] if models < 3 else concepts)]
    shown = "finetuned" if finetune else "erased"
    spans = sorted(tuple(line[:, 0]) for bars in axis.collections for line in bars.get_segments())
    assert spans == sorted(zip(rows[f"{shown}_low"], rows[f"{shown}_high"], strict=True))
    marks = {kind: sorted(line.get_xdata()[0] for line in axis.lines if test(line)) for kind, test in {
        "base": lambda line: line.get_marker() == "|",
        "open": lambda line: line.get_marker() != "|" and line.get_fillstyle() == "none",
        "full": lambda line: line.get_marker() != "|" and line.get_fillstyle() == "full",
    }.items()}  # fmt: skip
    assert marks["base"] == sorted(rows["base_value"]) and marks["full"] == sorted(rows[f"{shown}_value"])
    assert marks["open"] == (sorted(rows["erased_value"]) if finetune else [])
    places = [line.get_ydata()[0] for line in axis.lines if line.get_fillstyle() == "full" and line.get_marker() != "|"]
    assert len(set(places)) == len(rows)  # no dot hides another


def test_each_task_and_metric_has_a_panel_but_where_there_is_nothing() -> None:
    """A concept that another task erases is marked only there."""
    one, other = dot_rows(2), dot_rows(2).assign(task="boats").iloc[[1, 4]]
    more = one.assign(metric="cs")
    figure = metrics.concept_dots(pd.concat([one, more, other.assign(role="erase")]), "title")
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert [title.split(":")[0] for title in titles] == ["pets", "pets", "boats"] and len(figure.axes) == 4
    labels = [[text.get_text() for text in axis.get_yticklabels()] for axis in figure.axes]
    assert labels[0] == ["ship, erase *", "cat", "ship, synonym"] and labels[2] == ["cat *"]
