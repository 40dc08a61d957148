"""Distances and directions between base, erased and fine-tuned weights, at every checkpoint of a fine-tune."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from resurgence.analysis.weight_movement import geometry
from resurgence.diffusion.deltas import ChangedWeights, parameters
from resurgence.files import write_json
from resurgence.stages.base import load_pipe
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> dict:
    """Write geometry.json: step -> group -> measures. On the CPU: one model is in memory, deltas are read by tensor."""
    base: Mapping[str, torch.Tensor] = parameters(load_pipe(job, device="cpu"))
    *changes, tuned = job.folders("changes")
    erased, steps = functools.reduce(ChangedWeights, changes, base), {}
    for checkpoint in sorted(tuned.glob("step-*")):
        steps[str(int(checkpoint.name.removeprefix("step-")))] = {
            group: {name: None if math.isnan(value) else value for name, value in measures.items()}
            for group, measures in geometry(base, erased, ChangedWeights(erased, checkpoint)).items()
        }
    write_json(folder / "geometry.json", steps)
    return {"steps": len(steps)}


if __name__ == "__main__":
    main("geometry", make)
