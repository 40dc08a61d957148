"""Write the figure and the table of growth into docs/performance.md, from docs/growth.csv.

    python benchmarks/growth.py     measures again
    python docs/performance.py      writes the part

No number of the part is typed by hand.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from methods import picture
from parts import fill

from resurgence.analysis.headline import markdown_table, number
from resurgence.figures.style import LINES, MARKS, STYLE, panels, save

DOCS = Path(__file__).parent
NUMBERS = {"erased concepts": "concepts", "captions of a concept": "captions", "cross-attentions": "cross_attentions"}
SHOWN = {"cpu_seconds": "CPU seconds", "peak_mib": "MiB at the peak"}


@matplotlib.rc_context(STYLE)
def drawn(table: pd.DataFrame) -> Figure:
    """A column for each number that grows, a line for each closed form; both axes are logarithmic."""
    figure, axes = panels(len(SHOWN), len(NUMBERS), 2.6, "Growth of the closed forms", 3.4)
    for line, (column, label) in zip(axes, SHOWN.items(), strict=True):
        for axis, (grows, count) in zip(line, NUMBERS.items(), strict=True):
            for k, (name, part) in enumerate(table[table["grows"] == grows].groupby("closed_form", sort=False)):
                axis.loglog(part[count], part[column], color=LINES[k], marker=MARKS[k], label=name, markersize=4)
            values = sorted(set(table.loc[table["grows"] == grows, count]))
            axis.set_xticks(values, [str(value) for value in values])
            axis.set_xticks([], minor=True)
            axis.set_xlabel(grows)
        line[0].set_ylabel(label)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    return figure


def summary(table: pd.DataFrame) -> str:
    """A row for each case, a column for each closed form: seconds, and mebibytes at the peak."""
    lines = []
    for (_, *counts), part in table.groupby(["grows", *NUMBERS.values()], sort=False):
        cells = {str(r.closed_form): f"{number(r.cpu_seconds)} s, {number(r.peak_mib)} MiB" for r in part.itertuples()}
        lines.append(dict(zip(NUMBERS, counts, strict=True)) | {"passes": int(part["passes"].max())} | cells)
    return markdown_table(pd.DataFrame(lines))


def growth(table: pd.DataFrame) -> str:
    """How many times the seconds and the bytes of each closed form grow between the two largest values of a number."""
    lines = []
    for name, form in table.groupby("closed_form", sort=False):
        line = {"closed form": name}
        for grows, count in NUMBERS.items():
            last = form[form["grows"] == grows].tail(2).set_index(count)
            few, many = last.index
            cells = (f"{label} x {last[column].iloc[1] / last[column].iloc[0]:.2f}" for column, label in SHOWN.items())
            line[f"{grows}: {few} to {many}"] = ", ".join(cells)
        lines.append(line)
    return markdown_table(pd.DataFrame(lines))


def main() -> None:
    """Write both."""
    table = pd.read_csv(DOCS / "growth.csv")
    with tempfile.TemporaryDirectory() as folder:
        save(drawn(table), Path(folder) / "growth")
        picture(Path(folder) / "growth.png", DOCS / "images/growth.png")
    fill(DOCS / "performance.md", {"growth": f"{summary(table)}\n\n{growth(table)}"})


if __name__ == "__main__":
    main()
