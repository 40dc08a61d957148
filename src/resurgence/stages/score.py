"""Scores of every image set of a model, one row an image, by all scorers of the study."""

from __future__ import annotations

from pathlib import Path

from resurgence.bases import resolve_device
from resurgence.sample import read_image_set
from resurgence.scorers import feature_names, load_scorers, score_images, write_scores
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> dict:
    """Write step-NNNNNN/scores.parquet, and features.safetensors where a distance needs them."""
    settings, task, count = job.block["scorers"], job.task(), 0
    scorers = load_scorers(settings, resolve_device(job.device))
    for file in sorted(job.folder("image set").glob("*.parquet")):
        rows, images = read_image_set(file)
        scores, features = score_images(images, rows, task, scorers, feature_names(settings))
        write_scores(folder / file.stem, scores, features)
        count += len(rows)
    return {"images": count}


if __name__ == "__main__":
    main("scores", make)
