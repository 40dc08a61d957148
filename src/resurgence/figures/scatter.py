"""Figures of the similarity of words by a text encoder: as a matrix, and against a metric of their images."""

from __future__ import annotations

import math

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from resurgence.analysis.concept_means import of_erased
from resurgence.analysis.headline import title_of
from resurgence.figures.experiments import canvas
from resurgence.figures.style import BLUE, ORANGE, STYLE

LABELLED = 4  # concepts at each end of the metric whose names are written


def visible(word: str) -> str:
    """A word as it is written in a figure; one of spaces alone in quotes."""
    return word if word.strip() else repr(word)


@matplotlib.rc_context(STYLE)
def scatter(concepts: pd.DataFrame, metric: str, title: str) -> Figure:
    """A point a concept, a panel a model; erased ones are orange. Named are these and those at the ends of the metric.

    Args:
        concepts: columns task, eraser, concept, role, value, similarity.
    """
    groups = list(concepts.groupby(["task", "eraser"], sort=False))
    across = min(2, len(groups))
    figure, axes = canvas(math.ceil(len(groups) / across), across, 5.2, 3.8, title)
    for axis, ((task, eraser), part) in zip(axes.ravel(), groups, strict=False):
        ranked, erased = part.sort_values("value", kind="stable"), of_erased(part)
        axis.scatter(part["similarity"], part["value"], s=18, c=np.where(erased, ORANGE, BLUE), alpha=0.8)
        named = pd.concat([ranked.head(LABELLED), ranked.tail(LABELLED), part[erased]]).drop_duplicates("concept")
        for row in named.itertuples():
            place = row.similarity, row.value
            axis.annotate(visible(row.concept), place, (3, 2), textcoords="offset points", fontsize=7)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_title(f"{task}, {eraser}", fontsize=9)
        axis.set_xlabel("cosine of CLIP's text embedding to the erased concept", fontsize=9)
        axis.set_ylabel(title_of(metric), fontsize=9)
    for axis in axes.ravel()[len(groups) :]:
        axis.set_visible(False)
    return figure


@matplotlib.rc_context(STYLE | {"axes.grid": False})
def similarity_matrix(matrix: pd.DataFrame, title: str) -> Figure:
    """Cosines of words (rows) to texts (columns), each written in its place."""
    figure, axes = canvas(1, 1, 1.2 + 0.9 * len(matrix.columns), 0.7 + 0.28 * len(matrix), title)
    axis = axes[0][0]
    image = axis.imshow(matrix, cmap="cividis", aspect="auto")
    middle = (matrix.to_numpy().min() + matrix.to_numpy().max()) / 2
    for (i, j), value in np.ndenumerate(matrix.to_numpy()):
        colour = "black" if value > middle else "white"
        axis.annotate(f"{value:.2f}", (j, i), ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(matrix.columns)), [*map(visible, matrix.columns)], fontsize=8)
    axis.set_yticks(range(len(matrix)), [*map(visible, matrix.index)], fontsize=8)
    figure.colorbar(image, ax=axis, label="cosine of CLIP's text embeddings")
    return figure
