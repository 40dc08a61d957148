"""Scores of every image set of a model by all scorers of the study, one row for each image."""

from __future__ import annotations

from pathlib import Path

from resurgence.diffusion.device import resolve_device
from resurgence.diffusion.image_sets import image_files
from resurgence.scorers import feature_names, load_scorers, write_scores
from resurgence.scorers.score_files import base_files, score_files
from resurgence.stages.job import Job, main
from resurgence.stages.runtime import importing


def make(job: Job, folder: Path) -> dict:
    """Write step-NNNNNN/scores.parquet, and features.safetensors where a distance needs them."""
    settings, task, count = job.settings["scorers"], job.task, 0
    with importing():
        scorers = load_scorers(settings, resolve_device(job.device))
    folder_of_base = job.optional("base_images")  # only if a scorer reads them
    base = base_files(folder_of_base) if folder_of_base else None
    for name, files in image_files(job.folder("images")).items():
        scores, features = score_files(files, task, scorers, feature_names(settings), base)
        write_scores(folder / name, scores, features)
        count += len(scores)
    return {"images": count}


if __name__ == "__main__":
    main("scores", make)
