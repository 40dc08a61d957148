"""Masks of the erased concepts in their images."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from resurgence.config.fields import build
from resurgence.data.masks import MaskConfig, segment_all
from resurgence.diffusion.device import resolve_device
from resurgence.stages.base import load_pipe
from resurgence.stages.eraser_data import concept_images
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> dict:
    """Write masks.safetensors: concept -> (N, 1, H, W) bool; run.json counts the replaced ones."""
    cfg = build(MaskConfig, job.settings["masks"], "masks")
    pipe = load_pipe(job) if cfg.segmenter == "cross-attention" else None
    images = concept_images(job)
    images = {name: images[name] for name in job.settings["concepts"]}
    masks, replaced = segment_all(images, cfg, pipe, resolve_device(job.device))
    save_file({name: mask.contiguous() for name, mask in masks.items()}, folder / "masks.safetensors")
    coverage = {concept: round(float(mask.float().mean()), 4) for concept, mask in masks.items()}
    return {"coverage": coverage, "replaced": replaced}


if __name__ == "__main__":
    main("masks", make)
