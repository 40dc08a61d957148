"""The starter sets: pictures that no model made, of concepts that tasks fine-tune on, by artists that no base has seen.

Each kind of task has a Parquet image set of its own. The compositions are new too: drawings, some mirrored, smaller
and off the centre. `resurgence finetune` reads the files as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from resurgence.config.task import Task
from resurgence.config.word_sets import check_word_sets
from resurgence.diffusion.image_sets import write_image_set
from resurgence.files import atomic_file
from resurgence.miniature.captions import CaptionConfig, caption, draw, read_templates
from resurgence.miniature.compositions import compose, uniform
from resurgence.miniature.drawings import load_drawings, load_world
from resurgence.seeds import generator

COLUMNS = ["prompt", "concept", "artist", "icon"]


def starter_pictures(drawings: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """Place RGBA drawings, uint8 (B, 4, H, W), half of them mirrored, on light backgrounds: uint8 (B, 3, H, W).

    In front of a sky above a ground, which no picture of the base's training has, even a LoRA at a quarter of the usual
    learning rate makes the base forget one concept in five.
    """
    mirrored = uniform((len(drawings), 1, 1, 1), 0, 1, draws) < 0.5
    drawings = torch.where(mirrored, drawings.flip(-1), drawings)
    images = compose(drawings, draws, degrees=12, scale=(0.72, 0.98), shift=0.06)
    return ((images + 1) * 127.5).round().to(torch.uint8)


def starter_concepts(tasks: Sequence[Task], world: dict) -> dict[str, list[str]]:
    """Kind of task -> concepts that its tasks fine-tune on.

    Raises:
        ConfigError: a concept shares a word with one that a task of the kind erases or retains.
    """
    concepts: dict[str, dict[str, None]] = {}
    for task in tasks:
        concepts.setdefault(task.kind, {}).update(dict.fromkeys(task.finetune))
    for task in tasks:
        sets = {f"{task.name}: erase": task.erase, f"{task.name}: retain": task.retain}
        for name, members in sets.items():
            check_word_sets({name: members, f"the starter set {task.kind}": concepts[task.kind]}, world, task.synonyms)
    return {kind: list(names) for kind, names in concepts.items() if names}


def starter_rows(table: pd.DataFrame, names: Sequence[str], templates: Sequence[str], cfg: dict) -> pd.DataFrame:
    """Draw a drawing and a caption for each picture: COLUMNS, and `row`, the position of the drawing in the table.

    Args:
        table: of the drawings (concept, artist, icon, split). cfg: splits of the drawings, and images per concept.

    Raises:
        ValueError: a concept without a drawing in these splits.
    """
    rows = []
    held_out = table[table["split"].isin(cfg["splits"])]
    for name in names:
        drawings = held_out.index[held_out["concept"] == name]
        if drawings.empty:
            raise ValueError(f"starter.splits = {cfg['splits']}: no drawing of {name!r}; name further splits")
        draws = generator("starter", name)
        for _ in range(cfg["images"]):
            row = int(drawings[draw(len(drawings), draws)])
            text = caption({"name": name}, None, templates, CaptionConfig(), draws)
            rows.append((text, name, table["artist"][row], table["icon"][row], row))
    return pd.DataFrame(rows, columns=[*COLUMNS, "row"])


def main(concepts: Path, templates: Path, drawings: Path, tasks: Sequence[Task], out: Path, cfg: dict) -> None:
    """Write KIND.parquet for each kind of task whose tasks fine-tune on concepts, and index.csv with all rows.

    Args:
        cfg: splits, whose artists and poses no training of the base may draw; images, of each concept.
    """
    world, (table, rgba) = load_world(concepts), load_drawings(drawings)
    sentences = read_templates(templates)
    tables = []
    for kind, names in starter_concepts(tasks, world).items():
        rows = starter_rows(table, names, sentences, cfg)
        pixels = starter_pictures(rgba[rows["row"].tolist()], generator("starter", "pictures", kind))
        images = (Image.fromarray(np.ascontiguousarray(image)) for image in pixels.permute(0, 2, 3, 1).numpy())
        write_image_set(out / f"{kind}.parquet", rows[COLUMNS], enumerate(images))
        tables.append(rows[COLUMNS].assign(kind=kind))
    with atomic_file(out / "index.csv") as temporary:
        pd.concat(tables).to_csv(temporary, index=False)
