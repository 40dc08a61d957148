"""Data of an eraser besides base and task, from the artefacts among a job's inputs."""

from __future__ import annotations

import torch

from resurgence.data.moments import load_moments
from resurgence.diffusion.image_sets import read_image_set, read_prompts
from resurgence.erasers import EraserData
from resurgence.stages.job import Job


def concept_images(job: Job, name: str = "images") -> dict[str, torch.Tensor]:
    """Concept -> images (N, 3, H, W) in [-1, 1]; empty without such an input.

    Args:
        name: `images` (of the erased concepts), `anchors` (of the mapping concepts) or `retained`.
    """
    folder = job.optional(name)
    if folder is None:
        return {}
    rows, images = read_image_set(folder / "images.parquet")
    signed = images.float() / 127.5 - 1
    return {concept: signed[torch.as_tensor(index)] for concept, index in rows.groupby("concept").indices.items()}


def anchor_captions(job: Job) -> dict[str, list[str]]:
    """Mapping concept -> the prompt of each of its images, with {} where it names it; empty without such an input."""
    folder = job.optional("anchors")
    if folder is None:
        return {}
    rows = read_prompts([folder / "images.parquet"])
    return {str(concept): templates.tolist() for concept, templates in rows.groupby("concept")["template"]}


def eraser_data(job: Job) -> EraserData:
    """All data among the inputs; the eraser reports what is missing."""
    folders = {corpus: job.optional(corpus) for corpus in ("prior", "domain")}
    moments = {name: load_moments(path / "moments.safetensors")[0] for name, path in folders.items() if path}
    images = {name: concept_images(job, name) for name in ("images", "anchors", "retained")}
    return EraserData(anchor_captions=anchor_captions(job), masks=masks(job), state=job.state, **moments, **images)


def masks(job: Job) -> dict[str, torch.Tensor]:
    """Concept -> masks (N, 1, H, W) bool; empty without such an input."""
    from safetensors.torch import load_file

    folder = job.optional("masks")
    return {} if folder is None else load_file(folder / "masks.safetensors")
