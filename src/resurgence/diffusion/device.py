"""The device and the precision of a computation, and deterministic arithmetic."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def at_least_single(values: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or in float64 where it is that already: for losses of models in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def resolve_device(name: str | torch.device) -> torch.device:
    """Return the device of the name `auto`, `cpu`, `cuda` or `cuda:N`; auto is the GPU when there is one.

    Raises:
        ValueError: a device that this machine does not have; there is no silent fallback to the CPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device = {name!r} is unknown; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"device = {name!r}, but {count} CUDA devices are visible; use auto or cpu")
    return device


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """On a GPU: deterministic kernels, and fp32 convolutions in fp32 instead of TF32, PyTorch's default there.

    Otherwise the batch size would show in the images, and a run would not repeat itself. For speed set the precision.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
