"""Bytes of live tensors, counted as operations allocate them: of memory tests, and of benchmarks/full_size.py.

On PyTorch's meta device tensors have shapes and no values, so networks of full size need no memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
READING = {aten._local_scalar_dense, aten.item, aten.is_nonzero}  # operations whose result is a number


class Live(TorchDispatchMode):
    """Bytes of the storages that operations have allocated and that are still referenced, and their peak.

    After an out-of-memory error the peak is counted anew.

    Args:
        capacity: bytes above which an operation is out of memory; None: no limit.
        device: type of the device whose tensors count; None: all.

    Raises:
        torch.cuda.OutOfMemoryError: in the operation, whose result does not count.
    """

    def __init__(self, capacity: float | None = None, device: str | None = None) -> None:
        super().__init__()
        self.device = device
        self.capacity = float("inf") if capacity is None else capacity
        self.live: set[int] = set()
        self.now = self.peak = 0

    def free(self, key: int, size: int) -> None:
        self.live.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if not isinstance(tensor, torch.Tensor) or self.device not in (None, tensor.device.type):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.live and key not in inputs:
                if self.now + size > self.capacity:
                    self.peak = 0  # from here: of what fits
                    raise torch.cuda.OutOfMemoryError(f"{self.now + size} of {self.capacity} bytes")
                self.live.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.free, key, size)
        return out


class Values(TorchDispatchMode):
    """Values of meta tensors, which have none, where code reads them: whole numbers are 0, others 1, conditions hold.

    So numbers are finite and no kernel reports an error. A copy on the CPU has one value in memory, whatever its shape.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        first = args[0] if args and isinstance(args[0], torch.Tensor) and args[0].is_meta else None
        if first is not None and func.overloadpacket in READING:
            return value(first.dtype).item()
        if first is not None and kwargs.get("device") == torch.device("cpu"):
            return value(kwargs.get("dtype") or first.dtype).expand(first.shape)
        return func(*args, **kwargs)


def value(dtype: torch.dtype) -> torch.Tensor:
    """What `Values` reads of a tensor of this type."""
    return torch.tensor(dtype.is_floating_point or dtype == torch.bool, dtype=dtype)


class Fused(torch.autograd.Function):
    """The shapes and the bytes of a fused attention kernel."""

    flops = 0

    @staticmethod
    def forward(ctx, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        Fused.flops += 4 * q.numel() * k.shape[-2]
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, _ = ctx.saved_tensors
        Fused.flops += 10 * q.numel() * k.shape[-2]
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Within the block attention is one fused kernel, as on a GPU."""
    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, *_, **__: Fused.apply(q, k, v)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original
