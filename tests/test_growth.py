"""The closed forms grow linearly with their captions, in counts that are the same on every machine; memory stays."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import performance
import pytest

ROOT = Path(__file__).parents[1]
FEW, MANY, MORE = 80, 140, 200  # concepts, in steps of 60; each fills a batch of 64 captions


@pytest.fixture(scope="module")
def growth() -> Iterator[Any]:
    """benchmarks/growth.py as a module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import growth

    yield growth
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def counts(growth) -> dict[str, dict[tuple[str, int], dict[str, Any]]]:
    """Closed form -> what grows and to what number -> counts, on a base that takes a second or two."""
    size = growth.Size(64, (64, 64), (FEW, MANY, MORE), (1, 3), (1, 2), few=3)
    table: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for row in growth.rows(size, is_timed=False):
        key = {"erased concepts": "concepts", "captions of a concept": "captions"}.get(row["grows"], "cross_attentions")
        table.setdefault(row["closed_form"], {})[row["grows"], row[key]] = row
    return table


FORMS = ("MACE, refinement", "MACE, fusion", "UCE", "RECE", "SPEED")
OTHERS = {"MACE, refinement": 1, "MACE, fusion": 0, "UCE": 3, "RECE": 3, "SPEED": 3}
"""Captions beside those of the erased concepts: the destination; of the last three also a retained concept and ""."""


@pytest.mark.parametrize("form", FORMS)
def test_passes_are_the_captions_and_solves_do_not_grow(counts, form):
    rows = {n: counts[form]["erased concepts", n] for n in (FEW, MANY, MORE)}
    assert [row["passes"] for row in rows.values()] == [n + OTHERS[form] for n in rows]
    assert len({row["solves"] for row in rows.values()}) == 1 and rows[FEW]["solves"] > 0
    empty = form in ("UCE", "RECE", "SPEED")
    for n in (1, 3):
        assert counts[form]["captions of a concept", n]["passes"] == n * (3 + OTHERS[form] - empty) + empty


@pytest.mark.parametrize("form", FORMS)
def test_work_is_linear_in_erased_concepts(counts, form):
    few, many, more = (counts[form]["erased concepts", n]["values"] for n in (FEW, MANY, MORE))
    assert few < many < more
    if form == "SPEED":  # computes a batch up to its longest caption, whose length differs
        assert more - many < 1.5 * (many - few)
    else:  # names differ in tokens, and so in the rows that are paired
        assert more - many == pytest.approx(many - few, rel=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_memory_does_not_grow_with_erased_concepts(counts, form):
    """MACE's fusion keeps a row of each projection and concept, as the LoRAs do; all else of a concept is a caption."""
    few, more = (counts[form]["erased concepts", n]["peak_mib"] for n in (FEW, MORE))
    rows = 2 * 4 * 64 * 8 * (MORE - FEW) / 2**20 if form == "MACE, fusion" else 0.0  # twice while they are joined
    assert more - few <= rows + 0.05 * few


@pytest.mark.parametrize("form", FORMS)
def test_the_encoder_does_no_more_for_more_cross_attentions(counts, form):
    one, two = (counts[form]["cross-attentions", n] for n in (2, 4))
    assert one["passes"] == two["passes"]
    assert one["values"] < two["values"] <= 2 * one["values"]
    assert two["peak_mib"] <= 2 * one["peak_mib"]


def test_the_page_is_made_of_the_table(growth):
    """Each closed form and case of docs/growth.csv is in docs/performance.md."""
    table, cases = pd.read_csv(ROOT / "docs/growth.csv"), list(growth.Size().cases())
    assert set(table["closed_form"]) == set(FORMS) and len(table) == len(FORMS) * len(cases)
    text = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert performance.summary(table) in text and performance.growth(table) in text
    assert performance.summary(table).count("\n") == len(cases) + 1
