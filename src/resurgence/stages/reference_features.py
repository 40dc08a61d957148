"""Features of real images, such as those of MS-COCO, with which generated images are compared; computed once."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from resurgence.diffusion.device import exact, resolve_device
from resurgence.diffusion.pictures import picture_files, read_picture
from resurgence.progress import Progress
from resurgence.scorers import load_scorers
from resurgence.stages.job import Job, main

log = logging.getLogger(__name__)


def make(job: Job, folder: Path) -> dict:
    """Write features.safetensors: name of the scorer -> (m, F), of the pictures in the order of their names.

    Raises:
        ValueError: fewer than two pictures.
    """
    name, pictures = job.settings["scorer"], Path(job.settings["pictures"])
    device = resolve_device(job.device)
    scorer = load_scorers({name: job.settings["settings"]}, device)[name].scorer
    files, others, hidden = picture_files(pictures)
    left_out = [str(file) for file in (*others, *hidden)]
    log.info("%s: %d pictures; %d other or hidden files left out", pictures, len(files), len(left_out))
    if len(files) < 2:
        raise ValueError(f"scorers.frechet.reference = {str(pictures)!r}: holds {len(files)} pictures; give at least 2")
    progress, features = Progress("features", len(files), "pictures"), []
    for file in files:  # one by one: real pictures have different sizes
        pixels = torch.from_numpy(np.array(read_picture(file, str(file)))).permute(2, 0, 1)[None]
        with exact(device):
            features.append(scorer.features(pixels))
        progress.add(1)
    save_file({name: torch.cat(features).contiguous()}, folder / "features.safetensors")
    return {"images": len(files), "left_out": left_out}


if __name__ == "__main__":
    main("reference features", make)
