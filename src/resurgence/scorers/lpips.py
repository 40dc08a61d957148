"""LPIPS 0.1 to the base's image of the same row (Zhang et al. 2018): how far an edit changes the picture.

    d = sum_l mean_hw sum_c w_lc (a_lc / ||a_l|| - b_lc / ||b_l||)^2

over the five ReLU layers l of AlexNet or VGG-16, with the published weights w. The network is torchmetrics', which
ships w; the convolutions are torchvision's. Images are compared at their size, in [-1, 1]. The base has 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torchmetrics.functional.image.lpips import _NoTrainLpips as Network

from resurgence.pretrained.loading import check_file, fill, read_tensors

if TYPE_CHECKING:
    import pandas as pd

    from resurgence.config.task import Task
    from resurgence.scorers.erasure_configs import LpipsConfig

PIXELS = 64 * 256 * 256  # of the images of a pass: with VGG-16 10 GiB (computed)


@dataclass
class LpipsScorer:
    """The network and the column that it writes."""

    model: Network
    column: str
    device: torch.device | str = "cpu"
    batch: int = 64

    @torch.inference_mode()
    def score(
        self, images: torch.Tensor, prompts: pd.DataFrame, task: Task, base: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Column lpips_alex or lpips_vgg, at least 0, one row an image; images and base uint8 (N, 3, H, W)."""
        values, count = [], self.images_of_a_pass(images)
        for ours, theirs in zip(images.split(count), base.split(count), strict=True):
            a, b = (part.to(self.device).float() / 127.5 - 1 for part in (ours, theirs))
            values.append(self.model(a, b).flatten().cpu())
        return {self.column: torch.cat(values).double().numpy()}

    def images_of_a_pass(self, images: torch.Tensor) -> int:
        """How many of the images (N, 3, H, W) pass the network at a time: `batch`, and fewer large ones."""
        return max(1, min(self.batch, PIXELS // images[0, 0].numel()))


def torchvision_names(model: torch.nn.Module) -> dict[str, str]:
    """Name of each tensor of torchmetrics' network (slice2.3.weight) -> torchvision's (features.3.weight)."""
    return {name: f"features.{name.split('.', 1)[1]}" for name in model.state_dict()}


def load(config: LpipsConfig, device: torch.device | str = "cpu") -> LpipsScorer:
    """Read the convolutions; classifier layers of torchvision's file are not used.

    Raises:
        FileNotFoundError, ValueError: a missing file or one that does not fit, by name.
    """
    (column,) = config.columns
    key = f"scorers.{next(iter(config.metrics))}.path"
    tensors = read_tensors(check_file(Path(config.path), config.sha256, key, config.fetch), key, config.fetch)
    model = Network(net=config.network, pnet_rand=True)
    names = torchvision_names(model.net)
    fill(model.net, {ours: tensors[theirs] for ours, theirs in names.items() if theirs in tensors}, key, config.fetch)
    return LpipsScorer(model.to(device).eval(), column, device)
