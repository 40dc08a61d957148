"""What an eraser reads besides base and task, from the artefacts among a job's inputs."""

from __future__ import annotations

import torch

from resurgence.data.moments import load_moments
from resurgence.diffusion.image_sets import read_image_set
from resurgence.erasers import EraserData
from resurgence.stages.job import Job


def concept_images(job: Job, kind: str = "concept") -> dict[str, torch.Tensor]:
    """Concept -> images (N, 3, H, W) in [-1, 1]; empty without such an input.

    Args:
        kind: `concept` for those of the erased concepts, `anchor` of the mapping concepts, or `retained`.
    """
    folder = job.find(f"{kind} images")
    if folder is None:
        return {}
    rows, images = read_image_set(folder / "images.parquet")
    signed = images.float() / 127.5 - 1
    places = {concept: torch.as_tensor(index) for concept, index in rows.groupby("concept").indices.items()}
    return {concept: signed[index] for concept, index in places.items()}


def eraser_data(job: Job) -> EraserData:
    """Everything that is among the inputs; the eraser says itself what it misses."""
    moments = {corpus: job.find(f"{corpus} moments") for corpus in ("prior", "domain")}
    loaded = {name: load_moments(path / "moments.safetensors")[0] for name, path in moments.items() if path}
    images = {kind: concept_images(job, kind) for kind in ("concept", "anchor", "retained")}
    corpora = loaded.get("prior"), loaded.get("domain")
    return EraserData(*corpora, images["concept"], masks(job), images["anchor"], images["retained"], job.state)


def masks(job: Job) -> dict[str, torch.Tensor]:
    """Concept -> masks (N, 1, H, W) bool; empty without such an input."""
    from safetensors.torch import load_file

    folder = job.find("masks")
    return {} if folder is None else load_file(folder / "masks.safetensors")
