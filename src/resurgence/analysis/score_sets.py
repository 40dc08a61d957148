"""Image sets of scores: what one model made of a task's prompts, with the keys of its cell.

All sets of a task must have the same prompts and seeds, so that their units are paired (random_effects.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resurgence.scorers import read_scores

KEYS = [
    "base", "task", "eraser", "variant", "erase_seed", "finetune", "finetune_variant", "finetune_seed",
]  # fmt: skip
KEYS_OF = {"base": KEYS[:2], "erased": KEYS[:5], "finetuned": [*KEYS, "step"]}
STATES = list(KEYS_OF)
ROLES = ["erase", "synonym", "retain", "synonym-retain", "general", "all"]
PAIR = ["role", "concept", "prompt", "seed"]


@dataclass(frozen=True)
class ImageSet:
    """The scores of one image set: its keys (KEYS, state, step), rows in the order of PAIR, features in that order."""

    key: dict[str, Any]
    rows: pd.DataFrame
    features: np.ndarray | None = None  # (n, F)


def image_set(key: Mapping[str, Any], rows: pd.DataFrame, features: np.ndarray | None = None) -> ImageSet:
    """An image set with keys and rows checked, and rows sorted.

    Synonyms of concepts that are not erased become the role `synonym-retain`: in Acc_g of H_o only the synonyms of
    erased concepts count.

    Raises:
        ValueError: a key is missing, or two rows have the same prompt and seed.
    """
    state = key.get("state")
    if state not in KEYS_OF:
        raise ValueError(f"state = {state!r} of {dict(key)}; known: {', '.join(KEYS_OF)}")
    if missing := [name for name in KEYS_OF[state] if key.get(name) in (None, "")]:
        raise ValueError(f"{state} image set {dict(key)} has no {', '.join(missing)}; add the keys of its cell")
    rows = rows.reset_index(drop=True).assign(concept=rows["concept"].fillna("").to_numpy())
    erased = rows.loc[rows["role"] == "erase", "concept"].unique()
    retained = (rows["role"] == "synonym") & ~rows["concept"].isin(erased)
    rows.loc[retained, "role"] = "synonym-retain"
    rows = rows.sort_values(PAIR, kind="stable")
    if (repeated := rows.duplicated(["role", "prompt", "seed"])).any():
        raise ValueError(f"{name_of(key)} scores twice: {pairs(rows[repeated])}; sample and score it again")
    full = {name: key.get(name) if name in KEYS_OF[state] else None for name in [*KEYS, "step"]}
    features = None if features is None else np.asarray(features)[rows.index]
    return ImageSet({**full, "state": state}, rows.reset_index(drop=True), features)


def name_of(key: Mapping[str, Any]) -> str:
    """An image set in words, for messages."""
    return f"{key['state']} " + " ".join(f"{k}={key[k]}" for k in KEYS_OF[key["state"]])


def pairs(rows: pd.DataFrame, most: int = 3) -> str:
    """The prompt and seed of the first few rows."""
    texts = [f"({p!r}, seed {s})" for p, s in zip(rows["prompt"][:most], rows["seed"][:most], strict=True)]
    return ", ".join(texts) + (f" and {len(rows) - most} more" if len(rows) > most else "")


def read_states(entries: Iterable[Mapping[str, Any]], features: str | None = None) -> list[ImageSet]:
    """Read the scores of every image set.

    Args:
        entries: the keys of the cell (those that its state has), `state`, `step` and `path` (scores folder).
        features: scorer whose features the Fréchet distance uses; None: the only one with stored features.

    Raises:
        ValueError: no features of this scorer, or of several scorers without `features`.
    """
    sets = []
    for entry in entries:
        rows, stored = read_scores(Path(entry["path"]))
        if features is None and len(stored) > 1:
            raise ValueError(f"{entry['path']} holds features of {', '.join(sorted(stored))}; say which to use")
        if features is not None and features not in stored:
            raise ValueError(f"{entry['path']} holds no features of {features!r}; score this image set again")
        sets.append(image_set(entry, rows, stored[features] if features else next(iter(stored.values()), None)))
    return sets


def check_pairs(sets: Sequence[ImageSet]) -> None:
    """Raise ValueError unless all image sets have the same prompts and seeds as the first, of a task its base."""
    first, *others = sets
    first_pairs = pd.MultiIndex.from_frame(first.rows[PAIR])
    for other in others:
        other_pairs = pd.MultiIndex.from_frame(other.rows[PAIR])
        if other_pairs.equals(first_pairs):
            continue
        missing, extra = first.rows[~first_pairs.isin(other_pairs)], other.rows[~other_pairs.isin(first_pairs)]
        short, full = (other, first) if len(missing) else (first, other)
        lacking = pairs(missing if len(missing) else extra)
        raise ValueError(f"{name_of(short.key)} lacks {lacking} of {name_of(full.key)}; sample and score it again")
