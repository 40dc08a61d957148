"""The benchmark for a GPU, with tiny models on the CPU: its parts run, and the table has their rates."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def on_gpu():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("on_gpu")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_the_table_by_hand(on_gpu) -> None:
    results = {
        "machine": {"name": "NVIDIA H100 80GB HBM3"},
        "sampling": {
            "default": {"images/s": 2.0, "of peak": 0.2, "GiB": 5.0},
            "any kernel": {"images/s": 2.5, "of peak": 0.25, "GiB": 5.0},
            "graphs": "OutOfMemoryError: no",
            "noise of 16 images, ms": 1.0,
        },
        "training": {"mace, 10 concepts": {"concepts/s": 0.5, "GiB": 19.0}},
    }
    head, _, *rows = on_gpu.table(results).splitlines()
    assert head.startswith("NVIDIA H100 80GB HBM3, torch ")
    assert rows[2:] == [
        "| sampling | default | 2.0 images/s | 0.2 | 5.0 |",
        "| sampling | any kernel | 2.5 images/s | 0.25 | 5.0 |",
        "| sampling | price of strictness | 25.0% | | |",
        "| training | mace, 10 concepts | 0.5 concepts/s |  | 19.0 |",
    ]


def test_parts_without_time_or_with_an_error_have_no_rows(on_gpu) -> None:
    errors = {"sampling": {"error": ["out of memory"]}, "training": on_gpu.gpu_machine.NO_TIME}
    assert len(on_gpu.table(errors).splitlines()) == 4


def test_a_run_without_time_ends_with_a_table(on_gpu, tmp_path: Path, monkeypatch) -> None:
    """Also without open_clip, which the last part alone needs."""
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for name in ("gpu_speed", "gpu_checks", "gpu_machine", "on_gpu"):
        monkeypatch.delitem(sys.modules, name)
    fresh = importlib.import_module("on_gpu")
    monkeypatch.setattr(
        sys, "argv", ["on_gpu.py", "--out", str(tmp_path), "--tiny", "--device", "cpu", "--seconds", "0"]
    )
    assert fresh.main() == 0
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert {results[part] for part in fresh.PARTS} == {"no time left"}


def test_every_kind_of_rate_with_tiny_models(on_gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = on_gpu.gpu_speed
    machine = on_gpu.gpu_machine.Machine("cpu", True, 470)
    monkeypatch.setattr(speed, "MODES", {"channels-last": speed.Mode("fp32", "channels-last")})
    monkeypatch.setattr(speed, "STEPS", {name: speed.STEPS[name] for name in ("lora, 1 x 4", "lora, 4 x 1")})
    results = {"sampling": speed.sampling(machine), "training": speed.training(machine)}
    rates = [line.split("|")[3].split() for line in on_gpu.table(results).splitlines()[4:]]
    assert [unit for _, unit in rates] == ["images/s", "steps/s", "steps/s", "concepts/s"]
    assert all(float(rate) > 0 for rate, _ in rates)


def test_the_profile_names_what_takes_the_time(on_gpu) -> None:
    machine = on_gpu.gpu_machine.Machine("cpu", True, 470)
    for result in on_gpu.gpu_speed.profile(machine).values():
        shares = list(result["longest"].values())
        assert 0 < result["kernels run"] < 1.2 and shares == sorted(shares, reverse=True) and 0.3 < sum(shares) <= 1.001
        assert any("conv" in name for name in result["longest"])


def test_an_interrupted_run_has_written_its_finished_parts(on_gpu, tmp_path: Path, monkeypatch) -> None:
    def interrupted(machine: object) -> dict:
        raise KeyboardInterrupt

    monkeypatch.setitem(on_gpu.PARTS, "sampling", interrupted)
    parts = ["--tiny", "--device", "cpu", "--parts", "machine", "sampling"]
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", "--out", str(tmp_path), *parts])
    with pytest.raises(KeyboardInterrupt):
        on_gpu.main()
    assert '"device": "cpu"' in (tmp_path / "gpu.json").read_text() and (tmp_path / "gpu.md").is_file()
