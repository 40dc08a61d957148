"""Distances and directions between base, erased and fine-tuned weights, at every checkpoint of a fine-tune."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from resurgence.analysis.weight_movement import geometry
from resurgence.diffusion.deltas import PARTS, apply_folder
from resurgence.files import write_json
from resurgence.stages.base import load_pipe
from resurgence.stages.job import Job, main


def weights_of(pipe: object) -> dict[str, torch.Tensor]:
    """A copy of the parameters of UNet and text encoder."""
    return {f"{p}.{n}": w.detach().clone() for p in PARTS for n, w in getattr(pipe, p).named_parameters()}


def make(job: Job, folder: Path) -> dict:
    """Write geometry.json: step -> group -> measures. The work is on the CPU: it is three reads of each weight."""
    pipe = load_pipe(job, device="cpu")
    base = weights_of(pipe)
    *before_tuning, tuned = job.folders("changes")
    for change in before_tuning:
        apply_folder(pipe, change)
    before, found = weights_of(pipe), {}
    for place in sorted(tuned.glob("step-*")):
        apply_folder(pipe, place)
        after = weights_of(pipe)
        found[str(int(place.name.removeprefix("step-")))] = {
            group: {name: None if math.isnan(value) else value for name, value in own.items()}
            for group, own in geometry(base, before, after).items()
        }
        with torch.no_grad():
            for part in PARTS:
                for name, weight in getattr(pipe, part).named_parameters():
                    weight.copy_(before[f"{part}.{name}"])
    write_json(folder / "geometry.json", found)
    return {"steps": len(found)}


if __name__ == "__main__":
    main("geometry", make)
