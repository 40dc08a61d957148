"""The budgets of the tiers fail a run that has outgrown them, and blame neither waiting nor a slow machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from budget import CLOCKS, FAST, PIECES, REPEATS, TIERS, TOLERANCE, excesses, slowness, tier_of

TESTS = """\
import time, pytest

def test_that_computes():
    end = time.process_time() + 1.0
    while time.process_time() < end: pass

def test_that_waits():
    time.sleep(1.0)

@pytest.mark.nightly
def test_of_another_tier():
    test_that_computes()
"""
BUDGETS = "[tool.resurgence.test-budgets]\nfast = {fast}\ntest = {test}\nnightly = 9\npieces = {{ {pieces} }}\n"
QUICK = dict.fromkeys(PIECES, 1000.0)  # every machine is quicker than one that takes so long


def run(
    folder: Path, *arguments: str, pieces: dict[str, float] = QUICK, **budgets: float
) -> subprocess.CompletedProcess:
    """Pytest with these budgets over the three tests."""
    told = BUDGETS.format(pieces=", ".join(f"{name} = {seconds}" for name, seconds in pieces.items()), **budgets)
    (folder / "pyproject.toml").write_text(told + "[tool.pytest.ini_options]\nmarkers = ['nightly']\n")
    (folder / "test_three.py").write_text(TESTS)
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [(), ("-n", "2")])
def test_a_run_fails_that_costs_half_as_much_again(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run(tmp_path, *arguments, fast=0.5, test=9)
    assert done.returncode == 1 and "3 passed" in done.stdout, done.stdout + done.stderr
    line = done.stdout.splitlines()[-1]  # what a log shows of which only the end is kept
    assert line.startswith("OVER BUDGET: tier fast: 1 s, more than 1.5 x 0.5 s") and "test_that_computes 1 s" in line


def test_waiting_and_other_tiers_cost_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, fast=1.2, test=1.2)
    assert done.returncode == 0 and "OVER" not in done.stdout, done.stdout + done.stderr


def test_a_test_costs_less_on_a_machine_that_is_slow_while_it_runs(tmp_path: Path) -> None:
    """A thousand times slower than that of the budgets, and more, in one piece of work."""
    done = run(tmp_path, "-n", "2", pieces={**QUICK, "memory": 1e-7}, fast=0.1, test=0.1)
    assert done.returncode == 0 and "OVER" not in done.stdout, done.stdout + done.stderr
    assert "s of the processor; 0 s on the machine of the budgets" in done.stdout


def test_one_test_may_be_too_dear() -> None:
    costs = {"fast": {"a": 100.0, "b": 20.0}}
    (line,) = excesses(costs, {"a": 100.0, "b": 20.0}, {"fast": 200, "test": 60})
    assert line.startswith("a: 100 s, more than 60 s")
    assert list(excesses(costs, {"a": 60.0, "b": 20.0}, {"fast": 80, "test": 60})) == []


def test_the_budgets_of_the_project_are_those_of_its_markers() -> None:
    """A tier without a budget could grow for ever."""
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["tool"]
    assert settings["resurgence"]["test-budgets"].keys() == {FAST, *TIERS, "test", "pieces"}
    assert settings["resurgence"]["test-budgets"]["pieces"].keys() == PIECES.keys()
    assert set(TIERS) < {marker.partition(":")[0] for marker in settings["pytest"]["ini_options"]["markers"]}
    assert TOLERANCE == 1.5 and settings["resurgence"]["test-budgets"]["test"] == 60


def test_a_slow_machine_is_measured_and_a_fast_one_gets_no_less() -> None:
    done, ticks = [], iter([0.0, 2.0 * REPEATS, 0.0, 0.1 * REPEATS])
    clocks = {"clock": lambda: next(ticks)}
    assert slowness(lambda: done.append(1), 1.0, clocks) == {"clock": 2.0} and len(done) == REPEATS
    assert slowness(lambda: None, 1.0, clocks) == {"clock": 1.0}


def test_every_piece_is_some_milliseconds_by_both_clocks() -> None:
    """The processes that a piece starts count too."""
    for name, piece in PIECES.items():
        for clock in CLOCKS.values():
            piece(), (begin := clock()), piece()
            assert 0.002 < clock() - begin < 1, name


def test_tier_of_a_test_is_its_rarest_marker() -> None:
    assert tier_of({"slow", "slurm", "smoke"}) == "smoke" and tier_of({"slow"}) == "fast"
    assert tier_of({"nightly", "slow"}) == "nightly"
