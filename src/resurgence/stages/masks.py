"""Masks of the erased concepts in their images."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from resurgence.config.fields import build
from resurgence.data.masks import MaskConfig, segment
from resurgence.diffusion.device import resolve_device
from resurgence.stages.base import load_pipe
from resurgence.stages.eraser_data import concept_images
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> dict:
    """Write masks.safetensors: concept -> (N, 1, H, W) bool."""
    cfg = build(MaskConfig, job.settings["masks"], "masks")
    pipe = load_pipe(job) if cfg.segmenter == "cross-attention" else None
    images, device = concept_images(job), resolve_device(job.device)
    masks = {name: segment(images[name], name, cfg, pipe, device).contiguous() for name in job.settings["concepts"]}
    save_file(masks, folder / "masks.safetensors")
    return {"coverage": {concept: round(float(mask.float().mean()), 4) for concept, mask in masks.items()}}


if __name__ == "__main__":
    main("masks", make)
