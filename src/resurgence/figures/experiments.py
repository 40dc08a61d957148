"""Figures of experiments, drawn only from their tables: bars, lines over a setting, curves over steps, heat maps.

Bars and points are means over seeds, their intervals are over concepts and seeds, or of one run where one seed ran.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from resurgence.analysis.headline import title_of
from resurgence.config.scorers import metrics
from resurgence.figures.style import BLUE, GREY, LINES, MARKS, ORANGE, ROLES, STATES, STYLE, WIDTH, errors

WAY = (("base", "base_value", GREY), ("erased", "erased_value", BLUE), ("finetuned", "finetuned_value", ORANGE))


def way(rows: pd.DataFrame) -> tuple[tuple[str, str, str], ...]:
    """The states that a table has: base, erased, and fine-tuned if there is a fine-tune."""
    return WAY if (rows["finetune"] != "").any() else WAY[:2]


def state_errors(rows: pd.DataFrame, state: str) -> list[list[float]]:
    """Lengths of the error bars of the erased or fine-tuned values."""
    return errors(rows.rename(columns={f"{state}_{end}": end for end in ("value", "low", "high")}))


def canvas(lines: int, columns: int, width: float, height: float, title: str) -> tuple[Figure, np.ndarray]:
    """A figure of lines x columns panels of width x height inches under a title, which is wrapped if it is too long."""
    width = min(WIDTH, max(5.6, width * columns + 1.2))
    figure = Figure(figsize=(width, height * lines + 0.9), layout="constrained")
    text = textwrap.fill(title, int(9.5 * width) + 1, break_long_words=False, break_on_hyphens=False)
    figure.suptitle(text, fontsize=12)
    return figure, figure.subplots(lines, columns, squeeze=False)


def add_legend(figure: Figure, axis: Axes, columns: int, **options: Any) -> None:
    """The legend of a panel, below the figure, in at most so many columns."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), **options)


@matplotlib.rc_context(STYLE)
def bars(rows: pd.DataFrame, along: str, title: str) -> Figure:
    """Bars base, erased, fine-tuned along one category; a panel for each combination of the others, a line a role.

    Args:
        rows: cells.table at the last step.
    """
    others = [key for key in ("task", "eraser", "finetune") if key != along and rows[key].nunique() > 1]
    if "finetune" in others and not rows.duplicated(["task", "eraser", "role"]).any():
        others.remove("finetune")  # one fine-tune an eraser, under several names: the bars share a panel
    groups = list(rows.groupby(others, sort=False)) if others else [((), rows)]
    roles = rows["role"].unique()
    widest = max(len(part[along].unique()) for _, part in groups)
    columns = min(len(groups), max(1, int(WIDTH // max(2.6, 0.9 * widest))))
    lines = math.ceil(len(groups) / columns)
    figure, axes = canvas(lines * len(roles), columns, max(2.6, 0.95 * widest), 2.9, title)
    for number, (key, part) in enumerate(groups):
        for i, role in enumerate(roles):
            axis = axes[(number // columns) * len(roles) + i][number % columns]
            bar_panel(axis, part[part["role"] == role], along)
            names = [*(key if isinstance(key, tuple) else (key,)), ROLES.get(role, role)]
            axis.set_title(": ".join(filter(None, [", ".join(names[:-1]), names[-1]])), fontsize=9)
            if number % columns == 0:
                axis.set_ylabel(title_of(rows["metric"].iloc[0]), fontsize=9)
    for axis in axes.ravel():
        axis.set_visible(axis.has_data())
    handles: list[Artist] = [Patch(color=colour, label=STATES[state][0]) for state, _, colour in way(rows)]
    handles.append(Line2D([], [], color="black", linewidth=1, marker="_", label="interval"))
    if (rows["runs"] > 1).any() and len(way(rows)) == 3:
        thin = {"color": "black", "linewidth": 0.7, "marker": "_", "markersize": 4}
        handles.append(Line2D([], [], **thin, label="seeds: median, largest deviation"))
    close = {"columnspacing": 1.0, "handlelength": 1.4, "fontsize": 9}
    figure.legend(handles=handles, loc="outside lower center", ncols=3, **close)
    return figure


def bar_panel(axis: Axes, rows: pd.DataFrame, along: str) -> None:
    """A bar a state for each row; the thin line beside the last is the seeds' median and their largest deviation."""
    states = way(rows)
    shifts = (-0.27, 0.0, 0.27) if len(states) == 3 else (-0.14, 0.14)
    for x, row in enumerate(rows.itertuples()):
        for shift, (state, column, colour) in zip(shifts, states, strict=True):
            cell = rows.iloc[[x]]
            axis.bar(x + shift, cell[column], 0.25, color=colour)
            if state != "base":
                ends = state_errors(cell, state)
                axis.errorbar(x + shift, cell[column], ends, fmt="none", ecolor="black", elinewidth=1, capsize=2.5)
        if row.runs > 1 and len(states) == 3:
            median = row.erased_value + row.median
            axis.errorbar(x + 0.37, median, row.deviation, fmt="_", color="black", markersize=4, elinewidth=0.7)
    names = [str(name).replace(".", ".\n") for name in rows[along]]
    crowded = max((len(n) for name in names for n in name.split("\n")), default=0) > 10 and len(names) > 2
    rotated = {"rotation": 30, "ha": "right"} if crowded else {}
    axis.set_xticks(range(len(rows)), names, fontsize=8, **rotated)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.grid(axis="x", visible=False)


@matplotlib.rc_context(STYLE)
def line(rows: pd.DataFrame, setting: str, title: str) -> Figure:
    """Erased and fine-tuned value over a setting (column `x`), a panel a task, a line of panels a role."""
    tasks, roles = rows["task"].unique(), rows["role"].unique()
    figure, axes = canvas(len(roles), len(tasks), 4.2, 3.0, title)
    for i, role in enumerate(roles):
        for j, task in enumerate(tasks):
            axis = axes[i][j]
            part = rows[(rows["role"] == role) & (rows["task"] == task)].sort_values("x")
            if part.empty:  # a role that this task does not have
                axis.set_visible(False)
                continue
            smallest = part.loc[part["x"] > 0, "x"].min()
            axis.axhline(part["base_value"].iloc[0], color=GREY, linestyle="--", label="base")
            for (state, column, colour), mark in zip(way(rows)[1:], "os", strict=False):
                axis.errorbar(part["x"], part[column], state_errors(part, state), fmt=f"-{mark}", color=colour,
                              markersize=4.5, capsize=2.5, label=STATES[state][0])  # fmt: skip
            if smallest > 0 and part["x"].max() / smallest >= 100:
                axis.set_xscale("symlog", linthresh=smallest)
            axis.set_xticks(part["x"].tolist(), [f"{x:g}" for x in part["x"]], fontsize=8, rotation=30)
            axis.minorticks_off()
            axis.set_title(f"{task}: {ROLES.get(role, role)}", fontsize=9)
            axis.set_xlabel(setting)
        axes[i][0].set_ylabel(title_of(rows["metric"].iloc[0]), fontsize=9)
    add_legend(figure, axes[0][0], 3)
    return figure


@matplotlib.rc_context(STYLE)
def curves(rows: pd.DataFrame, title: str) -> Figure:
    """The value over fine-tuning steps, step 0 the erased model; a panel a task, a line of panels a role."""
    tasks, roles = rows["task"].unique(), rows["role"].unique()
    models = list(dict.fromkeys(zip(rows["eraser"], rows["finetune"], strict=True)))
    columns = min(len(tasks), 4)
    lines = math.ceil(len(tasks) / columns)
    figure, axes = canvas(lines * len(roles), columns, 3.7, 2.8, title)
    for axis in axes.ravel():
        axis.set_visible(False)
    for number, task in enumerate(tasks):
        for i, role in enumerate(roles):
            axis = axes[(number // columns) * len(roles) + i][number % columns]
            part = rows[(rows["task"] == task) & (rows["role"] == role)]
            if part.empty:  # a role that this task does not have
                continue
            axis.set_visible(True)
            axis.axhline(part["base_value"].iloc[0], color=GREY, linestyle="--", label="base")
            curve_panel(axis, part, models)
            axis.set_title(f"{task}: {ROLES.get(role, role)}", fontsize=9)
            axis.set_xlabel("fine-tuning steps")
            if number % columns == 0:
                axis.set_ylabel(title_of(rows["metric"].iloc[0]), fontsize=9)
    handles: dict[str, object] = {}
    for axis in axes.ravel():
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def curve_panel(axis: Axes, rows: pd.DataFrame, models: Sequence[tuple[str, str]]) -> None:
    """One line a model, from the erased model at step 0."""
    for number, (eraser, finetune) in enumerate(models):
        part = rows[(rows["eraser"] == eraser) & (rows["finetune"] == finetune)].sort_values("step")
        if part.empty:
            continue
        style = {"color": LINES[number % len(LINES)], "marker": MARKS[number % len(MARKS)], "markersize": 4.5}
        steps = [0, *part["step"].astype(float)]
        values = [part["erased_value"].iloc[0], *part["finetuned_value"]]
        start, later = state_errors(part.iloc[[0]], "erased"), state_errors(part, "finetuned")
        ends = [[*first, *others] for first, others in zip(start, later, strict=True)]
        label = f"{eraser} + {finetune}"
        axis.errorbar(steps, values, ends, capsize=2, linewidth=1.4, elinewidth=0.8, label=label, **style)
    axis.axhline(0, color="black", linewidth=0.8)


@matplotlib.rc_context(STYLE)
def similarities(members: pd.DataFrame, title: str) -> Figure:
    """Similarity of the candidates by tercile; those that were drawn have filled markers.

    Args:
        members: columns task, concept, similarity, tercile, drawn.
    """
    tasks = members["task"].unique()
    figure, axes = canvas(len(tasks), 1, 7.0, 2.2, title)
    for axis, task in zip(axes[:, 0], tasks, strict=True):
        for number, part in members[members["task"] == task].groupby("tercile"):
            colour = LINES[int(number) - 1]
            for drawn, face in ((False, "none"), (True, colour)):
                x = part[part["drawn"] == drawn]["similarity"]
                label = f"tercile {number}: {'drawn' if drawn else 'candidates'}"
                axis.scatter(x, [number] * len(x), s=26, facecolors=face, edgecolors=colour, label=label)
        axis.set_yticks([1, 2, 3])
        axis.set_ylim(0.4, 3.6)
        axis.set_ylabel("tercile")
        axis.set_title(task, fontsize=9)
    axes[-1][0].set_xlabel("cosine of the CLIP text embedding to the nearest erased concept")
    add_legend(figure, axes[0][0], 3, fontsize=8)
    return figure


@matplotlib.rc_context(STYLE)
def weights(rows: pd.DataFrame, correlated: pd.DataFrame, title: str) -> Figure:
    """Resurgence over four measures of the weights that erasing changed: a point a fine-tuned model, a colour a task.

    Args:
        rows: columns task, resurgence and erased_<measure>. correlated: weight_movement.correlations of them.
    """
    titles = {
        "erased_erased_distance": "distance of erased from base, relative",
        "erased_finetuned_distance": "distance of fine-tuned from base, relative",
        "erased_cosine": "cosine of the fine-tuning update to the way back",
        "erased_undone": "share of the erasing update undone",
    }
    rho = correlated.set_index("measure")
    figure, axes = canvas(1, 4, 3.6, 3.3, title)
    for axis, (column, title_of_column) in zip(axes[0], titles.items(), strict=True):
        for number, (task, part) in enumerate(rows.groupby("task", sort=False)):
            colour, mark = LINES[number % len(LINES)], MARKS[number % len(MARKS)]
            axis.scatter(part[column], part["resurgence"], label=task, color=colour, marker=mark, s=22, alpha=0.8)
        row = rho.loc[column]
        axis.set_title(f"rho {row['rho']:.2f} [{row['low']:.2f}, {row['high']:.2f}], n = {row['n']}", fontsize=9)
        axis.set_xlabel(title_of_column, fontsize=8)
        axis.axhline(0, color="black", linewidth=0.8)
    axes[0][0].set_ylabel("resurgence (points)")
    add_legend(figure, axes[0][0], 6, fontsize=8)
    return figure


@matplotlib.rc_context(STYLE | {"axes.grid": False})
def heatmap(concepts: pd.DataFrame, metric: str, title: str) -> Figure:
    """A metric by concept (rows) and base, erased model, checkpoint (columns); a panel a model.

    Args:
        concepts: columns task, eraser, finetune, concept, column, value.
    """
    declared, finite = metrics()[metric], concepts["value"].dropna()
    least, most_shown = (0.0, 100.0) if declared.share or finite.empty else (finite.min(), finite.max())
    middle = least + 0.55 * (most_shown - least)
    groups = list(concepts.groupby(["task", "eraser", "finetune"], sort=False))
    columns = min(3, len(groups))
    lines = math.ceil(len(groups) / columns)
    most = max(part["concept"].nunique() for _, part in groups)
    figure, axes = canvas(lines, columns, 5.0, max(1.6, 0.24 * most + 1.0), title)
    for axis, (key, part) in zip(axes.ravel(), groups, strict=False):
        order = list(dict.fromkeys(part["column"]))
        values = part.pivot(index="concept", columns="column", values="value")[order]
        values = values.sort_values(order[-1], ascending=False, kind="stable")
        image = axis.imshow(values, vmin=least, vmax=most_shown, cmap="cividis", aspect="auto")
        for (i, j), value in np.ndenumerate(values.to_numpy()):
            colour = "black" if value > middle else "white"
            text = "-" if math.isnan(value) else f"{value:.0f}" if declared.share else f"{value:.3g}"
            axis.annotate(text, (j, i), ha="center", va="center", fontsize=7, color=colour)
        axis.set_xticks(range(len(order)), order, fontsize=8)
        axis.set_yticks(range(len(values)), values.index, fontsize=8)
        axis.set_title(", ".join(key), fontsize=9)
        axis.set_xlabel("base, erased model, fine-tuning steps", fontsize=8)
    for axis in axes.ravel()[len(groups) :]:
        axis.set_visible(False)
    figure.colorbar(image, ax=axes, label="recognised (%)" if declared.accuracy else declared.title)
    return figure
