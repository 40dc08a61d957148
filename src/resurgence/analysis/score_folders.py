"""Which folders hold the scores of which model and step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def entry(block: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The keys of a model's cell, its state, and the folder of its scores, from its name.

    The model of a control eraser, which changes nothing, is the base: its scores are those of the base.
    """
    parts = model.split("/")
    found = {"base": block["base"], "task": parts[0], "state": "base"}
    if len(parts) > 1:
        eraser, _, variant = parts[1].partition(".")
        found |= {"eraser": eraser, "variant": variant or "default", "erase_seed": int(parts[2][1:]), "state": "erased"}
    if len(parts) > 3:
        finetune, _, variant = parts[3].partition(".")
        found |= {"finetune": finetune, "finetune_variant": variant or "default", "finetune_seed": int(parts[4][1:])}
        found["state"] = "finetuned"
    control = found["state"] == "erased" and found["eraser"] in block["controls"]
    return found | {"path": f"results/scores/{block['base']}/{parts[0] if control else model}/scores"}


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
