"""Deltas in half precision: half the disk, for full fine-tunes of SD 1.4 1.7 instead of 3.4 GB a checkpoint.

A stored delta is what everything after it reads, so the precision is a setting of the study and not of the disk. One
in bf16 keeps 8 bits of each value, in fp16 11 bits for values between 6e-5 and 65504.
"""

from __future__ import annotations

from pathlib import Path

import torch

from resurgence.bases import DELTA_FILE, Delta, load_delta, save_delta

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def in_precision(delta: Delta, precision: str) -> Delta:
    """The delta in this precision.

    Raises:
        ValueError: a value that becomes infinite, naming the tensor.
    """
    found = {name: value.to(DTYPES[precision]) for name, value in delta.items()}
    for name, value in found.items():
        if not value.isfinite().all() and delta[name].isfinite().all():
            largest = float(delta[name].abs().max())
            raise ValueError(
                f"delta: {name} holds {largest:g}, too large for {precision}; set base.delta_precision to bf16"
            )
    return found


def store(folder: Path, precision: str) -> None:
    """Rewrite every delta below a folder in this precision; fp32 is what they are written in."""
    if precision == "fp32":
        return
    for file in sorted(Path(folder).rglob(DELTA_FILE)):
        save_delta(in_precision(load_delta(file), precision), file)
