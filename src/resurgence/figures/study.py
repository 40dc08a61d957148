"""The figures of a study: before and after, curves, gains, training and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from resurgence.analysis.headline import title_of
from resurgence.analysis.read import read_table
from resurgence.config.model_path import method_name
from resurgence.figures.style import BLUE, GREY, LINES, MARKS, ROLES, STATES, STYLE, WIDTH, errors, panels, save

BANDS = 3  # largest number of intervals drawn as bands in one panel
MODEL = ["eraser", "variant", "finetune", "finetune_variant"]


def last_steps(cells: pd.DataFrame) -> pd.DataFrame:
    """Drop the fine-tuned image sets of all but the last step of their cell."""
    keys = [name for name in (*MODEL, "base", "task", "erase_seed", "finetune_seed", "state") if name in cells]
    last = cells.groupby(keys, dropna=False)["step"].transform("max")
    return cells[(cells["state"] != "finetuned") | (cells["step"] == last)]


def models_of(cells: pd.DataFrame, most: int) -> list[tuple[str, list[dict[str, str]]]]:
    """Lines of panels: a task, and at most `most` of its fine-tuned models."""
    groups = []
    for task in sorted(set(cells["task"])):
        tuned = cells[(cells["task"] == task) & (cells["state"] == "finetuned")]
        models = tuned[MODEL].drop_duplicates().to_dict("records")
        lines = math.ceil(len(models) / most)
        size = math.ceil(len(models) / max(1, lines))
        groups += [(task, models[i : i + size]) for i in range(0, len(models), max(1, size))]
    return groups


def of_model(rows: pd.DataFrame, state: str, model: Mapping[str, str]) -> pd.DataFrame:
    """The rows of a model in a state; several models share the base and an erased model."""
    keys = {"base": [], "erased": MODEL[:2], "finetuned": MODEL}[state]
    return rows[(rows["state"] == state) & (rows[keys] == [model[key] for key in keys]).all(axis=1)]


def model_name(model: Mapping[str, str], joint: str) -> str:
    """The eraser and the fine-tune of a model."""
    eraser, variant, finetune, finetune_variant = (model[key] for key in MODEL)
    return method_name(eraser, variant) + joint + method_name(finetune, finetune_variant)


@matplotlib.rc_context(STYLE)
def before_after(means: pd.DataFrame, cells: pd.DataFrame, metric: str) -> Figure:
    """Bars base, erased and fine-tuned (last step) of each model, for erased and retained concepts of each task.

    Args:
        means: means.csv, the bars. cells: cells.csv, the dots: one a seed.
    """
    means, cells = (last_steps(table[table["metric"] == metric]) for table in (means, cells))
    groups, roles = models_of(means, 8), [role for role in ROLES if (means["role"] == role).any()]
    widest = max((len(models) for _, models in groups), default=1)
    figure, axes = panels(len(groups), len(roles), 2.9, title_of(metric), max(3.4, 0.95 * widest))
    for line, (task, models) in zip(axes, groups, strict=True):
        for axis, role in zip(line, roles, strict=True):
            shown = [table[(table["task"] == task) & (table["role"] == role)] for table in (means, cells)]
            bars(axis, *shown, models)
            axis.set_title(f"{task}: {ROLES[role]}", fontsize=10)
        line[0].set_ylabel(title_of(metric), fontsize=9)
    handles = [Patch(color=colour, label=name) for name, colour in STATES.values()]
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def bars(axis: Axes, rows: pd.DataFrame, runs: pd.DataFrame, models: list[dict[str, str]]) -> None:
    """Three bars for each fine-tuned model: base, erased and fine-tuned; dots where there are several runs."""
    for position, model in enumerate(models):
        for number, (state, (_, colour)) in enumerate(STATES.items()):
            part = of_model(rows, state, model)
            if part.empty:
                continue
            x, values = position + 0.27 * (number - 1), of_model(runs, state, model)["value"]
            axis.bar(x, part["value"], 0.25, color=colour)
            axis.errorbar(x, part["value"], errors(part), fmt="none", ecolor="black", elinewidth=1, capsize=2.5)
            if len(values) > 1:
                axis.plot([x] * len(values), values, ".", color="black", markersize=4, alpha=0.6)
    axis.set_xticks(range(len(models)), [model_name(model, "\n") for model in models], fontsize=8)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xlim(-0.6, len(models) - 0.4)
    axis.grid(axis="x", visible=False)


def curves(means: pd.DataFrame, metric: str) -> Figure:
    """The metric over fine-tuning steps, from the erased model at step 0; the base as a dashed line."""
    title = title_of(metric)
    return curve_panels(means[means["metric"] == metric], f"{title} over fine-tuning steps", title)


def gains(seeds: pd.DataFrame, metric: str) -> Figure:
    """Fine-tuned minus erased over steps, with the interval of the paired difference; 0 is the erased model.

    Args:
        seeds: seeds.csv.
    """
    names = {"resurgence_mean": "value", "resurgence_low": "low", "resurgence_high": "high"}
    tuned = seeds[seeds["metric"] == metric].rename(columns=names).assign(state="finetuned")
    start = tuned.drop_duplicates(["task", *MODEL[:2], "role"]).assign(state="erased", value=0.0, low=0.0, high=0.0)
    title = f"Resurgence over fine-tuning steps, {title_of(metric)}"
    return curve_panels(pd.concat([start, tuned]), title, "fine-tuned minus erased")


@matplotlib.rc_context(STYLE)
def curve_panels(cells: pd.DataFrame, title: str, value: str) -> Figure:
    """One line of panels a task (or eight models of it), one panel a role."""
    groups, roles = models_of(cells, len(LINES)), [role for role in ROLES if (cells["role"] == role).any()]
    figure, axes = panels(len(groups), len(roles), 3.0, title, 5.0)
    for line, (task, models) in zip(axes, groups, strict=True):
        for axis, role in zip(line, roles, strict=True):
            handles = lines(axis, cells[(cells["task"] == task) & (cells["role"] == role)], models)
            axis.set_title(f"{task}: {ROLES[role]}", fontsize=10)
        line[0].set_ylabel(value, fontsize=9)
        line[-1].legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("fine-tuning steps")
    return figure


def lines(axis: Axes, rows: pd.DataFrame, models: list[dict[str, str]]) -> dict[str, Artist]:
    """One line a model with its interval; returns the handles of the legend."""
    handles: dict[str, Artist] = {}
    for _, base in rows[rows["state"] == "base"].iterrows():
        handles["base"] = axis.axhline(base["value"], color=GREY, linestyle="--")
        axis.axhspan(base["low"], base["high"], color=GREY, alpha=0.12, linewidth=0)
    for number, (model, colour, mark) in enumerate(zip(models, LINES, MARKS, strict=False)):
        start = of_model(rows, "erased", model).assign(step=0)
        points = pd.concat([start, of_model(rows, "finetuned", model)]).sort_values("step")
        x = points["step"].astype(float)
        if len(models) <= BANDS:
            axis.fill_between(x, points["low"], points["high"], color=colour, alpha=0.15, linewidth=0)
        else:  # bands would hide each other
            x += 0.012 * x.max() * (number - (len(models) - 1) / 2)
            axis.errorbar(x, points["value"], errors(points), fmt="none", ecolor=colour, elinewidth=1, capsize=2)
        (handle,) = axis.plot(x, points["value"], color=colour, marker=mark, markersize=4.5)
        handles[model_name(model, " + ")] = handle
    axis.axhline(0, color="black", linewidth=0.8)
    return handles


@matplotlib.rc_context(STYLE)
def training_losses(losses: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Figure:
    """Training curves: one panel a model, its curves (step, loss) by name; logarithmic where they span two decades."""
    columns = min(3, len(losses))
    rows = math.ceil(len(losses) / columns)
    figure = Figure(figsize=(min(WIDTH, 4.6 * columns + 0.6), 2.9 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.suptitle("Training losses")
    for axis, (title, curves_by_name) in zip(axes, losses.items(), strict=False):
        values = [loss for curve in curves_by_name.values() for _, loss in curve if loss > 0]
        for number, (name, curve) in enumerate(curves_by_name.items()):
            steps, loss = zip(*curve, strict=True)
            style = "-" if number < len(LINES) else "--"
            axis.plot(steps, loss, style, color=LINES[number % len(LINES)], linewidth=1.2, label=name)
        if values and max(values) > 100 * min(values):
            axis.set_yscale("log")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylabel("loss")
        if 1 < len(curves_by_name) <= 12:
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.26)}  # under the label of the axis
            axis.legend(fontsize=7, ncols=math.ceil(len(curves_by_name) / 6), **below)
    for axis in axes[len(losses) :]:
        axis.set_visible(False)
    return figure


@matplotlib.rc_context(STYLE)
def cost(runs: pd.DataFrame) -> Figure:
    """Seconds and number of runs of each kind of stage.

    Args:
        runs: columns kind, seconds (one row a run), as `read_runs` returns.
    """
    total = runs.groupby("kind")["seconds"].agg(["sum", "count"]).sort_values(["sum"], kind="stable")
    figure = Figure(figsize=(8.0, 0.36 * len(total) + 1.4), layout="constrained")
    axis = figure.subplots()
    axis.barh(total.index, total["sum"], color=BLUE)
    for y, (seconds, count) in enumerate(total.itertuples(index=False)):
        digits = 0 if seconds >= 10 else 1
        axis.annotate(f" {seconds:.{digits}f} s in {count}", (seconds, y), va="center", fontsize=9)
    axis.set_xlim(0, 1.22 * max(total["sum"].max(), 1e-9))
    axis.set_xlabel("seconds of work (all runs of the stage)")
    axis.grid(axis="y", visible=False)
    figure.suptitle(f"Cost by stage: {total['sum'].sum():.0f} s in {int(total['count'].sum())} runs")
    return figure


def write_figures(tables: Path, out: Path, metrics: Sequence[str]) -> list[Path]:
    """Write the figures of some metrics below `out`; returns their paths without suffix.

    Args:
        tables: folder of cells.csv, means.csv and seeds.csv.

    Raises:
        ValueError: a metric that is not in the tables.
    """
    cells, means, seeds = (read_table(tables / f"{name}.csv") for name in ("cells", "means", "seeds"))
    figures = {}
    for metric in metrics:
        if metric not in set(cells["metric"]):
            known = sorted(set(cells["metric"]))
            raise ValueError(f"metric {metric!r} is not in {tables / 'cells.csv'}; choose one of {known}")
        figures[f"before_after_{metric}"] = before_after(means, cells, metric)
        figures[f"steps_{metric}"] = curves(means, metric)
        figures[f"resurgence_{metric}"] = gains(seeds, metric)
    for name, figure in figures.items():
        save(figure, out / name)
    return [out / name for name in figures]
