"""Images of erased, mapping or retained concepts made by the base, for the erasers that learn from images."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from resurgence.config.fields import build
from resurgence.data.prompts import expand
from resurgence.diffusion.image_sets import write_image_set
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.stages.base import load_pipe
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> dict:
    """Write images.parquet."""
    block = job.settings
    pairs = [(concept, concept) for concept in block["concepts"]]
    rows = pd.DataFrame(expand(pairs, [block["template"]], block["per_concept"], "concept", "concept image"))
    cfg = build(SamplingConfig, block["sampling"], "sampling")
    write_image_set(folder / "images.parquet", rows, sample(load_pipe(job), rows, cfg))
    return {"images": len(rows)}


if __name__ == "__main__":
    main("{kind} images", make)
