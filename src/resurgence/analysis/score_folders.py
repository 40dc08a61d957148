"""The folders that hold the scores of each model and step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from resurgence.config.model_path import ModelPath


def entry(block: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The keys of a model's cell, its state, and the folder of its scores, from its name.

    A control eraser changes nothing, so the scores of its model are those of the base.
    """
    path = ModelPath.parse(model)
    control = path.state == "erased" and path.steps[-1].method in block["controls"]
    scored = path.base if control else path
    return {"base": block["base"], **path.columns(), "path": f"results/scores/{block['base']}/{scored}/scores"}


def by_step(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each image set, in the folders step-NNNNNN of a model's scores.

    Raises:
        FileNotFoundError: a model without scores.
    """
    sets = []
    for model in entries:
        folders = sorted(Path(model["path"]).glob("step-*"))
        if not folders:
            raise FileNotFoundError(f"{model['path']} holds no step-*; score this model first")
        for folder in folders:
            step = {"step": int(folder.name.removeprefix("step-"))} if model["state"] == "finetuned" else {}
            sets.append({**model, **step, "path": folder.as_posix()})
    return sets
