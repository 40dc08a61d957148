"""Figure of a search over settings: what each erased model leaves and keeps."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from resurgence.analysis.tuning import CHOSEN, LEAST_KEPT
from resurgence.figures.experiments import add_legend, canvas
from resurgence.figures.style import GREY, LINES, MARKS, STYLE


@matplotlib.rc_context(STYLE)
def tuning(table: pd.DataFrame, title: str) -> Figure:
    """A point a setting, its name beside it, a colour an eraser; the chosen ones are filled.

    Args:
        table: of `tuning_table`.
    """
    figure, axes = canvas(1, 1, 6.4, 4.4, title)
    axis = axes[0][0]
    axis.axvline(LEAST_KEPT, color=GREY, linestyle="--", label=f"{LEAST_KEPT:g} % kept")
    methods = table["eraser"].str.partition(".")[0]
    for number, (method, part) in enumerate(table.groupby(methods, sort=False)):
        colour, mark = LINES[number % len(LINES)], MARKS[number % len(MARKS)]
        faces = [colour if choice == CHOSEN else "none" for choice in part["choice"]]
        axis.scatter(part["kept"], part["left"], s=36, marker=mark, facecolors=faces, edgecolors=colour, label=method)
        for row in part.itertuples():
            name = str(row.eraser).partition(".")[2] or "default"
            axis.annotate(name, (row.kept, row.left), (4, 3), textcoords="offset points", fontsize=7)
    axis.set_xlabel("retained concepts, least of the tasks (% of the base)")
    axis.set_ylabel("erased concepts, mean of the tasks (%)")
    add_legend(figure, axis, 6, fontsize=8)
    return figure
