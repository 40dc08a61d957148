"""Distances and directions between base, erased and fine-tuned weights, at every checkpoint of a fine-tune."""

from __future__ import annotations

import math
from pathlib import Path

from resurgence.analysis.weight_movement import geometry
from resurgence.diffusion.deltas import Delta, apply_delta, apply_folder, parameters
from resurgence.files import write_json
from resurgence.stages.base import load_pipe
from resurgence.stages.job import Job, main


def copy_parameters(pipe: object) -> Delta:
    """A copy of the parameters of UNet and text encoder."""
    return {name: weight.detach().clone() for name, weight in parameters(pipe).items()}


def make(job: Job, folder: Path) -> dict:
    """Write geometry.json: step -> group -> measures. On the CPU: each weight is read only three times."""
    pipe = load_pipe(job, device="cpu")
    base = copy_parameters(pipe)
    *changes, tuned = job.folders("changes")
    for change in changes:
        apply_folder(pipe, change)
    before, steps = copy_parameters(pipe), {}
    for checkpoint in sorted(tuned.glob("step-*")):
        apply_folder(pipe, checkpoint)
        steps[str(int(checkpoint.name.removeprefix("step-")))] = {
            group: {name: None if math.isnan(value) else value for name, value in measures.items()}
            for group, measures in geometry(base, before, parameters(pipe)).items()
        }
        apply_delta(pipe, before)
    write_json(folder / "geometry.json", steps)
    return {"steps": len(steps)}


if __name__ == "__main__":
    main("geometry", make)
