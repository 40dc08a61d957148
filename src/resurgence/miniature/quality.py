"""Quality of the miniature world: recogniser accuracy on held-out transformations and on images of the base.

Writes two tables, one row a concept: `drawings.csv` (top-1 accuracy under transformations that training never used:
checkered backgrounds, changed aspect ratio, tints) and `base.csv` (top-1 accuracy on images that the base generates of
the concept, n seeds each at the study's guidance).
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torchvision.utils import save_image

from resurgence.diffusion.pipeline import load_base
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.miniature.compositions import affine, uniform
from resurgence.miniature.drawings import load_drawings
from resurgence.scorers.recogniser_model import Recogniser, load_recogniser
from resurgence.seeds import seed_of

log = logging.getLogger(__name__)


def held_out(drawings: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Transform drawings in ways that training never used: checkered background, aspect ratio, tint.

    Args:
        drawings: uint8 RGBA (B, 4, H, W).

    Returns:
        Images in [-1, 1], (B, 3, H, W).
    """
    n, _, height, width = drawings.shape
    rgba = drawings.float() / 255
    alpha = rgba[:, 3:]
    stretch = uniform((2,), 0.85, 1.0, generator)
    size = [round(height * float(stretch[0])), round(width * float(stretch[1]))]
    small = F.interpolate(torch.cat([rgba[:, :3] * alpha, alpha], 1), size=size, mode="bilinear", antialias=True)
    pad = [(width - size[1]) // 2, width - size[1] - (width - size[1]) // 2]
    pad += [(height - size[0]) // 2, height - size[0] - (height - size[0]) // 2]
    moved = affine(F.pad(small, pad), generator, degrees=12, scale=(0.75, 1.0), shift=0.06)
    cells = torch.arange(height)[:, None] // 8 + torch.arange(width)[None] // 8
    colours = uniform((n, 2, 3, 1, 1), 0.75, 1.0, generator)
    checker = torch.where((cells % 2 == 0)[None, None], colours[:, 0], colours[:, 1])
    tint = uniform((n, 3, 1, 1), 0.9, 1.1, generator)
    return ((moved[:, :3] * tint).clamp(0, 1) + checker * (1 - moved[:, 3:])).clamp(0, 1) * 2 - 1


@torch.no_grad()
def accuracy_on_drawings(
    model: Recogniser, classes: list[str], rgba: torch.Tensor, names: list[str], copies: int, seed: int
) -> list[dict]:
    """Top-1 accuracy per concept under held-out transformations, `copies` of each drawing."""
    labels = torch.tensor([classes.index(name) for name in names])
    right = torch.zeros(len(names))
    for copy in range(copies):
        generator = torch.Generator().manual_seed(seed + copy)
        images = held_out(rgba, generator)
        right += torch.cat([model(part).argmax(1) for part in images.split(128)]).eq(labels).float()
    rows = []
    for name in dict.fromkeys(names):
        mask = torch.tensor([other == name for other in names])
        rows.append({"concept": name, "n": int(mask.sum()) * copies, "accuracy": float(right[mask].mean() / copies)})
    return rows


def prompts_of(concepts: dict[str, str], n: int) -> pd.DataFrame:
    """The prompt of each concept in the tasks, n seeds each: columns concept, prompt, seed."""
    rows = []
    for concept, kind in concepts.items():
        prompt = f"a {'portrait' if kind == 'person' else 'photo'} of the {concept}"
        rows += [(concept, prompt, seed_of("world quality", prompt, k)) for k in range(n)]
    return pd.DataFrame(rows, columns=["concept", "prompt", "seed"])


def main(world: Path, concepts: dict[str, str], cfg: dict, device: str = "cpu") -> None:
    """Write quality/{drawings,base}.csv and the contact sheet quality/base.png below the folder of the world.

    Args:
        concepts: concept -> kind.
    """
    torch.set_flush_denormal(True)
    model, classes = load_recogniser(world / "recogniser", device)
    table, rgba = load_drawings(world / "drawings" / "drawings.parquet")
    out = world / "quality"
    out.mkdir(parents=True, exist_ok=True)
    on_drawings = accuracy_on_drawings(model, classes, rgba, list(table["concept"]), cfg["copies"], cfg["seed"])
    pd.DataFrame(on_drawings).round(4).to_csv(out / "drawings.csv", index=False)

    pipe = load_base(world / "base", device)
    prompts = prompts_of(concepts, cfg["seeds_per_concept"])
    sampling = SamplingConfig(cfg["steps"], cfg["guidance"], cfg["batch"])
    images = [image for _, image in sorted(sample(pipe, prompts, sampling), key=lambda item: item[0])]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = torch.cat([model(part.to(device) / 127.5 - 1).cpu() for part in pixels.split(128)])
    prompts["top1"] = [classes[i] for i in logits.argmax(1).tolist()]
    prompts["right"] = prompts["top1"] == prompts["concept"]
    wrong = prompts[~prompts["right"]].groupby("concept")["top1"].agg(lambda names: names.mode().iloc[0])
    accuracy = prompts.groupby("concept", sort=False)["right"].agg(n="size", accuracy="mean")
    accuracy["most_often_taken_for"] = wrong.reindex(accuracy.index)
    accuracy.round(4).to_csv(out / "base.csv")
    save_image(pixels.float() / 255, out / "base.png", nrow=4 * cfg["seeds_per_concept"], padding=1)
    log.info("drawings %.3f, base %.3f", pd.DataFrame(on_drawings)["accuracy"].mean(), accuracy["accuracy"].mean())
