"""The recogniser of the miniature, a small convolutional classifier; saving and loading it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from resurgence.files import read_json
from resurgence.pretrained.loading import check_file, fill, read_tensors


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
    """Residual classifier; images (B, 3, size, size) in [-1, 1] -> logits (B, classes)."""

    def __init__(self, classes: int, width: int = 32, size: int = 64) -> None:
        super().__init__()
        self.size = size
        self.stem = nn.Sequential(nn.Conv2d(3, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width, 2 * width), Block(2 * width, 4 * width), Block(4 * width, 6 * width))
        self.head = nn.Linear(6 * width, classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (B, 6 width), for the Fréchet distance."""
        return self.blocks(self.stem(images)).mean((2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of images (B, 3, size, size)."""
        return self.head(self.features(images))


def save_recogniser(model: Recogniser, classes: list[str], folder: Path) -> None:
    """Write config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"classes": classes, "size": model.size, "width": model.stem[0].out_channels}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file({k: v.contiguous().cpu() for k, v in model.state_dict().items()}, folder / "model.safetensors")


def load_recogniser(folder: Path, device: torch.device | str = "cpu") -> tuple[Recogniser, list[str]]:
    """Read a recogniser folder; returns the model in eval mode and its class names.

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
    model = Recogniser(len(cfg["classes"]), cfg["width"], cfg["size"])
    fill(model, read_tensors(weights, "recogniser", fetch), "recogniser", fetch)
    return model.eval().to(device), cfg["classes"]
