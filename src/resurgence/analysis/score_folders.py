"""Which folders hold the scores of which model and step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from resurgence.config.model_path import ModelPath


def entry(block: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The keys of a model's cell, its state, and the folder of its scores, from its name.

    The model of a control eraser, which changes nothing, is the base: its scores are those of the base.
    """
    path = ModelPath.parse(model)
    control = path.state == "erased" and path.steps[-1].method in block["controls"]
    shown = path.base if control else path
    return {"base": block["base"], **path.columns(), "path": f"results/scores/{block['base']}/{shown}/scores"}


def by_step(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each image set: the folders of a model's scores are named step-NNNNNN."""
    found = []
    for one in entries:
        folders = sorted(Path(one["path"]).glob("step-*"))
        if not folders:
            raise FileNotFoundError(f"{one['path']} holds no step-*; score this model first")
        for folder in folders:
            step = {"step": int(folder.name.removeprefix("step-"))} if one["state"] == "finetuned" else {}
            found.append({**one, **step, "path": folder.as_posix()})
    return found
