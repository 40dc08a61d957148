"""Every stage of Stable Diffusion 1.4 and 2.1 fits into 24 GB, counted on the meta device: full_size_table.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from full_size_memory import CAPACITY, ERASERS, need
from full_size_stages import CLOSED_FORMS, NO_NETWORK, SCORERS, stage_need
from full_size_table import HEAD, TITLES, needs_of, row
from live_bytes import Live, Values
from published import BASES
from resurgence.config import erasers, scorers

BYTES = 4  # of a value in fp32
PAGE = (Path(__file__).parents[1] / "docs/large-runs.md").read_text()


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
        pytest.param("erasediff", {"batch": 1, "inner_steps": 1}, 6, marks=pytest.mark.nightly),
        pytest.param("scissorhands", {"batch": 1}, 5, marks=pytest.mark.nightly),  # gradients of both losses
        ("salun", {"batch": 1}, 4.25),  # one mask of bytes
    ],
)
def test_no_further_copy_of_weights_or_gradients_is_held(name: str, changes: dict[str, int], copies: float) -> None:
    """Of SD 2.1, the larger one. All else, activations, is less than a copy."""
    found = need("sd21", name, **changes)
    assert copies * BYTES * values("sd21") < found.peak < min(CAPACITY, (copies + 1) * BYTES * values("sd21"))


def test_values_where_code_reads_them() -> None:
    with Values(), Live(device="meta") as live:
        a = torch.empty(4, 3, device="meta")
        assert float(a.sum()) == 1 and bool((a > 2).all()) and int(a.long().max()) == 0
        copy = (a > 2).cpu()
        assert copy.device.type == "cpu" and copy.shape == (4, 3) and copy.all()
    assert live.peak < 2 * 4 * 3 * 8  # not the copies on the CPU


def test_every_eraser_and_scorer_is_counted_and_every_row_is_on_the_page() -> None:
    assert {name.split(",")[0] for name in (*ERASERS, "mace", *CLOSED_FORMS)} == set(erasers.ERASERS)
    assert {*SCORERS, *NO_NETWORK} == set(scorers.SCORERS)
    assert HEAD in PAGE and all(PAGE.count(f"\n| {title} | ") == 1 for title in TITLES.values())


@pytest.mark.nightly
@pytest.mark.parametrize("name", TITLES)
def test_every_stage_fits_with_its_published_batch_and_needs_what_the_page_says(name: str) -> None:
    needs = needs_of(name)
    assert all(found.peak < CAPACITY for found in needs)
    assert row(name, needs) in PAGE.splitlines()


PASSES = {  # row of the page's first table -> fine-tune of one pass a step, its settings
    "batch 1": ("lora", {"batch": 1}),
    "batch 10, as MACE's `chunk: 10`": ("lora", {"batch": 10}),
    "batch 10, gradient checkpointing": ("lora", {"batch": 10, "gradient_checkpointing": True}),
    "batch 1, gradient checkpointing": ("full", {"batch": 1}),
    "batch 2, gradient checkpointing": ("full", {"batch": 2}),
    "batch 8, gradient checkpointing": ("full", {"batch": 8}),
    "batch 8": ("full", {"batch": 8, "gradient_checkpointing": False}),
}


@pytest.mark.nightly
@pytest.mark.parametrize("setting", PASSES)
def test_the_table_of_passes_has_what_a_training_of_one_pass_needs(setting: str) -> None:
    """That table counts the pass alone, and adds weights, moments and average: benchmarks/full_size.py."""
    name, changes = PASSES[setting]
    needs = [need(base, name, float("inf"), accumulation=1, **changes).peak / 2**30 for base in ("sd14", "sd21")]
    row = re.search(rf"\| {re.escape(setting)} \| ([0-9.]+) / ([0-9.]+) \|", PAGE)
    assert row and [float(number) for number in row.groups()] == pytest.approx(needs, abs=0.1)


@pytest.mark.parametrize(
    ("base", "name"), [("sd14", "sampling"), ("sd21", "sampling"), ("sd21", "uce"), ("sd21", "lpips_vgg")]
)
def test_some_stages_fit(base: str, name: str) -> None:
    """16 guided images in fp32; a text encoder in fp64; the largest network of a scorer. The others: nightly."""
    assert stage_need(base, name).peak < CAPACITY


def test_a_stage_that_needs_more_than_there_is_fails() -> None:
    whole = stage_need("sd21", "second moments, fp32").peak
    with pytest.raises(torch.cuda.OutOfMemoryError):
        stage_need("sd21", "second moments, fp32", capacity=whole - 1)
