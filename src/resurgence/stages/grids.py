"""Grids of images: rows are prompts, columns base, erased and fine-tuned models at the same seed; and the masks."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from resurgence.diffusion.image_sets import image_files, read_image_set, read_rows
from resurgence.figures.image_grids import first_rows, mask_grid, sample_grid, save
from resurgence.stages.job import Job, start

ROLES = {"erase": "erased", "retain": "retained"}


def shown(prompts: pd.DataFrame) -> list[int]:
    """The rows that the grids show; the images of a large set do not fit in memory for every model."""
    return [row for role in ROLES for row in first_rows(prompts, role)]


@cache
def last_images(folder: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Prompts and images of the rows that are shown, of a model at its last step."""
    steps = image_files(Path(folder))
    rows, images = read_rows(steps[max(steps)], shown)
    return rows, images.numpy()


def save_masks(task: str, pictured: Path, masked: Path, out: Path) -> None:
    """The concept images of a task beside their masks."""
    rows, images = read_image_set(pictured / "images.parquet")
    masks = load_file(masked / "masks.safetensors")
    index = rows.groupby("concept", sort=False).indices
    pictures = {concept: images.numpy()[places] for concept, places in index.items()}
    save(mask_grid(pictures, masks, title=f"{task}: masks of the erased concepts"), out)


def make(job: Job) -> None:
    """Write a grid of erased and one of retained concepts for each erased model, and the masks of each task."""
    block, out, made = job.settings, job.out.parent, []
    for name, columns in block["columns"].items():
        sets = {title: last_images(folder) for title, folder in columns.items()}
        for role, told in ROLES.items():
            title = f"{name.replace('/', ', ')}: {told} concepts"
            made.append(out / name / f"{role}.png")
            save(sample_grid(sets, role, block["samples"], title), made[-1])
    for task, places in block["masks"].items():
        made.append(out / task / "masks.png")
        save_masks(task, *map(Path, places), made[-1])
    job.write_made("grids", made)


if __name__ == "__main__":
    make(start())
