"""The 2,048 pooled features of FID's Inception network (Heusel et al. 2017), for the scorer `frechet`.

The network is torch-fidelity's port of the TensorFlow graph of 2015-12-05 as torchmetrics uses it, its weights the file
`weights-inception-2015-12-05-6726825d.pth` of torch-fidelity's release v0.2.0, whose name ends with the beginning of
its SHA-256. Images are resized to 299 x 299, by a method that changes the distance and is therefore a setting:
  torchmetrics  bilinear with antialiasing, torchmetrics' default
  clean         bicubic with antialiasing, each channel in float, as in clean-fid (Parmar et al. 2022), which the
                resurgence study and MACE use
  tensorflow    bilinear without antialiasing, as in the original script
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from resurgence.diffusion.image_sets import ahead, threads
from resurgence.pretrained.loading import check_file, read_tensors

if TYPE_CHECKING:
    from torchmetrics.image.fid import NoTrainInceptionV3

    from resurgence.scorers.configs import InceptionConfig

SIDE = 299


def clean_resize(images: torch.Tensor) -> torch.Tensor:
    """Bicubic, antialiased, channels in float, clipped to [0, 255]: uint8 (B, 3, H, W) -> float (B, 3, 299, 299)."""
    with threads() as pool:  # PIL releases the interpreter's lock
        return torch.from_numpy(np.array(list(pool.map(resized, images.cpu().numpy())))).clamp(0, 255)


def resized(image: np.ndarray) -> list[np.ndarray]:
    """The channels of one image (3, H, W), each resized in float to 299 x 299."""
    channels = map(Image.fromarray, image.astype(np.float32))
    return [np.asarray(channel.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for channel in channels]


@dataclass
class InceptionScorer:
    """The network and its resizing; no column and no metric."""

    model: NoTrainInceptionV3
    resize: str  # of InceptionConfig
    device: torch.device | str = "cpu"
    batch: int = 64

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (N, 2048), float32 on the CPU; images uint8 (N, 3, H, W)."""
        batches, forward = iter(images.split(self.batch)), self.model
        if self.resize == "clean":
            batches, forward = ahead(map(clean_resize, batches)), self.of_resized
        return torch.cat([forward(part.to(self.device)).float().cpu() for part in batches])

    def of_resized(self, images: torch.Tensor) -> torch.Tensor:
        """Features of resized images, (B, 3, 299, 299) in [0, 255]."""
        return pooled(self.model, (images - 128) / 128)


def pooled(model: NoTrainInceptionV3, x: torch.Tensor) -> torch.Tensor:
    """The 2,048 features of resized and scaled images, (B, 3, 299, 299) in [-1, 1]."""
    names = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3",
             "MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d",
             "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool")  # fmt: skip
    for name in names:
        x = getattr(model, name)(x)
    return x.flatten(1)


def load(config: InceptionConfig, device: torch.device | str = "cpu") -> InceptionScorer:
    """Read the published weights.

    Raises:
        FileNotFoundError, ValueError: a missing file or one that does not fit, by name.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    key, path, fetch = "scorers.inception.path", config.path, config.fetch
    tensors = read_tensors(check_file(Path(path), config.sha256, key, fetch), key, fetch)
    # torch-fidelity reads any pickle; the buffer holds only the tensors that were read safely
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    buffer.seek(0)
    try:
        model = NoTrainInceptionV3("inception-v3-compat", ["2048"], buffer, antialias=config.resize == "torchmetrics")
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{key} = {str(path)!r}: the weights of another architecture ({reason}); {fetch}") from error
    return InceptionScorer(model.to(device), config.resize, device)
