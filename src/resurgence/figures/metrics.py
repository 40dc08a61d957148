"""Figures of tables of several metrics, and of a metric over many concepts."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from resurgence.analysis.concept_means import of_erased
from resurgence.analysis.headline import title_of
from resurgence.figures.experiments import add_legend, bar_panel, canvas, state_errors, way
from resurgence.figures.style import BLUE, GREY, LINES, MARKS, ORANGE, STATES, STYLE, WIDTH

Look = tuple[str, str]
"""Marker and colour."""


@matplotlib.rc_context(STYLE)
def metric_bars(rows: pd.DataFrame, columns: Sequence[str], title: str) -> Figure:
    """Bars base, erased, fine-tuned of each model; a panel for each column of a table of metrics.

    Args:
        rows: cells.table at the last step. columns: the column of each row, see metric_tables.column_titles.
    """
    keys = [key for key in ("task", "eraser", "finetune") if key == "eraser" or rows[key].nunique() > 1]
    rows = rows.assign(model=rows[keys].agg(", ".join, axis=1), column=list(columns))
    groups = list(rows.groupby("column", sort=False))
    width = max(2.6, 0.95 * rows["model"].nunique())
    across = min(len(groups), max(1, int(WIDTH // width)))
    figure, axes = canvas(math.ceil(len(groups) / across), across, width, 2.9, title)
    for axis, (name, part) in zip(axes.ravel(), groups, strict=False):
        bar_panel(axis, part, "model")
        axis.set_title(textwrap.fill(str(name), int(11 * width)), fontsize=9)
    for axis in axes.ravel()[len(groups) :]:
        axis.set_visible(False)
    handles = [Patch(color=colour, label=STATES[state][0]) for state, _, colour in way(rows)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return figure


@matplotlib.rc_context(STYLE)
def concept_dots(rows: pd.DataFrame, title: str) -> Figure:
    """A dot with its interval for each model and concept; a line of panels a task, a panel a metric, grey the base.

    Of models and concepts the more numerous are listed along the panel, the others have colours; an asterisk marks
    erased concepts. After a fine-tune the erased model is an open dot without interval.

    Args:
        rows: cells.table at the last step, with a column `concept`.
    """
    names = [key for key in ("eraser", "finetune") if key == "eraser" or rows[key].nunique() > 1]
    several = rows.groupby(["task", "concept"])["role"].transform("nunique") > 1
    concepts = rows["concept"].where(~several, rows["concept"] + ", " + rows["role"])
    rows = rows.assign(model=rows[names].agg(", ".join, axis=1), concept=concepts)
    tasks, metrics = rows["task"].unique(), rows["metric"].unique()
    along, coloured = sorted(("concept", "model"), key=lambda key: -rows[key].nunique())
    looks = dict(zip(rows[coloured].unique(), itertools.product(MARKS, LINES), strict=False))
    most = max(len(part.drop_duplicates([along, coloured])) for _, part in rows.groupby("task"))
    height = max(1.8, 0.13 * most, 0.22 * rows.groupby("task")[along].nunique().max()) + 0.6
    figure, axes = canvas(len(tasks), len(metrics), 3.2, height, title)
    for i, j in np.ndindex(axes.shape):
        of_task = rows[rows["task"] == tasks[i]]
        part, listed = of_task[of_task["metric"] == metrics[j]], list(dict.fromkeys(of_task[along]))
        dots_panel(axes[i][j], part, along, coloured, looks, listed)
        erased = set(of_task.loc[of_task["role"] == "erase", "concept"])
        labels = [f"{name} *" if name in erased else name for name in listed]
        axes[i][j].set_yticks(range(len(listed)), labels if j == 0 else [""] * len(listed), fontsize=8)
        axes[i][j].set_title(textwrap.fill(f"{tasks[i]}: {title_of(metrics[j])}", 38), fontsize=9)
        axes[i][j].set_visible(len(part) > 0)  # a metric that this task does not have
    always = rows.groupby("concept")["role"].agg(lambda roles: set(roles) == {"erase"})
    handles = [Line2D([], [], linestyle="", marker="|", color=GREY, label="base")]
    handles += [Line2D([], [], linestyle="", marker=mark, color=colour, label=f"{name} *" if always.get(name) else name)
                for name, (mark, colour) in looks.items()]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=int(figure.get_figwidth() / 1.4), fontsize=9)
    return figure


def dots_panel(
    axis: Axes, rows: pd.DataFrame, along: str, coloured: str, looks: Mapping[str, Look], listed: Sequence[str]
) -> None:
    """One panel of `concept_dots`, with the names `listed` from top to bottom."""
    side = 0.4 * (1 - 1 / len(looks))
    shifts = dict(zip(looks, np.linspace(-side, side, len(looks)), strict=True))
    state = way(rows)[-1][0]
    for row, ends in zip(rows.to_dict("records"), zip(*state_errors(rows, state), strict=True), strict=True):
        place, (mark, colour) = listed.index(row[along]) + shifts[row[coloured]], looks[row[coloured]]
        axis.plot(row["base_value"], place, "|", color=GREY, markersize=6)
        if state != "erased":
            axis.plot(row["erased_value"], place, mark, color=colour, fillstyle="none", markersize=4)
        axis.errorbar(row[f"{state}_value"], place, xerr=np.array(ends)[:, None], fmt=mark, color=colour, markersize=4,
                      elinewidth=1)  # fmt: skip
    axis.set_ylim(len(listed) - 0.4, -0.6)


@matplotlib.rc_context(STYLE)
def histogram(concepts: pd.DataFrame, metric: str, title: str) -> Figure:
    """How a metric is distributed over concepts, in erased models and at a fine-tune's last step; a panel a model.

    Args:
        concepts: columns task, eraser, finetune, concept, role, column (base, erased, or a step), value. Erased
            concepts are marked, the others counted.
    """
    groups = list(concepts.groupby(["task", "eraser", "finetune"], sort=False))
    across = min(3, len(groups))
    figure, axes = canvas(math.ceil(len(groups) / across), across, 4.6, 2.9, title)
    for axis, (key, part) in zip(axes.ravel(), groups, strict=False):
        shown = {"erased": (BLUE, "erased")}
        if part["column"].iloc[-1] != "erased":
            shown[part["column"].iloc[-1]] = (ORANGE, "fine-tuned")
        edges = np.histogram_bin_edges(part.loc[part["column"].isin(shown), "value"].dropna(), 20)
        for state, (colour, label) in shown.items():
            rows = part[part["column"] == state]
            others, erased = rows[~of_erased(rows)], rows[of_erased(rows)]
            axis.hist(others["value"].dropna(), edges, histtype="step", color=colour, linewidth=1.6, label=label)
            for value in erased["value"].dropna():
                axis.axvline(value, color=colour, linestyle="--", linewidth=1)
        axis.set_title(", ".join(filter(None, key)), fontsize=9)
        axis.set_xlabel(title_of(metric), fontsize=9)
        axis.set_ylabel("concepts", fontsize=9)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes.ravel()[len(groups) :]:
        axis.set_visible(False)
    add_legend(figure, axes[0][0], 2, title="dashed: erased concepts")
    return figure
