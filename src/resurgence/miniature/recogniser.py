"""Train the recogniser of the miniature world, which replaces the celebrity detector and the Inception features.

A small residual network on 64 x 64 images, one class for each concept and scene. 2,500 steps of 96 images take about
8 minutes on two cores. It shares no weights with the generator.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F

from resurgence.miniature.compositions import compose, scene, uniform
from resurgence.miniature.drawings import load_drawings, load_world
from resurgence.miniature.training import step_generator, train_part
from resurgence.scorers.recogniser_model import Recogniser, save_recogniser


def degrade(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Change contrast and brightness, blur and add noise, so that drawings resemble generated images."""
    n = len(images)
    images = images * uniform((n, 1, 1, 1), 0.75, 1.15, generator) + uniform((n, 3, 1, 1), -0.12, 0.12, generator)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, 1)
    mix = uniform((n, 1, 1, 1), -0.4, 1.0, generator).clamp(min=0)
    images = images + mix * (blurred - images)
    noise = torch.randn(images.shape, generator=generator)
    return (images + noise * uniform((n, 1, 1, 1), 0.0, 0.08, generator)).clamp(-1, 1)


def labelled_batch(
    rgba: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, world: dict, batch: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augmented images (batch, 3, 64, 64) in [-1, 1] and their class indices; scenes are the last classes."""
    picks = torch.multinomial(weight, batch, replacement=True, generator=generator)
    images, targets = compose(rgba[picks], generator, degrees=15, scale=(0.65, 1.05), shift=0.08), labels[picks]
    for i in range(max(1, batch // 48)):
        index = int(torch.randint(len(world["scenes"]), (1,), generator=generator))
        s = world["scenes"][index]
        images[i] = scene(s["low"], s["high"], 1, images.shape[-1], generator)[0]
        targets[i] = len(world["concepts"]) + index
    return degrade(images, generator), targets


def main(concepts: Path, drawings: Path, out: Path, scratch: Path, cfg: dict, device: str = "cpu") -> None:
    """Train and write the recogniser.

    Args:
        scratch: folder from which an interrupted training resumes.
        cfg: seed, steps, batch, lr and precision.
    """
    torch.set_flush_denormal(True)
    world, (table, rgba) = load_world(concepts), load_drawings(drawings)
    classes = [c["name"] for c in world["concepts"]] + [s["name"] for s in world["scenes"]]
    labels = torch.tensor([classes.index(name) for name in table["concept"]])
    weight = 1 / torch.bincount(labels)[labels].float()
    torch.manual_seed(cfg["seed"])
    model = Recogniser(len(classes)).to(device)

    def loss_of(module: Recogniser, step: int) -> torch.Tensor:
        generator = step_generator(cfg["seed"], step)
        images, targets = labelled_batch(rgba, weight, labels, world, cfg["batch"], generator)
        return F.cross_entropy(module(images.to(device)).float(), targets.to(device), label_smoothing=0.05)

    facts = (world, table.to_numpy().tolist())
    curve = train_part(model, loss_of, scratch, cfg, facts, [rgba], ema_decay=0.99, weight_decay=0.05)
    save_recogniser(model, classes, out)
    (out / "curve.json").write_text(json.dumps(curve))
