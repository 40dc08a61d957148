"""Images of a prompt set made by the base, by an erased model, or by every checkpoint of a fine-tuned model.

Writes one step-NNNNNN.parquet a model: step 0 before fine-tuning, else the steps of the checkpoints.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from resurgence.bases import apply_folder
from resurgence.config import build
from resurgence.sample import SamplingConfig, sample, write_image_set
from resurgence.stages.job import Job, main


def models(job: Job) -> dict[str, list[Path]]:
    """Name of the image set -> folders of weights that are applied to the base, in this order."""
    erased = [folder for folder in [job.find("erased delta")] if folder]
    finetuned = job.find("fine-tuned weights")
    if finetuned is None:
        return {"step-000000": erased}
    return {folder.name: [*erased, folder] for folder in sorted(finetuned.glob("step-*"))}


def make(job: Job, folder: Path) -> dict:
    """Write the image sets; the base is loaded again for each, so nothing of one model stays in the next."""
    rows = pd.read_csv(job.folder("prompt set") / "prompts.csv", keep_default_na=False)
    settings = dict(job.block["sampling"])
    precision = settings.pop("precision")
    cfg, found = build(SamplingConfig, settings, "sampling"), models(job)
    for name, weights in found.items():
        pipe = job.pipe(precision)
        for place in weights:
            apply_folder(pipe, place)
        write_image_set(folder / f"{name}.parquet", rows, sample(pipe, rows, cfg))
    return {"images": len(rows) * len(found)}


if __name__ == "__main__":
    main("image set", make)
