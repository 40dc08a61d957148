"""The recogniser of the miniature, a small convolutional classifier of concepts and styles; saving and loading it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from resurgence.files import read_json
from resurgence.pretrained.loading import check_file, fill, read_tensors

NONE = "none"  # class of pictures that show no concept: noise, plain colours, gradients, shuffled parts
PLAIN = "plain"  # class of pictures in none of the styles


class Block(nn.Module):
    """Two 3 x 3 convolutions with a projected shortcut; halves the sides."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, h, w) -> (B, out, h / 2, w / 2)."""
        return F.relu(self.body(x) + self.shortcut(x))


class Recogniser(nn.Module):
    """Residual classifier of images (B, 3, size, size) in [-1, 1].

    Args:
        classes: number of concepts. styles: number of styles; 0 leaves the head of the styles out.
    """

    def __init__(self, classes: int, width: int = 32, size: int = 64, styles: int = 0) -> None:
        super().__init__()
        self.size = size
        self.stem = nn.Sequential(nn.Conv2d(3, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width, 2 * width), Block(2 * width, 4 * width), Block(4 * width, 6 * width))
        self.head = nn.Linear(6 * width, classes)
        self.style_head = nn.Linear(6 * width, styles) if styles else None

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (B, 6 width), for the Fréchet distance."""
        return self.blocks(self.stem(images)).mean((2, 3))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the concepts (B, classes) and of the styles (B, styles)."""
        features = self.features(images)
        styles = features.new_zeros(len(features), 0) if self.style_head is None else self.style_head(features)
        return self.head(features), styles


class Labels(NamedTuple):
    """What the outputs of a recogniser mean."""

    classes: Sequence[str]  # concepts; NONE among them is a picture of nothing
    styles: Sequence[str] = ()  # PLAIN among them is a picture without a style
    temperatures: tuple[float, float] = (1.0, 1.0)  # by which the logits of concepts and of styles are divided


def save_recogniser(model: Recogniser, labels: Labels | list[str], folder: Path) -> None:
    """Write config.json and model.safetensors; a list holds the classes of a recogniser without styles."""
    labels = Labels(labels) if isinstance(labels, list) else labels
    folder.mkdir(parents=True, exist_ok=True)
    config = {**labels._asdict(), "size": model.size, "width": model.stem[0].out_channels}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file({k: v.contiguous().cpu() for k, v in model.state_dict().items()}, folder / "model.safetensors")


def load_recogniser(folder: Path, device: torch.device | str = "cpu") -> tuple[Recogniser, Labels]:
    """Read a recogniser folder; returns the model in eval mode and the meaning of its outputs.

    Raises:
        FileNotFoundError: a file is missing; the message says how to get the shipped recogniser.
        ValueError: a weight is not finite.
    """
    fetch = "run `dvc pull data/miniature/dvc.yaml`, or `make world`"
    config, weights = (
        check_file(Path(folder) / name, None, "recogniser", fetch) for name in ("config.json", "model.safetensors")
    )
    cfg = read_json(config)
    if lacking := [key for key in ("classes", "width", "size") if key not in cfg]:
        raise ValueError(f"recogniser: {config} has no {lacking[0]}; {fetch}")
    labels = Labels(**{key: cfg[key] for key in Labels._fields if key in cfg})
    model = Recogniser(len(labels.classes), cfg["width"], cfg["size"], len(labels.styles))
    fill(model, read_tensors(weights, "recogniser", fetch), "recogniser", fetch)
    return model.eval().to(device), labels
