"""Style of all figures, and writing them as SVG and PNG.

Figures are drawn from CSV or JSON files, never from images. The SVG has no dates and a fixed salt, so equal tables give
equal bytes. With several seeds a bar or line is the mean over them with its interval over concepts and seeds, and the
dots are the seeds.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resurgence.files import atomic_file

STYLE = {
    "svg.hashsalt": "resurgence", "svg.fonttype": "path", "figure.dpi": 100, "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#e4e4e4", "legend.frameon": False,
}  # fmt: skip
# Okabe and Ito's palette, distinguishable with any colour vision
GREY, BLUE, ORANGE = "#7f7f7f", "#0072B2", "#E69F00"
LINES = [BLUE, "#D55E00", "#009E73", "#CC79A7", "#56B4E9", ORANGE, "#000000", "#8c6d00"]
MARKS = "osD^vPX*"
STATES = {"base": ("base", GREY), "erased": ("erased", BLUE), "finetuned": ("fine-tuned", ORANGE)}
ROLES = {"erase": "erased concepts", "retain": "retained concepts"}
WIDTH = 16.0  # inches at 100 dpi: 1600 px at most


def errors(rows: pd.DataFrame) -> list[list[float]]:
    """Lengths of the error bars below and above the values; 0 without an interval."""
    below, above = (rows["value"] - rows["low"]).clip(lower=0), (rows["high"] - rows["value"]).clip(lower=0)
    return [below.fillna(0).tolist(), above.fillna(0).tolist()]


def panels(rows: int, columns: int, height: float, title: str, width: float) -> tuple[Figure, list[list[Axes]]]:
    """A figure of rows x columns panels, at most 1600 px wide."""
    figure = Figure(figsize=(min(WIDTH, max(6.0, width * columns + 1.4)), height * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey="row")
    figure.suptitle(title)
    return figure, axes.tolist()


def save(figure: Figure, stem: Path) -> None:
    """Write stem.svg and stem.png, each whole or not at all."""
    for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        with atomic_file(stem.with_name(f"{stem.name}.{kind}")) as temporary, matplotlib.rc_context(STYLE):
            figure.savefig(temporary, format=kind, metadata=metadata)
