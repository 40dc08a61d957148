"""Seeds named by their purpose, so that no result depends on order, batch size or number of workers."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_of(*purpose: str | int) -> int:
    """Return the first 63 bits of the SHA-256 of the purpose, e.g. `seed_of("image", prompt, 3)`.

    Raises:
        ValueError: the purpose is empty, or a part of it is neither text nor an integer.
    """
    if not purpose:
        raise ValueError("seed_of() needs a purpose; write for example seed_of('image', prompt, 0)")
    for part in purpose:
        if isinstance(part, bool) or not isinstance(part, str | int):
            raise ValueError(f"a seed's purpose holds {part!r}: {purpose!r}; write text and integers")
    digest = hashlib.sha256(", ".join(map(repr, purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*purpose: str | int) -> torch.Generator:
    """Return a CPU generator seeded by its purpose; draws are made on the CPU and moved, so devices agree."""
    import torch

    return torch.Generator().manual_seed(seed_of(*purpose))


def numpy_generator(*purpose: str | int) -> np.random.Generator:
    """A numpy generator seeded by its purpose."""
    return np.random.default_rng(seed_of(*purpose))
