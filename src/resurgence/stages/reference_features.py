"""Features of real images, such as those of MS-COCO, with which generated images are compared; computed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from resurgence.data.image_folder import SUFFIXES
from resurgence.diffusion.device import resolve_device
from resurgence.progress import Progress
from resurgence.scorers import load_scorers
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> dict:
    """Write features.safetensors: name of the scorer -> (m, F), of the pictures in the order of their names.

    Raises:
        ValueError: fewer than two pictures.
    """
    name, pictures = job.settings["scorer"], Path(job.settings["pictures"])
    scorer = load_scorers({name: job.settings["settings"]}, resolve_device(job.device))[name].scorer
    files = sorted(path for path in pictures.iterdir() if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise ValueError(f"scorers.frechet.reference = {str(pictures)!r}: holds {len(files)} pictures; give at least 2")
    progress, features = Progress("features", len(files), "pictures"), []
    for file in files:  # one by one: real pictures have different sizes
        with Image.open(file) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        features.append(scorer.features(pixels))
        progress.add(1)
    save_file({name: torch.cat(features).contiguous()}, folder / "features.safetensors")
    return {"images": len(files)}


if __name__ == "__main__":
    main("reference features", make)
