"""Movement of the weights by erasing and fine-tuning: does fine-tuning undo the erasing update?

With theta_b, theta_e, theta_f the weights of base, erased and fine-tuned model, d = theta_e - theta_b the update of
erasing and u = theta_f - theta_e that of fine-tuning:
  erased_distance     |d| / |theta_b|
  finetuned_distance  |theta_f - theta_b| / |theta_b|
  update_distance     |u| / |theta_b|
  cosine              cos(u, -d): 1 if fine-tuning moves straight towards the base
  undone              <u, -d> / |d|^2: the share of the erasing update that fine-tuning reverses
Each for groups of parameters. The paper supposes that erasing moves the weights too little to last, without measuring
it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from resurgence.analysis.ranks import mean_ranks, order_of, rank_correlation
from resurgence.seeds import numpy_generator

if TYPE_CHECKING:
    import torch

Weights = Mapping[str, "torch.Tensor"]
MEASURES = ("erased_distance", "finetuned_distance", "update_distance", "cosine", "undone")
BLOCK = re.compile(r"unet\.(down_blocks|mid_block|up_blocks)(?:\.(\d+))?")


def groups_of(name: str, changed: bool) -> list[str]:
    """The groups that a parameter belongs to.

    all; erased (those that erasing changed); key and value (of the cross-attentions); text_encoder; and, of those that
    erasing changed, the block of the UNet, down_blocks.0 and so on.
    """
    groups = ["all"] + (["erased"] if changed else [])
    if name.endswith("attn2.to_k.weight"):
        groups.append("key")
    if name.endswith("attn2.to_v.weight"):
        groups.append("value")
    if name.startswith("text_encoder."):
        groups.append("text_encoder")
    if changed and (block := BLOCK.match(name)):
        groups.append(".".join(filter(None, block.groups())))
    return groups


def geometry(base: Weights, erased: Weights, finetuned: Weights) -> dict[str, dict[str, float]]:
    """Group -> MEASURES of three models with the same parameter names; sums in float64.

    A measure that is not defined (no erasing update in the group, no fine-tuning update) is NaN.
    """
    sums: dict[str, np.ndarray] = {}
    for name, theta in base.items():  # tensor by tensor: the mappings may compute them when they are read
        b, e = theta.detach().double(), erased[name].detach().double()
        d, u = e - b, finetuned[name].detach().double() - e
        del e
        pairs = ((b, b), (d, d), (u, u), (d + u, d + u), (-d, u))
        parts = np.array([float((x * y).sum()) for x, y in pairs])
        for group in groups_of(name, bool(parts[1] > 0)):
            sums[group] = sums.get(group, np.zeros(5)) + parts
    return {group: measures(*values) for group, values in sums.items()}


def measures(bb: float, dd: float, uu: float, ff: float, back: float) -> dict[str, float]:
    """MEASURES from the squared norms of theta_b, d, u, d + u and the product <u, -d>."""
    norm = math.sqrt(bb) if bb > 0 else math.nan
    return {
        "erased_distance": math.sqrt(dd) / norm,
        "finetuned_distance": math.sqrt(ff) / norm,
        "update_distance": math.sqrt(uu) / norm,
        "cosine": back / math.sqrt(dd * uu) if dd > 0 and uu > 0 else math.nan,
        "undone": back / dd if dd > 0 else math.nan,
    }


def correlations(
    cells: pd.DataFrame, value: str, columns: Iterable[str], resamples: int, level: float, seed: int
) -> pd.DataFrame:
    """Spearman's rank correlation of each column with `value` over cells, with a percentile interval.

    The models that were fine-tuned from one eraser's model of one task are resampled together.

    Args:
        cells: a row a cell, with the columns task, eraser, `value` and `columns`.
    """
    rows = []
    for column in columns:
        known = cells[[value, column, "task", "eraser"]].dropna().reset_index(drop=True)
        x, y = (order_of(known[name]) for name in (column, value))
        clusters = [part.index.to_numpy() for _, part in known.groupby(["task", "eraser"], sort=True)]
        row = {"measure": column, "n": len(known), "clusters": len(clusters)}
        if len(clusters) < 4 or known[column].nunique() < 2 or known[value].nunique() < 2:
            rows.append(row | dict.fromkeys(("rho", "low", "high"), math.nan))
            continue
        generator, replicates = numpy_generator("correlation", seed, column), []
        for _ in range(resamples):
            chosen = np.concatenate([clusters[k] for k in generator.integers(0, len(clusters), len(clusters))])
            a, b = x[chosen], y[chosen]
            if np.ptp(a) > 0 and np.ptp(b) > 0:
                replicates.append(np.corrcoef(mean_ranks(a), mean_ranks(b))[0, 1])
        low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
        rows.append(row | {"rho": rank_correlation(x, y), "low": float(low), "high": float(high)})
    return pd.DataFrame(rows, columns=["measure", "n", "clusters", "rho", "low", "high"])


def within_tasks(cells: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Each column as ranks within its task, from 0 to 1, for correlations that do not compare tasks.

    Tasks with fewer than three erasers are left out: most of their variation is that over seeds.
    """
    ranks = cells[cells.groupby("task")["eraser"].transform("nunique") >= 3].copy()
    for column in columns:
        groups = ranks.groupby("task")[column]
        ranks[column] = (groups.rank() - 0.5) / groups.transform("count")
    return ranks
