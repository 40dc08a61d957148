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


class Live(TorchDispatchMode):
    """Bytes of the storages that operations have allocated and that are still referenced, and their peak.

    After an out-of-memory error the peak is counted anew.

    Args:
        capacity: bytes above which an operation is out of memory; None: no limit.

    Raises:
        torch.cuda.OutOfMemoryError: in the operation, whose result does not count.
    """

    def __init__(self, capacity: float | None = None) -> None:
        super().__init__()
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
            if not isinstance(tensor, torch.Tensor):
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
