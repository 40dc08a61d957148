"""The device and the arithmetic of a computation: the one place that decides precision and determinism on a GPU.

Text encoding, VAE, sampling, masks, training and scorers run inside `exact`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from resurgence.config.fields import ConfigError

VARIABLE = "RESURGENCE_DETERMINISTIC"  # true or false; set by the Snakefile from base.deterministic
# cuBLAS is deterministic with it, and reads it when its handle is created: so before anything runs on a GPU
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# of weights and activations; tf32: fp32, whose products and convolutions run in TF32
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


# what CUDA, Triton and the compiler say where memory does not suffice, cuBLAS, and cuDNN, whose engines need workspace
OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED",
                 "CUDNN_STATUS_ALLOC_FAILED", "unable to find an engine to execute this computation")  # fmt: skip


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the memory of the GPU did not suffice: torch's exception, or one of OUT_OF_MEMORY in another."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


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


def is_deterministic() -> bool:
    """Whether a GPU is to use only kernels that give the same bytes again: unless RESURGENCE_DETERMINISTIC is false.

    Raises:
        ConfigError: another value than true or false.
    """
    value = os.environ.get(VARIABLE, "true")
    if value not in ("true", "false"):
        raise ConfigError(f"the environment variable {VARIABLE}", value, "write true or false, or unset it")
    return value == "true"


def check_precision(key: str, precision: str, device: str | torch.device) -> None:
    """Raise ConfigError for tf32 on a device without TF32, which would compute in fp32."""
    device = torch.device(device)
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise ConfigError(key, precision, f"needs a GPU of the Ampere generation or later, {device} is in use; "
                                          "write fp32")  # fmt: skip


@contextmanager
def exact(device: str | torch.device, precision: str = "fp32") -> Iterator[None]:
    """The arithmetic of everything that is computed on a GPU; on a CPU nothing changes.

    Convolutions and products of fp32 are computed in fp32, and in TF32 only where the precision is tf32: otherwise the
    batch size would show in the images.
    If `is_deterministic`, an operation without a deterministic kernel is an error, and the kernels of attention are
    deterministic too; under `warn_only` their backward passes would not be. Memory is not filled first.

    Args:
        precision: of the settings; all but tf32 mean that no product runs in TF32.

    Raises:
        ConfigError: see `is_deterministic`. RuntimeError: in the block, an operation without a deterministic kernel.
    """
    if torch.device(device).type in ("cpu", "meta"):
        yield
        return
    deterministic, memory, products = is_deterministic(), torch.utils.deterministic, torch.backends.cuda.matmul
    fast = precision == "tf32"
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled, tf32 = memory.fill_uninitialized_memory, products.allow_tf32
    torch.use_deterministic_algorithms(deterministic, warn_only=False)
    memory.fill_uninitialized_memory = False  # by NaN: one more operation for each tensor
    products.allow_tf32 = fast
    convolutions = {"benchmark": not deterministic, "deterministic": deterministic, "allow_tf32": fast}
    try:
        with torch.backends.cudnn.flags(enabled=True, **convolutions):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory, products.allow_tf32 = filled, tf32
