"""The benchmarks run, and the naive procedures that they are compared with give the same weights."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from resurgence.diffusion.attention import projection_weights
from resurgence.diffusion.text import CAPTIONS
from resurgence.erasers.mace.fusion import caption_moment

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def table() -> Iterator[ModuleType]:
    """benchmarks/all.py as a module."""
    sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmarks_all", FOLDER / "all.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks_all"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(FOLDER))


@pytest.fixture
def base(table, request):
    """Two layers and two cross-attentions, all in float64, as new tensors are."""
    torch.set_default_dtype(torch.float64)
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    pipe = table.wide_base(2, [64, 128], 64)
    pipe.text_encoder.double()
    pipe.unet.double()
    return pipe


def same(delta, weights) -> bool:
    changes = ((delta[f"unet.{name}.weight"], w) for name, w in weights.items())
    return all(float((a - b).norm() / b.norm()) < 1e-8 for a, b in changes)


def test_the_naive_forms_of_uce_are_uce(table, base):
    task, weights = table.people(2, 3), projection_weights(base.unet)
    first = table.naive.uce_first(base, weights, task.mapping, task.retain, table.Clock(), 1)
    assert same(table.erase(base, task, "uce"), first)
    later = table.naive.uce_2025(base, weights, task.mapping, task.retain, table.Clock())
    settings = {"tokens": "last", "keep_empty": False, "preserve_scale": 1.0}
    assert same(table.erase(base, task, "uce", **settings), later)
    assert not same(table.erase(base, task, "uce"), later)


def test_the_naive_form_of_rece_is_rece(table, base):
    task, weights = table.people(2, 3), projection_weights(base.unet)
    naive = table.naive.rece(base, weights, task.mapping, task.retain, 2, table.Clock(), 1)
    assert same(table.erase(base, task, "rece", epochs=2), naive)


def test_the_naive_form_of_maces_closed_forms_is_mace(table, base):
    task, templates, weights = table.people(2), CAPTIONS[:3], projection_weights(base.unet)
    moment = caption_moment(table.Encoder(base)(["an old clock", "the sea"]))
    loras = table.random_loras(base, task.erase)
    ours = table.mace_closed_forms(base, task, moment, loras, templates, "fp64")
    clock = table.Clock()
    naive = table.naive.mace(base, weights, task.mapping, templates, 1e-4 * moment, loras, 1.0, clock, (1, 1))
    assert same(ours, naive) and clock.total > 0


def test_the_table_has_every_row_and_the_guard_names_those_that_fell(table, tmp_path):
    command = [sys.executable, str(FOLDER / "all.py"), "--quick", "--json", str(tmp_path / "table.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows = [table.Result(**row) for row in json.loads((tmp_path / "table.json").read_text())]
    for name in ("MACE, closed", "UCE of 2024", "UCE of 2025", "RECE", "refinement", "LoRAs", "ESD-x", "fine-tuning",
                 "sampling"):  # fmt: skip
        assert any(name in row.row for row in rows), name
    assert run.stdout.count("\n| ") == len(rows) + 1
    assert all(row.seconds > 0 and (row.ratio is None) == (row.naive_seconds is None) for row in rows)

    chosen = [dataclasses.replace(row, ratio=ratio) for row, ratio in zip(rows[:3], (2.0, 0.9, 2.0), strict=True)]
    last = {rows[0].row: 2.4, rows[1].row: 0.9, rows[2].row: 2.6}
    assert table.worse(chosen, last) == [
        f"{rows[1].row}: ratio 0.90 is below 1", f"{rows[2].row}: ratio 2.00, last 2.60",
    ]  # fmt: skip


def test_an_unknown_group_is_named():
    run = subprocess.run([sys.executable, str(FOLDER / "all.py"), "--quick", "--rows", "mac"], capture_output=True,
                         text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})  # fmt: skip
    assert run.returncode == 1 and "--rows 'mac'" in run.stderr and "closed" in run.stderr
