"""The roles of a task's prompts (erase, retain, ...), with the random units of their images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from resurgence.analysis.random_effects import Units, units_of
from resurgence.analysis.score_sets import ROLES, ImageSet


@dataclass(frozen=True)
class Role:
    """The rows of one role, the same in all image sets of a task, and their random units."""

    mask: np.ndarray  # (n,) bool
    units: Units
    name: tuple  # roles of the same concepts have the same units: the erased ones and their synonyms
    labels: Mapping[str, str]  # columns of its rows: role, and concept if each is by itself


def roles_of(base: ImageSet, each_concept: bool = False) -> dict[str, Role]:
    """The random units of each role of a task, or of each concept of each role, the same for all its image sets."""
    roles = {}
    for role in [r for r in ROLES if (base.rows["role"] == r).any()]:
        mask = (base.rows["role"] == role).to_numpy()
        concepts = concepts_of(base.rows[mask])
        units = units_of_role(base.rows[mask], concepts)
        names = sorted(set(concepts)) if units.kind == "concept" else [role]
        if not each_concept:
            roles[role] = Role(mask, units, (base.key["base"], base.key["task"], *names), {"role": role})
            continue
        for concept in [name for name in dict.fromkeys(base.rows.loc[mask, "concept"]) if name]:
            part = mask & (base.rows["concept"] == concept).to_numpy()
            name = (base.key["base"], base.key["task"], role, concept)
            labels = {"role": role, "concept": concept}
            units = units_of_role(base.rows[part], concepts_of(base.rows[part]))
            roles[f"{role}: {concept}"] = Role(part, units, name, labels)
    return roles


def units_of_role(rows: pd.DataFrame, concepts: pd.Series) -> Units:
    """The random units of rows of one role: their concepts, or pairs of prompt and seed.

    Of general prompts with fewer seeds than these, as a list in which each prompt has the seeds 1 to 4: the noises.
    Images of one noise resemble each other under any prompt, often as much as those of one concept, and the prompts
    are then fixed; a single noise is fixed itself. Seeds of erased and retained concepts are drawn for each image, or
    those of a published list.
    """
    units = units_of(concepts)
    if (rows["role"] == "general").all() and 1 < rows["seed"].nunique() < units.number:
        seeds, codes = np.unique(rows["seed"].to_numpy(), return_inverse=True)
        return Units(codes.astype(np.int64), len(seeds), "noise")
    return units


def concepts_of(rows: pd.DataFrame) -> pd.Series:
    """The concept of each row of a role; of general prompts of no concept, or of a single one, if some have several
    images, the prompt: the images of a prompt are no more independent than those of a concept."""
    general = rows["role"] == "general"
    if rows.loc[general, "concept"].nunique() > 1:
        general &= rows["concept"] == ""
    repeats = rows.loc[general, "prompt"].duplicated().any()
    return rows["concept"].mask(general, rows["prompt"]) if repeats else rows["concept"]


def part_name(images: ImageSet, role: str, metric: str) -> tuple:
    """The name of a metric of a role of an image set: equal names are equal numbers."""
    return (*images.key.values(), role, metric)
