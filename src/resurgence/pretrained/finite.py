"""Weights are finite: one check for every file of weights that is read or written, and for weights that are merged.

One NaN in a weight makes every image black, which the scorers take for a perfect erasure.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


def comparable(values: torch.Tensor) -> torch.Tensor:
    """The values in a type that PyTorch compares: 8-bit floats as float32."""
    return values.detach().float() if values.is_floating_point() and values.dtype.itemsize == 1 else values.detach()


def is_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite, of a tensor of any shape and type."""
    if not values.is_floating_point() or not values.numel():
        return True
    low, high = comparable(values).aminmax()  # NaN if there is any; isfinite().all() takes 30 times as long
    return bool(low.isfinite() & high.isfinite())


def check_finite(tensors: Mapping[str, torch.Tensor], place: object, remedy: str) -> None:
    """Raise ValueError for a tensor with NaN or infinite values: the place, its name, how many values, and the remedy.

    Args:
        tensors: name -> tensor of any type; whole numbers are always finite.
        place: file or computation that the tensors come from.
    """
    for name, values in tensors.items():
        if not is_finite(values):
            count, kind = int((~comparable(values).isfinite()).sum()), str(values.dtype).removeprefix("torch.")
            raise ValueError(f"{place}: {name} has {count} of {values.numel()} values that are NaN or infinite "
                             f"({kind}); {remedy}")  # fmt: skip
