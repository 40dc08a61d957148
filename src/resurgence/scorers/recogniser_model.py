"""The recogniser of the miniature, a convolutional classifier of concepts and styles; saving and loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from resurgence.files import GET_SHIPPED, read_json
from resurgence.pretrained.loading import check_file, fill, read_tensors

NONE = "none"  # class of pictures that show no concept: noise, plain colours, gradients, shuffled parts
STEP = ".step"  # suffix of the steps of a weight that is stored as integers
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


class ImagenetInput(nn.Module):
    """Images in [-1, 1], enlarged by half and normalised as torchvision's classifiers of ImageNet expect them."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, h, w) -> (B, 3, 1.5 h, 1.5 w)."""
        enlarged = F.interpolate(images, scale_factor=1.5, mode="bilinear", align_corners=False)
        return (((enlarged + 1) / 2 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def small_trunk(width: int) -> tuple[nn.Sequential, nn.Sequential, int]:
    """Stem and three blocks of this width, and the number of their features."""
    stem = nn.Sequential(nn.Conv2d(3, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    blocks = nn.Sequential(Block(width, 2 * width), Block(2 * width, 4 * width), Block(4 * width, 6 * width))
    return stem, blocks, 6 * width


def resnet18_trunk(width: int, net: nn.Module | None = None) -> tuple[nn.Sequential, nn.Sequential, int]:
    """The convolutions of ResNet-18 (He et al. 2016).

    Args:
        width: channels of the stem, a multiple of 64. net: torchvision's model that it is cut from, a new one if None.
    """
    from torchvision.models import resnet18

    net = net or resnet18(width_per_group=width)
    stem = nn.Sequential(ImagenetInput(), net.conv1, net.bn1, net.relu, net.maxpool)
    return stem, nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4), 8 * width


TRUNKS = {"small": small_trunk, "resnet18": resnet18_trunk}


class Recogniser(nn.Module):
    """Residual classifier of images (B, 3, size, size) in [-1, 1].

    Args:
        classes: number of concepts. width: channels of the stem. styles: number of styles; 0 leaves the head of the
            styles out. trunk: key of TRUNKS.
    """

    def __init__(self, classes: int, width: int = 32, size: int = 64, styles: int = 0, trunk: str = "small") -> None:
        super().__init__()
        self.size, self.width, self.trunk = size, width, trunk
        self.stem, self.blocks, features = TRUNKS[trunk](width)
        self.head = nn.Linear(features, classes)
        self.style_head = nn.Linear(features, styles) if styles else None

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (B, 6 width), of a ResNet-18 (B, 8 width), for the Fréchet distance."""
        return self.blocks(self.stem(images)).mean((2, 3))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the concepts (B, classes) and of the styles (B, styles)."""
        return self.logits(self.features(images))

    def logits(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same from the pooled features (B, F) of the images."""
        styles = features.new_zeros(len(features), 0) if self.style_head is None else self.style_head(features)
        return self.head(features), styles


class Labels(NamedTuple):
    """What the outputs of a recogniser mean."""

    classes: Sequence[str]  # concepts; NONE among them is a picture of nothing
    styles: Sequence[str] = ()  # PLAIN among them is a picture without a style
    temperatures: tuple[float, float] = (1.0, 1.0)  # by which the logits of concepts and of styles are divided


def to_integers(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices and kernels as 8-bit integers beside the float32 step of each output row, everything else as it is."""
    stored = {}
    for name, value in state.items():
        if value.ndim > 1:
            step = value.abs().flatten(1).amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
            stored[name + STEP] = step
            value = (value / step.view(-1, *[1] * (value.ndim - 1))).round().to(torch.int8)
        stored[name] = value
    return stored


def from_integers(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state that `to_integers` stored, to half a step; a state without steps is returned as it is."""
    return {
        name: value.float() * step.view(-1, *[1] * (value.ndim - 1))
        if (step := stored.get(name + STEP)) is not None
        else value
        for name, value in stored.items()
        if not name.endswith(STEP)
    }


def save_recogniser(model: Recogniser, labels: Labels | list[str], folder: Path, integers: bool = False) -> None:
    """Write config.json and model.safetensors.

    Args:
        labels: a list holds the classes of a recogniser without styles. integers: store the weights in a quarter of
            the bytes (`to_integers`).
    """
    labels = Labels(labels) if isinstance(labels, list) else labels
    folder.mkdir(parents=True, exist_ok=True)
    config = {**labels._asdict(), "size": model.size, "width": model.width, "trunk": model.trunk}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    state = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
    save_file(to_integers(state) if integers else state, folder / "model.safetensors")


def load_recogniser(folder: Path, device: torch.device | str = "cpu") -> tuple[Recogniser, Labels]:
    """Read a recogniser folder; returns the model in eval mode and the meaning of its outputs.

    Raises:
        FileNotFoundError: a file is missing; the message says how to get the shipped recogniser.
        ValueError: a weight is not finite.
    """
    fetch = f"{GET_SHIPPED}, or `make world`"
    config, weights = (
        check_file(Path(folder) / name, None, "recogniser", fetch) for name in ("config.json", "model.safetensors")
    )
    cfg = read_json(config)
    if lacking := [key for key in ("classes", "width", "size") if key not in cfg]:
        raise ValueError(f"recogniser: {config} has no {lacking[0]}; {fetch}")
    labels = Labels(**{key: cfg[key] for key in Labels._fields if key in cfg})
    if (trunk := cfg.get("trunk", "small")) not in TRUNKS:
        raise ValueError(f"recogniser: trunk = {trunk!r} of {config} is none of {', '.join(TRUNKS)}; {fetch}")
    model = Recogniser(len(labels.classes), cfg["width"], cfg["size"], len(labels.styles), trunk)
    fill(model, from_integers(read_tensors(weights, "recogniser", fetch)), "recogniser", fetch)
    return model.eval().to(device), labels
