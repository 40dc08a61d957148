"""Figures of tables of several metrics, and of a metric over many concepts."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from resurgence.analysis.concept_means import of_erased
from resurgence.analysis.headline import title_of
from resurgence.figures.experiments import add_legend, bar_panel, canvas, way
from resurgence.figures.style import BLUE, ORANGE, STATES, STYLE, WIDTH


@matplotlib.rc_context(STYLE)
def metric_bars(rows: pd.DataFrame, columns: Sequence[str], title: str) -> Figure:
    """Bars base, erased, fine-tuned of each model; a panel for each column of a table of metrics.

    Args:
        rows: claims.table at the last step. columns: the column of each row, see metric_tables.column_titles.
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
