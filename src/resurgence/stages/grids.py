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


@cache
def last_images(
    folder: str, roles: tuple[str, ...] = tuple(ROLES), most: int | None = None
) -> tuple[pd.DataFrame, np.ndarray]:
    """Prompts and images of the rows in the grids of some roles, of a model at its last step; the others need not fit
    in memory.

    Args:
        most: rows of a role; None: all of its concepts.
    """
    steps = image_files(Path(folder))
    rows, images = read_rows(steps[max(steps)], lambda table: [i for r in roles for i in first_rows(table, r, most)])
    return rows, images.numpy()


def save_masks(task: str, images_folder: Path, masks_folder: Path, out: Path) -> None:
    """The concept images of a task beside their masks."""
    rows, images = read_image_set(images_folder / "images.parquet")
    masks = load_file(masks_folder / "masks.safetensors")
    pictures = {concept: images.numpy()[i] for concept, i in rows.groupby("concept", sort=False).indices.items()}
    save(mask_grid(pictures, masks, title=f"{task}: masks of the erased concepts"), out)


def make(job: Job) -> None:
    """Write a grid of erased and one of retained concepts for each erased model, and the masks of each task."""
    settings, out, files = job.settings, job.out.parent, []
    for name, columns in settings["columns"].items():
        sets = {title: last_images(folder) for title, folder in columns.items()}
        for role, adjective in ROLES.items():
            title = f"{name.replace('/', ', ')}: {adjective} concepts"
            files.append(out / name / f"{role}.png")
            save(sample_grid(sets, role, settings["samples"], title), files[-1])
    for task, folders in settings["masks"].items():
        files.append(out / task / "masks.png")
        save_masks(task, *map(Path, folders), files[-1])
    job.write_made("grids", files)


if __name__ == "__main__":
    make(start())
