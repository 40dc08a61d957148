"""Every training of Stable Diffusion 1.4 and 2.1 fits into 24 GB, counted on the meta device: full_size_memory.py."""

from __future__ import annotations

import pytest
import torch

from full_size_memory import CAPACITY, ERASERS, PUBLISHED, TUNES, need, sampling
from live_bytes import Live
from published import BASES

BYTES = 4  # of a value in fp32


def values(base: str) -> int:
    """Parameters of the UNet, as published."""
    return BASES[base]["sizes"]["unet"]


def test_live_bytes_are_those_of_tensors_and_end_at_the_capacity() -> None:
    with Live(capacity=1000) as live:
        a = torch.empty(100, device="meta")
        b = a * 2
        assert live.now == live.peak == 800
        with pytest.raises(torch.cuda.OutOfMemoryError):
            a + b
        assert live.now == 800
        del b
        c = a[:50].clone()
        assert live.now == live.peak == 600 and len(c) == 50


@pytest.mark.parametrize(
    ("name", "changes", "copies"),
    [
        # weights, Adam's two moments, gradients; Adam's moments of the inner steps, in which there are no others
        ("erasediff", {"batch": 1, "inner_steps": 1}, 6),
        ("scissorhands", {"batch": 1}, 5),  # gradients of both losses
        ("salun", {"batch": 1}, 4.25),  # one mask of bytes
    ],
)
def test_no_further_copy_of_weights_or_gradients_is_held(name: str, changes: dict[str, int], copies: float) -> None:
    """Of SD 2.1, the larger one. All else, activations, is less than a copy."""
    found = need("sd21", name, **changes)
    assert copies * BYTES * values("sd21") < found.peak < min(CAPACITY, (copies + 1) * BYTES * values("sd21"))


@pytest.mark.nightly
@pytest.mark.parametrize("base", ["sd14", "sd21"])
@pytest.mark.parametrize("name", [*ERASERS, "mace", *TUNES])
def test_every_training_fits_with_its_published_batch(name: str, base: str) -> None:
    assert need(base, name, **PUBLISHED.get(name, {})).peak < CAPACITY


@pytest.mark.parametrize("base", ["sd14", "sd21"])
def test_sampling_fits_with_the_batch_of_the_study(base: str) -> None:
    """16 images, guided, in fp32."""
    assert sampling(base, 16) < CAPACITY
