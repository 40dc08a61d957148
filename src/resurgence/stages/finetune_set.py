"""A fine-tuning set: prompts, and images of them made by the base itself, never of erased concepts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from resurgence.config.fields import build
from resurgence.data.prompts import expand
from resurgence.diffusion.image_sets import write_image_set
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.stages.base import load_pipe
from resurgence.stages.job import Job, main


def rows_of(block: dict[str, Any], concepts: Sequence[str]) -> pd.DataFrame:
    """The rows of the set: so many of each prompt, or `size` in all, as evenly over the prompts as it goes."""
    pairs = [(concept, concept) for concept in concepts]
    prompts = len(pairs) * len(block["templates"])
    count = block["images_per_prompt"] or -(-block["size"] // prompts)
    first = block.get("first_seed")
    rows = pd.DataFrame(expand(pairs, block["templates"], count, "finetune", "fine-tuning image", first))
    if block["size"]:
        rows = rows.sort_values("index", kind="stable").head(block["size"]).reset_index(drop=True)
    return rows


def make(job: Job, folder: Path) -> dict:
    """Write images.parquet."""
    concepts = job.settings["concepts"]
    if job.settings["tercile"]:
        concepts = json.loads((job.folder("terciles") / "terciles.json").read_text())["concepts"]
    rows, settings = rows_of(job.settings, concepts), dict(job.settings["sampling"])
    pipe = load_pipe(job, settings.pop("precision"))
    cfg = build(SamplingConfig, settings, "sampling")
    write_image_set(folder / "images.parquet", rows, sample(pipe, rows, cfg))
    return {"images": len(rows)}


if __name__ == "__main__":
    main("fine-tuning set", make)
