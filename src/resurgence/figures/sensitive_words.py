"""Figure of the words that an erasure changes most, by EAP's search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from resurgence.figures.style import BLUE, GREY, STYLE
from resurgence.files import read_json

COLUMNS = 5
TEXTS = {True: "probability after the search", False: "cosine to where the search ended"}


def read_words(folders: Mapping[str, str]) -> tuple[pd.DataFrame, dict[str, list[tuple[str, float]]]]:
    """The words that searches ended at, as a table and as the panels of `words_figure`.

    Args:
        folders: "task, eraser" -> folder of the erased model, which holds sensitive.json.

    Returns:
        Columns task, eraser, concept, rank, word, value; and concept and title -> (word, value).
    """
    rows, panels = [], {}
    for title, folder in folders.items():
        task, eraser = title.split(", ")
        for concept, ranked in read_json(Path(folder) / "sensitive.json").items():
            panels[f"{concept}\n{title}"] = ranked
            rows += [(task, eraser, concept, rank, *of) for rank, of in enumerate(ranked, 1)]
    return pd.DataFrame(rows, columns=["task", "eraser", "concept", "rank", "word", "value"]), panels


@matplotlib.rc_context(STYLE)
def words_figure(words: Mapping[str, Sequence[tuple[str, float]]], most: int = 10) -> Figure:
    """A panel for each erased concept: its most probable words under pi, and the uniform probability as a line.

    Args:
        words: concept -> (word, probability), the most probable first; or, where the search was no search of words,
            (word, cosine), which do not sum to 1 and have no line.
    """
    columns = min(COLUMNS, len(words))
    lines = -(-len(words) // columns)
    figure = Figure(figsize=(max(5.0, 3.0 * columns), 0.8 + (0.7 + 0.2 * most) * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    chances = [math.isclose(sum(value for _, value in ranked), 1, rel_tol=1e-3) for ranked in words.values()]
    shown = {chance: text for chance, text in TEXTS.items() if chance in chances}
    figure.suptitle(f"Words that the erasure changes most: {', or '.join(shown.values())}")
    for axis, (concept, ranked), chance in zip(axes, words.items(), chances, strict=False):
        top = ranked[:most]
        axis.barh(range(len(top)), [probability for _, probability in top], color=BLUE)
        if chance:
            axis.axvline(1 / len(ranked), color=GREY, linestyle="--", linewidth=1)
        axis.set_yticks(range(len(top)), [word for word, _ in top], fontsize=8)
        axis.invert_yaxis()
        axis.tick_params(labelbottom=True)
        axis.grid(axis="y", visible=False)
        axis.set_title(concept, fontsize=10)
    for axis in axes[len(words) :]:
        axis.set_visible(False)
    return figure
