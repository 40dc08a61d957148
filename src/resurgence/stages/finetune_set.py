"""A fine-tuning set: prompts, never of erased concepts, and images of them sampled from a base or an erased model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from resurgence.data.prompts import expand
from resurgence.stages.concept_images import write_samples
from resurgence.stages.job import Job, main


def prompt_rows(settings: Mapping[str, Any], concepts: Sequence[str]) -> pd.DataFrame:
    """The rows of the set: `images_per_prompt` of each prompt, or `size` in all, spread evenly over the prompts."""
    pairs, size = [(concept, concept) for concept in concepts], settings["size"]
    count = settings["images_per_prompt"] or -(-size // (len(pairs) * len(settings["templates"])))
    first = settings.get("first_seed")
    rows = pd.DataFrame(expand(pairs, settings["templates"], count, "finetune", "fine-tuning image", first))
    return rows.sort_values("index", kind="stable").head(size).reset_index(drop=True) if size else rows


def make(job: Job, folder: Path) -> dict:
    """Write images.parquet."""
    concepts = job.settings["concepts"]
    if job.settings["tercile"]:
        concepts = json.loads((job.folder("terciles") / "terciles.json").read_text())["concepts"]
    return write_samples(job, prompt_rows(job.settings, concepts), folder)


if __name__ == "__main__":
    main("fine-tuning set", make)
