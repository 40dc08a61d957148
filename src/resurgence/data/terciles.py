"""Thirds of candidate concepts by their CLIP similarity to the erased concepts (figure 9, tables 1 and 2).

The similarity of a candidate is the cosine of its name's CLIP text embedding to the nearest erased concept (`max`, the
paper's text) or to the farthest (`min`, its appendix). The thirds are intervals of equal width between the smallest and
the largest similarity (`width`, the authors' code) or have equally many candidates (`count`, "evenly sized" in the
text). The first third is the least similar.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from resurgence.seeds import generator


def similarities(erased: torch.Tensor, candidates: torch.Tensor, which: str) -> NDArray[np.float64]:
    """Similarity (N,) of candidates (N, d) to erased concepts (E, d), all embeddings of length 1."""
    cosines = candidates.double() @ erased.double().T  # (N, E)
    return (cosines.amax(1) if which == "max" else cosines.amin(1)).numpy()


def terciles(values: NDArray[np.float64], bins: str) -> NDArray[np.int64]:
    """The third, 1 to 3, of each of the similarities (N,).

    Raises:
        ValueError: fewer than three candidates, or all equally similar where the thirds have equal width.
    """
    if len(values) < 3:
        raise ValueError(f"{len(values)} candidates have no terciles; name at least three")
    if bins == "count":
        ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
        return ranks * 3 // len(values) + 1
    edges = np.linspace(values.min(), values.max(), 4)
    if edges[0] == edges[-1]:
        raise ValueError("all candidates are equally similar to the erased concepts; name others")
    return np.clip(np.searchsorted(edges, values, side="right"), 1, 3)


def draw_concepts(names: Sequence[str], size: int, seed: int, task: str) -> list[str]:
    """`size` of the names in alphabetical order, drawn without replacement; all where there are fewer."""
    order = torch.randperm(len(names), generator=generator("tercile", seed, task)).tolist()
    return sorted(sorted(names)[position] for position in order[:size])
