"""Seeds named by their purpose."""

from __future__ import annotations

import hashlib

import pytest
import torch

from resurgence.seeds import generator, seed_of


def test_is_the_first_63_bits_of_sha256_of_the_reprs() -> None:
    digest = hashlib.sha256(b"'image', 'a photo of the ship', 3").hexdigest()
    assert seed_of("image", "a photo of the ship", 3) == int(digest[:16], 16) // 2


def test_value_is_pinned_across_versions_and_machines() -> None:
    assert seed_of("image", "a portrait of the doctor", 0) == 7736719332820126707


def test_purposes_do_not_collide() -> None:
    purposes = [("a", 1), ("a", "1"), ("a1",), ("a", "b"), ("ab",), ("a, b",), (1, "a"), ("a", 1, 0)]
    assert len({seed_of(*p) for p in purposes}) == len(purposes)


def test_fits_a_torch_generator_and_a_signed_64_bit_column() -> None:
    seeds = [seed_of("x", k) for k in range(1000)]
    assert max(seeds) < 2**63 and min(seeds) >= 0 and len(set(seeds)) == 1000
    assert max(seeds) > 2**62  # all 63 bits are in use


def test_generator_is_reproducible_and_independent_of_the_global_state() -> None:
    torch.manual_seed(0)
    first = torch.randn(4, generator=generator("noise", 7))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(first, torch.randn(4, generator=generator("noise", 7)))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, torch.randn(4, generator=generator("noise", 8)))


@pytest.mark.parametrize("purpose", [(), (1.5,), (None,), (True,), ("a", ("b",))])
def test_refuses_what_has_no_stable_text(purpose: tuple) -> None:
    with pytest.raises(ValueError, match="seed"):
        seed_of(*purpose)
