"""Train the recogniser of the miniature world, which replaces the celebrity detector and the Inception features.

A residual network on 64 x 64 images: one class for each concept and scene, one for pictures that show none, and a
second head for the styles. It shares no weights with the generator, and may start from published weights of ImageNet.
It learns from the drawings of the training split, and of further ones that it has to judge. The temperature of each
head is fitted on the validation split (Guo et al. 2017); the test split is for the model card.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torchvision.models import resnet18

from resurgence.config.fields import ConfigError
from resurgence.miniature.compositions import compose, nothing, scene, uniform
from resurgence.miniature.drawings import load_drawings, load_world
from resurgence.miniature.styles import draw_and_apply_styles
from resurgence.miniature.training import step_generator, train_part
from resurgence.pretrained.loading import check_file, fill, read_tensors
from resurgence.scorers.recogniser_model import (
    NONE,
    PLAIN,
    Labels,
    Recogniser,
    from_integers,
    resnet18_trunk,
    save_recogniser,
    to_integers,
)

UNLABELLED = -100  # style of a picture of nothing without a style: no target
NONE_SHARE, SCENE_SHARE = 1 / 12, 1 / 48
FILTERED, GROUP = 0.5, 8
TEXTURED = 0.3
LABEL_SMOOTHING = 0.05
VALIDATION_BATCHES = 16


def degrade(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Change contrast and brightness, blur and add noise, so that drawings resemble generated images."""
    n = len(images)
    images = images * uniform((n, 1, 1, 1), 0.75, 1.15, generator) + uniform((n, 3, 1, 1), -0.12, 0.12, generator)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, 1)
    mix = uniform((n, 1, 1, 1), -0.4, 1.0, generator).clamp(min=0)
    images = images + mix * (blurred - images)
    noise = torch.randn(images.shape, generator=generator)
    return (images + noise * uniform((n, 1, 1, 1), 0.0, 0.08, generator)).clamp(-1, 1)


def mirrored(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror half of the images."""
    mirror = torch.rand((len(images), 1, 1, 1), generator=generator) < 0.5
    return torch.where(mirror, images.flip(-1), images)


def filtered(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Show a share of the images through random filters of 1 or 3 pixels, mixed with the image, in groups of eight.

    Random convolution keeps shapes and changes colour and texture, in which artists differ (Xu et al. 2021, RandConv).
    """
    groups = []
    for group in images.split(GROUP):
        size = 1 if torch.rand(1, generator=generator) < 0.5 else 3
        kernel = torch.randn((3, 3, size, size), generator=generator) / math.sqrt(3 * size * size)
        changed = F.conv2d(F.pad(group, [size // 2] * 4, mode="replicate"), kernel)
        share = torch.rand((len(group), 1, 1, 1), generator=generator)
        share = share * (torch.rand(share.shape, generator=generator) < FILTERED)
        groups.append((group + share * (changed - group)).clamp(-1, 1))
    return torch.cat(groups)


def labels_of(world: dict) -> Labels:
    """Concepts, scenes and NONE; PLAIN and the styles of a world that has some."""
    styles = [style["name"] for style in world.get("styles", [])]
    concepts = [entry["name"] for entry in [*world["concepts"], *world["scenes"]]]
    return Labels([*concepts, NONE], [PLAIN, *styles] if styles else [])


def labelled_batch(
    rgba: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, world: dict, styled: float, batch: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Draw augmented images (batch, 3, 64, 64) in [-1, 1] with the indices of their classes and styles.

    Args:
        weight, targets: probability and class of each drawing. styled: share of the images in a style.
    """
    picks = torch.multinomial(weight, batch, replacement=True, generator=generator)
    drawings = mirrored(rgba[picks], generator)
    images = compose(drawings, generator, degrees=15, scale=(0.6, 1.05), shift=0.1, stretch=0.2, textured=TEXTURED)
    classes = targets[picks]
    count = max(1, round(batch * SCENE_SHARE))
    for i in range(count):
        index = int(torch.randint(len(world["scenes"]), (1,), generator=generator))
        s = world["scenes"][index]
        images[i] = scene(s["low"], s["high"], 1, images.shape[-1], generator)[0]
        classes[i] = len(world["concepts"]) + index
    empty = slice(count, count + round(batch * NONE_SHARE))
    images[empty], classes[empty] = nothing(images[empty], generator), len(world["concepts"]) + len(world["scenes"])
    images, styles = draw_and_apply_styles(filtered(images, generator), world, styled, generator)
    styles = styles + 1  # PLAIN is the first
    styles[empty][styles[empty] == 0] = UNLABELLED
    return degrade(images, generator), classes, styles


def losses(
    logits: tuple[torch.Tensor, torch.Tensor], classes: torch.Tensor, styles: torch.Tensor, smoothing: float = 0.0
) -> list[torch.Tensor]:
    """Cross entropy of each head that has outputs."""
    heads = [
        (scores.float(), target) for scores, target in zip(logits, (classes, styles), strict=True) if scores.shape[1]
    ]
    return [F.cross_entropy(scores, target, label_smoothing=smoothing) for scores, target in heads]


@torch.no_grad()
def temperatures(
    logits: tuple[torch.Tensor, torch.Tensor], classes: torch.Tensor, styles: torch.Tensor
) -> tuple[float, float]:
    """The temperature of each head by which its cross entropy is least, of 0.25 to 4 in steps of 2 %."""
    grid = torch.logspace(-2, 2, 141, base=2)
    fits = [
        float(grid[torch.stack([F.cross_entropy(scores / t, target) for t in grid]).argmin()])
        if scores.shape[1]
        else 1.0
        for scores, target in zip(logits, (classes, styles), strict=True)
    ]
    return fits[0], fits[1]


def start_from(model: Recogniser, start: dict[str, str]) -> None:
    """Fill stem and blocks from published weights of ImageNet.

    Args:
        model: of trunk resnet18. start: `path` of a file of torchvision's resnet18, and `sha256` of the values of the
            weights that are taken from it, whatever the format of the file.

    Raises:
        ConfigError: the model has another trunk. FileNotFoundError: no such file.
        ValueError: the weights of another architecture, or other values.
    """
    key = "recogniser.start"
    remedy = "get the file that config/weights.yaml names"
    if model.trunk != "resnet18":
        raise ConfigError(f"{key}.path", start["path"], "is for trunk: resnet18; leave it out or change the trunk")
    net = resnet18()
    fill(net, read_tensors(check_file(Path(start["path"]), None, key, remedy), key, remedy), key, remedy)
    model.stem, model.blocks, _ = resnet18_trunk(model.width, net)
    digest = hashlib.sha256()
    for _, value in sorted({**model.stem.state_dict(), **model.blocks.state_dict(prefix="blocks.")}.items()):
        digest.update(value.float().numpy().tobytes())
    if digest.hexdigest() != start["sha256"]:
        raise ValueError(f"{key}.path = {start['path']!r}: the values of its weights have the SHA-256 "
                         f"{digest.hexdigest()}, expected {start['sha256']}; {remedy}")  # fmt: skip


def main(
    concepts: Path, drawings: Path, out: Path, scratch: Path, cfg: dict, styled: float, device: str = "cpu"
) -> None:
    """Train and write the recogniser.

    Args:
        scratch: folder from which an interrupted training resumes.
        cfg: seed, steps, batch, lr, precision; splits of the drawings that it learns from, unless training alone;
            width unless 32, trunk unless small, `start` (`start_from`), and `integers`, which rounds the trained
            weights to 8 bits and stores them so.
        styled: share of the pictures that are in a style of the world.
    """
    torch.set_flush_denormal(True)
    world, labels = load_world(concepts), labels_of(load_world(concepts))

    def batches(*splits: str) -> tuple[pd.DataFrame, torch.Tensor, Callable]:
        """The drawings of these splits, and the function that draws batches of them."""
        table, rgba = load_drawings(drawings, *splits)
        targets = torch.tensor([labels.classes.index(name) for name in table["concept"]])
        weight = 1 / torch.bincount(targets)[targets].float()
        return table, rgba, partial(labelled_batch, rgba, weight, targets, world, styled, cfg["batch"])

    table, rgba, training_batch = batches(*cfg.get("splits", ["training"]))
    torch.manual_seed(cfg["seed"])
    model = Recogniser(
        len(labels.classes), cfg.get("width", 32), rgba.shape[-1], len(labels.styles), cfg.get("trunk", "small")
    )
    if "start" in cfg:
        start_from(model, cfg["start"])
    model.to(device)

    def loss_of(module: Recogniser, step: int) -> torch.Tensor:
        images, *targets = (part.to(device) for part in training_batch(step_generator(cfg["seed"], step)))
        return sum(losses(module(images), *targets, smoothing=LABEL_SMOOTHING))

    facts = (world, styled, table.to_numpy().tolist())
    curve = train_part(model, loss_of, scratch, cfg, facts, [rgba], ema_decay=0.99, weight_decay=0.05)
    if integers := cfg.get("integers", False):
        model.load_state_dict(from_integers(to_integers(model.state_dict())))
    *_, validation_batch = batches("validation")
    parts = [validation_batch(step_generator(cfg["seed"] + 1, step)) for step in range(VALIDATION_BATCHES)]
    with torch.no_grad():
        logits = [model(images.to(device)) for images, _, _ in parts]
    heads = tuple(torch.cat(head).float().cpu() for head in zip(*logits, strict=True))
    fitted = temperatures(heads, *(torch.cat(part) for part in list(zip(*parts, strict=True))[1:]))
    save_recogniser(model, labels._replace(temperatures=fitted), out, integers)
    (out / "curve.json").write_text(json.dumps(curve))
