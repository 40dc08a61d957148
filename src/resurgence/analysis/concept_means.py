"""A metric of each concept: in the base, in erased models and at each checkpoint of fine-tuning."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pandas as pd

from resurgence.analysis.concept_places import concept_values, similarities
from resurgence.analysis.headline import number
from resurgence.analysis.ranks import rank_correlation
from resurgence.analysis.score_sets import ImageSet
from resurgence.config.model_path import method_name


def by_concept(sets: list[ImageSet], metric: str, roles: Sequence[str] = ("erase",)) -> pd.DataFrame:
    """A metric of each concept of the roles in the base, the erased model and each checkpoint, if any is fine-tuned.

    The mean over seeds of `concept_values`; columns task, eraser, finetune, concept, column, value, n, role.
    """
    parts = [
        concept_values(images, metric, role).assign(**images.key, role=role)
        for images, role in itertools.product(sets, roles)
    ]
    every = pd.concat(parts, ignore_index=True)
    tables = []
    names = ["task", "eraser", "variant", "finetune", "finetune_variant"]
    last = every[every["state"] == "finetuned"]
    if last.empty:
        last = every[every["state"] == "erased"].assign(finetune="", finetune_variant="")
    for key, tuned in last.groupby(names, sort=False):
        task, eraser, variant, finetune, finetune_variant = key
        models = every[every["task"] == task]
        erased = models[(models["state"] == "erased") & (models["eraser"] == eraser) & (models["variant"] == variant)]
        states = {"base": models[models["state"] == "base"], "erased": erased}
        states |= {str(int(step)): part for step, part in tuned.groupby("step")}
        groups = pd.concat(states, names=["column"]).groupby(["column", "role", "concept"], sort=False)
        means = groups.agg(value=("value", "mean"), n=("n", "sum")).reset_index()
        shown = {"eraser": method_name(eraser, variant), "finetune": method_name(finetune, finetune_variant)}
        tables.append(means.assign(task=task, **shown))
    columns = ["task", "eraser", "finetune", "concept", "column", "value", "n", "role"]
    return pd.concat(tables, ignore_index=True)[columns]


def with_similarity(concepts: pd.DataFrame, sets: list[ImageSet]) -> pd.DataFrame:
    """Rows of `by_concept` with the column `similarity`: of the word to the nearest erased concept of the task."""
    of = {(images.key["task"], word): value for images in sets for word, value in similarities(images).items()}
    keys = zip(concepts["task"], concepts["concept"], strict=True)
    return concepts.assign(similarity=[of[key] for key in keys])


def of_erased(concepts: pd.DataFrame) -> pd.Series:
    """Whether each row of `by_concept` is of an erased concept of its task, or a general prompt that is its word; of
    the erased concepts that have rows."""
    words = pd.MultiIndex.from_frame(concepts[["task", "concept"]])
    return pd.Series(words.isin(words[concepts["role"] == "erase"]), concepts.index)


def agreement(concepts: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of value and similarity over the concepts that a model does not erase, as text; a
    dash where one of the two does not vary."""
    rows = []
    for (task, eraser), part in concepts.groupby(["task", "eraser"], sort=False):
        known = part[~of_erased(part)].dropna(subset=["similarity", "value"])
        x, y = (known[column].to_numpy() for column in ("similarity", "value"))
        rho = rank_correlation(x, y) if min(len(set(x)), len(set(y))) > 1 else math.nan
        rows.append({"task": task, "eraser": eraser, "concepts": str(len(known)), "rank correlation": number(rho)})
    return pd.DataFrame(rows)


def extremes(concepts: pd.DataFrame, most: int = 5) -> pd.DataFrame:
    """The concepts with the lowest and the highest values of `by_concept`, of each model but the base, as text.

    Concepts without a value are in neither list.
    """
    rows = []
    for key, part in concepts[concepts["column"] != "base"].groupby(
        ["task", "eraser", "finetune", "column"], sort=False
    ):
        ranked = part.dropna(subset="value").sort_values("value", kind="stable")
        texts = [f"{name} {number(value)}" for name, value in zip(ranked["concept"], ranked["value"], strict=True)]
        names = dict(zip(("task", "eraser", "fine-tune", "state or step"), key, strict=True))
        rows.append({**names, "lowest": ", ".join(texts[:most]), "highest": ", ".join(texts[::-1][:most])})
    return pd.DataFrame(rows)


def lost_concepts(concepts: pd.DataFrame) -> str:
    """Which concepts no image shows at the last step of a fine-tune.

    Args:
        concepts: columns as those of `by_concept`, of a metric that is the share of images that show the concept.
    """
    lines = []
    for (task, eraser, finetune), part in concepts.groupby(["task", "eraser", "finetune"], sort=False):
        last = part[part["column"] == part["column"].iloc[-1]]
        lost = sorted(last.loc[last["value"] == 0, "concept"])
        names = ", ".join(lost) or "none"
        share = f"{len(lost)} of {len(last)} concepts"
        lines.append(
            f"- {task}, {eraser} + {finetune}: {share} are in none of these images at the last step ({names})."
        )
    return "\n".join(lines)
