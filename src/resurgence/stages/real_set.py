"""A fine-tuning set of real pictures, scaled to the size of the base's images."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from resurgence.data.real_sets import real_set
from resurgence.data.training_images import squares
from resurgence.diffusion.image_sets import write_image_set
from resurgence.diffusion.sampling import latent_shape
from resurgence.diffusion.text_checks import check_real_captions
from resurgence.stages.base import load_pipe
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> dict:
    """Write images.parquet: the pictures as squares of the base's size, with caption, concept and file."""
    pipe, images = load_pipe(job, device="cpu"), job.settings["images"]
    chosen = real_set(Path(images), job.settings["concepts"], job.settings["size"])
    captions = dict(zip(chosen.rows["file"], chosen.rows["prompt"], strict=True))
    check_real_captions(pipe.tokenizer, "images", images, captions, job.task)
    side = latent_shape(pipe, job.settings["pixels"])[-1] * pipe.vae_scale_factor
    pictures = map(Image.fromarray, squares(chosen.sources, side))
    write_image_set(folder / "images.parquet", chosen.rows, enumerate(pictures))
    return {"images": len(chosen.rows), "left_out": chosen.left_out}


if __name__ == "__main__":
    main("fine-tuning set", make)
