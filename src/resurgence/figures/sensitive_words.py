"""Picture of the words that an erasure changes most, as EAP's search found them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from resurgence.figures.style import BLUE, GREY, STYLE, save

COLUMNS = 5


def picture(words: Mapping[str, Sequence[tuple[str, float]]], most: int = 10) -> Figure:
    """A panel for each erased concept: its most probable words under pi, beside what chance would give.

    Args:
        words: concept -> (word, probability), the most probable first.
    """
    columns = min(COLUMNS, len(words))
    lines = -(-len(words) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(5.0, 3.0 * columns), 0.8 + (0.7 + 0.2 * most) * lines), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
        figure.suptitle("Words that the erasure changes most: probability after the search")
        for axis, (concept, found) in zip(axes, words.items(), strict=False):
            shown = found[:most]
            axis.barh(range(len(shown)), [chance for _, chance in shown], color=BLUE)
            axis.axvline(1 / len(found), color=GREY, linestyle="--", linewidth=1)
            axis.set_yticks(range(len(shown)), [word for word, _ in shown], fontsize=8)
            axis.invert_yaxis()
            axis.tick_params(labelbottom=True)
            axis.grid(axis="y", visible=False)
            axis.set_title(concept, fontsize=10)
        for axis in axes[len(words) :]:
            axis.set_visible(False)
    return figure


def save_picture(words: Mapping[str, Sequence[tuple[str, float]]], folder: Path) -> None:
    """Write sensitive.svg and sensitive.png."""
    save(picture(words), folder / "sensitive")
