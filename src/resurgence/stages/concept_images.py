"""Images of erased, mapping or retained concepts made by the base, for the erasers that learn from images."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from resurgence.config.fields import build
from resurgence.data.prompts import expand
from resurgence.diffusion.image_sets import RESAMPLED, resampled_count, write_image_set
from resurgence.diffusion.sampling import SamplingConfig, latent_shape, sample
from resurgence.files import read_lines
from resurgence.provenance.outputs import check_image_space
from resurgence.stages.base import load_pipe
from resurgence.stages.job import Job, main


def write_samples(job: Job, rows: pd.DataFrame, folder: Path) -> dict:
    """Write images.parquet: the rows of prompts, sampled from the base with the job's changes applied."""
    settings = dict(job.settings["sampling"])
    precision = settings.pop("precision", "fp32")
    pipe = load_pipe(job, precision, changes=job.folders("changes"))
    cfg = build(SamplingConfig, settings, "sampling")
    check_image_space(folder, len(rows), latent_shape(pipe, cfg.size)[-1] * pipe.vae_scale_factor)
    write_image_set(folder / "images.parquet", rows, sample(pipe, rows, cfg, precision))
    return {"images": len(rows), RESAMPLED: resampled_count([folder / "images.parquet"])}


def make(job: Job, folder: Path) -> dict:
    """Write images.parquet."""
    settings, rows = job.settings, []
    for concept in settings["concepts"]:
        captions = settings.get("captions", {}).get(concept, [settings["template"]])
        captions = read_lines(Path(captions)) if isinstance(captions, str) else captions
        number = settings["per_concept"] // len(captions)
        rows += expand([(concept, concept)], captions, number, "concept", "concept image")
    return write_samples(job, pd.DataFrame(rows), folder)


if __name__ == "__main__":
    main("{kind} images", make)
