"""Images of a prompt set made by the base, by an erased model, or by every checkpoint of a fine-tuned model.

Writes step-NNNNNN.parquet for each model, or its shards: step 0 before fine-tuning, else the steps of the checkpoints.
Finished files stay in a scratch folder until all are there, so an interrupted job continues with the next one.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pandas as pd

from resurgence.config.fields import build
from resurgence.diffusion.deltas import DELTA_FILE
from resurgence.diffusion.image_sets import RESAMPLED, resampled_count, shard_file, shard_rows, write_image_set
from resurgence.diffusion.sampling import SamplingConfig, latent_shape, sample
from resurgence.diffusion.text_checks import check_prompt_set
from resurgence.files import sha256
from resurgence.provenance.manifest import MANIFEST
from resurgence.provenance.outputs import check_image_space
from resurgence.stages.base import load_pipe
from resurgence.stages.job import Job, main

log = logging.getLogger(__name__)


def models(job: Job) -> dict[str, list[Path]]:
    """Name of the image set -> folders of weights that are applied to the base, in this order.

    An erased delta gives one model, a fine-tune one for each checkpoint; a step after a fine-tune starts from its last
    checkpoint.
    """
    weights: dict[str, list[Path]] = {"step-000000": []}
    for change in job.folders("changes"):
        before = list(weights.values())[-1]
        if (change / DELTA_FILE).is_file():
            weights = {"step-000000": [*before, change]}
        else:
            weights = {folder.name: [*before, folder] for folder in sorted(change.glob("step-*"))}
    return weights


def unfinished(job: Job) -> Path:
    """The scratch folder of finished shards; emptied if they were sampled with other inputs."""
    facts: dict[str, object] = {"code": job.code}
    for path in job.files:
        status = path.stat()
        facts[path.as_posix()] = sha256(path) if path.name == MANIFEST else [status.st_size, status.st_mtime_ns]
    mark, text = job.state / "inputs.json", json.dumps(facts, sort_keys=True)
    if not mark.is_file() or mark.read_text() != text:
        shutil.rmtree(job.state, ignore_errors=True)
        job.state.mkdir(parents=True)
        mark.write_text(text)
    return job.state


def make(job: Job, folder: Path) -> dict:
    """Write the image sets; the base is loaded again for each model, so that models cannot influence each other."""
    rows = pd.read_csv(job.folder("prompts") / "prompts.csv", keep_default_na=False)
    settings = dict(job.settings["sampling"])
    precision = settings.pop("precision")
    cfg, weights, state = build(SamplingConfig, settings, "sampling"), models(job), unfinished(job)
    shards, before = shard_rows(len(rows), cfg.shard, cfg.batch), 0
    for name, folders in weights.items():
        files = [(shard, shard_file(state, name, number, len(shards))) for number, shard in enumerate(shards)]
        missing = [(shard, file) for shard, file in files if not file.exists()]
        before += len(files) - len(missing)
        if missing:
            pipe = load_pipe(job, precision, changes=folders)
            check_prompt_set(pipe.tokenizer, rows, cfg.long_prompts)
            check_image_space(
                state, sum(len(shard) for shard, _ in missing), latent_shape(pipe, cfg.size)[-1] * pipe.vae_scale_factor
            )
        for shard, file in missing:
            part = rows.iloc[shard.start : shard.stop].reset_index(drop=True)
            write_image_set(file, part, sample(pipe, part, cfg, precision))
    if before:
        log.info("%d of %d files were there from an interrupted run", before, len(shards) * len(weights))
    resampled = resampled_count(state.glob("*.parquet"))
    for file in sorted(state.glob("*.parquet")):
        shutil.move(file, folder / file.name)
    return {"images": len(rows) * len(weights), RESAMPLED: resampled}


if __name__ == "__main__":
    main("image set", make)
