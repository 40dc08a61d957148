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
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def forms(table) -> ModuleType:
    """benchmarks/closed_rows.py."""
    return sys.modules["closed_rows"]


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


def test_the_naive_forms_of_uce_are_uce(table, forms, base):
    task, weights = table.people(2, 3), projection_weights(base.unet)
    first = table.naive.uce_first(base, weights, task.mapping, task.retain, table.Clock(), 1)
    assert same(forms.erase(base, task, "uce"), first)
    later = table.naive.uce_2025(base, weights, task.mapping, task.retain, table.Clock())
    assert same(forms.erase(base, task, "uce", **forms.UCE_2025), later)
    assert not same(forms.erase(base, task, "uce"), later)


def test_the_naive_form_of_rece_is_rece(table, forms, base):
    task, weights = table.people(2, 3), projection_weights(base.unet)
    naive = table.naive.rece(base, weights, task.mapping, task.retain, 2, table.Clock(), 1)
    assert same(forms.erase(base, task, "rece", epochs=2), naive)


def test_the_naive_form_of_maces_closed_forms_is_mace(table, forms, base):
    task, templates, weights = table.people(2), CAPTIONS[:3], projection_weights(base.unet)
    moment = caption_moment(forms.Encoder(base)(["an old clock", "the sea"]))
    loras = forms.random_loras(base, task.erase)
    ours = forms.mace_closed_forms(base, task, moment, loras, templates, "fp64")
    clock = table.Clock()
    naive = table.naive.mace(base, weights, task.mapping, templates, 1e-4 * moment, loras, 1.0, clock, (1, 1))
    assert same(ours, naive) and clock.total > 0
    refined = table.naive.mace_refined(base, weights, task.mapping, templates, 1e-4 * moment, 1.0, clock, (1, 1))
    settings = {"captions": templates, "preserve_weight": 0.0, "lamb": 1.0}
    assert same(forms.erase(base, task, "mace-refinement", moment, **settings), refined)


def test_new_tensors_are_float64_in_the_first_stage_alone(table, forms):
    pipe = table.wide_base(1, [64], 64)
    with forms.in_float64(pipe):
        assert table.naive.encode(pipe, "a cat").dtype == torch.eye(2).dtype == torch.float64
        assert {w.dtype for w in projection_weights(pipe.unet).values()} == {torch.float64}
    assert torch.eye(2).dtype == torch.float32


def test_large_closed_forms_embed_as_many_captions_as_they_say(table, forms):
    pipe, passes = table.wide_base(1, [64, 64], 64), []
    pipe.text_encoder.double().register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    for called, (number, side) in forms.large_forms(pipe, table.people(3), CAPTIONS[:2]).items():
        passes.clear()
        side.run(table.Clock())
        assert sum(passes) == number and side.work.startswith(f"{number} passes"), called


def test_layers_that_are_not_run_are_counted(table, forms, monkeypatch):
    """With measured seconds of 10 for the encoder and 12 for a form, both with one of four layers."""
    times = iter([10.0, 12.0])
    monkeypatch.setattr(forms, "measured", lambda run: (next(times), 0.0, None))
    monkeypatch.setattr(sys.modules["comparison"], "measured", lambda run: (next(times), 0.0, None))
    (row,) = forms.caption_rows(dataclasses.replace(table.QUICK, layers=4, forms=1))
    assert row.seconds == 12 + 3 * 10 and row.most == pytest.approx(1.1 * 40) and not row.missed


def test_limits_are_judged_whatever_the_last_table_says(table, capsys):
    def row(name, ratio, **limits):
        return table.Result(
            name, "1 pass", "2 passes", 30.0, None if ratio is None else 30 * ratio, ratio, 0.0, **limits
        )

    rows = [row("as fast", 1.0), row("slower", 0.99), row("three", 3.0, least=3.0), row("not three", 2.9, least=3.0),
            row("a minute", None, most=30.0), row("more", None, most=29.5)]  # fmt: skip
    assert table.misses(rows) == [
        "slower: ratio 0.99 is below 1", "not three: ratio 2.90 is below 3", "more: 30.0 s are more than 29.5",
    ]  # fmt: skip
    assert [row.limits for row in rows[3:5]] == ["ratio >= 3", "<= 30 s"]
    assert [("MISSES" in table.line(row)) for row in rows] == [False, True] * 3
    assert "MISSES" not in table.line(rows[1], is_judged=False)
    assert (table.status(rows, {}, True), table.status(rows[:1], {}, True), table.status(rows, {}, False)) == (3, 0, 0)
    assert table.status(rows[:1], {"as fast": 1.3}, True) == 4 and table.status(rows[:1], {"as fast": 1.2}, True) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "as fast: ratio 1.00, last 1.30"
    assert table.status([rows[0], rows[4]], {"as fast": 1.0, "renamed": 2.0}, True) == 0
    assert capsys.readouterr().err == "renamed: not compared, as only one of the tables has it\n"


def test_the_limits_are_those_that_were_asked_for(table, forms, monkeypatch):
    for module in (forms, sys.modules["comparison"]):
        monkeypatch.setattr(module, "measured", lambda run: (1.0, 0.0, None))
    pipe = table.wide_base(1, [64, 64], 64)
    assert [row.least for row in forms.mace_rows(pipe, table.QUICK)] == [3, 5]
    assert [row.least for row in forms.closed_rows(pipe, table.QUICK)] == [1] * 4
    many = [row.row.split(",")[0] for row in forms.many_rows(pipe, table.QUICK) if row.most == 60]
    assert many == ["MACE's refinement", "UCE of 2024", "RECE", "TIME", "UCE of 2025", "SPEED"]


def test_the_table_has_every_row_and_the_guard_names_those_that_fell(table, tmp_path):
    command = [sys.executable, str(FOLDER / "all.py"), "--quick", "--json", str(tmp_path / "table.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows = [table.Result(**row) for row in json.loads((tmp_path / "table.json").read_text())]
    for name in ("MACE, closed", "first stage", "UCE of 2024", "UCE of 2025", "RECE", "refinement", "TIME", "SPEED",
                 "2 captions", "LoRAs", "ESD-x", "fine-tuning", "sampling"):  # fmt: skip
        assert any(name in row.row for row in rows), name
    assert run.stdout.count("\n| ") == len(rows) + 1
    assert all(row.seconds > 0 and (row.ratio is None) == (row.naive_seconds is None) for row in rows)

    chosen = [dataclasses.replace(row, ratio=ratio) for row, ratio in zip(rows[:3], (2.0, 0.9, 2.0), strict=True)]
    last = {rows[0].row: 2.4, rows[1].row: 0.9, rows[2].row: 2.6}
    assert table.fallen(chosen, last) == [f"{rows[2].row}: ratio 2.00, last 2.60"]


def test_an_unknown_group_is_named(table, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["all.py", "--quick", "--rows", "mac"])
    with pytest.raises(SystemExit, match=r"--rows 'mac'.*closed"):
        table.main()
