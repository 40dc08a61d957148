"""Budgets of the test tiers: a run fails when a tier costs half as much again as its budget, or a fast test costs more
than its own.

Costs must not depend on what else the machine does. So a test of the fast tier costs the seconds of the processor that
its process and the processes it started have taken, not seconds of the clock. A test that mostly waits for daemons that
are no children of it (SLURM, chaos) costs seconds of the clock. Both are divided by how slow the machine is just then:
four fixed pieces of work (`PIECES`), timed by the same clock before and after the test, at most every quarter of a
minute, each over the seconds that it takes on the machine of the budgets. The largest counts, so a busy or slow machine
is forgiven, never blamed: what others do on the machine slows memory, processes and the interpreter by different
factors. A runner may be slow for a few minutes in the middle of a run, and quick in its beginning and its end.

Budgets are in pyproject.toml, `[tool.resurgence.test-budgets]`. A run of a few tests stays below them by nature.
"""

from __future__ import annotations

import mmap
import resource
import subprocess
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

TOLERANCE = 1.5
REPEATS = 5  # of each piece of work
REFRESH = 15.0  # seconds of the clock, after which the machine is timed again
TIERS = ("smoke", "slurm", "chaos", "full_size", "weights", "nightly")  # markers; the first that a test has
FAST = "fast"  # tier of a test without any of them
WAITING = ("smoke", "slurm", "chaos")  # tiers that cost seconds of the clock


def processor_seconds() -> float:
    """Seconds of the processor that this process and its ended children have taken, with the children of those."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)  # os.times counts hundredths of a second
    return time.process_time() + children.ru_utime + children.ru_stime


CLOCKS = {"processor": processor_seconds, "clock": time.perf_counter}


def clock_of(tier: str) -> str:
    """The clock by which the tests of a tier cost seconds."""
    return "clock" if tier in WAITING else "processor"


def interpret() -> None:
    """What the interpreter does in most tests."""
    values = {str(n): n * n % 97 for n in range(60_000)}
    sorted(values, key=values.__getitem__)


def multiply() -> None:
    """A product of matrices."""
    matrix = np.ones((768, 768), np.float32)
    matrix @ matrix


def stream() -> None:
    """Memory that the system gives page by page, and more of it than the caches hold."""
    memory = np.frombuffer(mmap.mmap(-1, 16 << 20), np.uint8)
    memory[::4096] = 1
    memory.view(np.float32).sum()


def start() -> None:
    """A process that starts, reads a few files and ends."""
    subprocess.run([sys.executable, "-S", "-c", "import json"], check=True)


PIECES: dict[str, Callable[[], None]] = {
    "interpreter": interpret, "products": multiply, "memory": stream, "processes": start,
}  # fmt: skip


def slowness(
    piece: Callable[[], None], reference: float, clocks: Mapping[str, Callable[[], float]] = CLOCKS
) -> dict[str, float]:
    """By each clock the seconds of a piece of work over those of the machine of the budgets; at least 1."""
    begin = {name: clock() for name, clock in clocks.items()}
    for _ in range(REPEATS):
        piece()
    return {name: max(1.0, (clock() - begin[name]) / REPEATS / reference) for name, clock in clocks.items()}


def tier_of(markers: set[str]) -> str:
    """The tier of a test with these markers."""
    return next((tier for tier in TIERS if tier in markers), FAST)


def excesses(
    costs: Mapping[str, Mapping[str, float]], calls: Mapping[str, float], budgets: Mapping[str, float]
) -> Iterator[str]:
    """What is over its budget, a line each.

    Args:
        costs: tier -> test -> seconds, with the set-up of what tests share.
        calls: test of the fast tier -> seconds without any set-up.
        budgets: tier -> seconds of all its tests, and `test` -> seconds of one test of the fast tier.
    """
    for tier, tests in costs.items():
        total, limit = sum(tests.values()), TOLERANCE * budgets.get(tier, float("inf"))
        if total > limit:
            dearest = sorted(tests, key=tests.__getitem__, reverse=True)[:5]
            named = ", ".join(f"{name} {tests[name]:.0f} s" for name in dearest)
            yield f"tier {tier}: {total:.0f} s, more than {TOLERANCE} x {budgets[tier]} s; the dearest tests: {named}"
    for name, seconds in calls.items():
        if seconds > budgets.get("test", float("inf")):
            yield f"{name}: {seconds:.0f} s, more than {budgets['test']} s; make it smaller or nightly"


class Budget:
    """Adds up what the tests cost, over all workers, and fails the run in its end."""

    def __init__(self, config: pytest.Config) -> None:
        text = (config.rootpath / "pyproject.toml").read_text()
        self.budgets = tomllib.loads(text)["tool"]["resurgence"]["test-budgets"]
        self.worker = hasattr(config, "workeroutput")  # of pytest-xdist
        # tier -> test -> seconds on the machine of the budgets
        self.costs: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.taken: dict[str, float] = defaultdict(float)  # tier -> seconds on this one
        self.calls: dict[str, float] = {}
        self.over: list[str] = []
        # piece of work -> clock -> seconds over those on the machine of the budgets
        self.slow: dict[str, dict[str, float]] = {}
        self.weights: dict[str, float] = defaultdict(float)  # piece of work -> its slowness x seconds of the fast tier
        self.timed = -REFRESH
        self.start = dict.fromkeys(CLOCKS, 0.0)

    def measure(self) -> None:
        """Time the pieces of work in this process, if it was not just now."""
        if time.perf_counter() - self.timed >= REFRESH:
            self.slow = {name: slowness(piece, self.budgets["pieces"][name]) for name, piece in PIECES.items()}
            self.timed = time.perf_counter()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self) -> None:
        """A test begins, in the process that runs it."""
        self.measure()
        self.start = {name: clock() for name, clock in CLOCKS.items()}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Any:
        """Give the report of each phase of a test what the phase took, and what it cost."""
        report = yield
        tier = tier_of({marker.name for marker in item.iter_markers()})
        clock, before = clock_of(tier), self.slow
        seconds = CLOCKS[clock]() - self.start[clock]
        self.measure()
        slow = {name: max(before[name][clock], self.slow[name][clock]) for name in PIECES}
        report.cost = (tier, seconds, slow)
        self.start = {name: clock() for name, clock in CLOCKS.items()}
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add it up, in the process that has workers for those of all."""
        if not hasattr(report, "cost"):  # of a worker that has crashed
            return
        tier, seconds, slow = report.cost
        cost = seconds / max(slow.values())
        self.taken[tier] += seconds
        self.costs[tier][report.nodeid] += cost
        for name in slow if tier == FAST else ():
            self.weights[name] += slow[name] * seconds
        if tier == FAST and report.when == "call":
            self.calls[report.nodeid] = cost

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Compare, in the process that has seen all reports."""
        if self.worker:
            return
        self.over = list(excesses(self.costs, self.calls, self.budgets))
        if self.over and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Say last of all what each tier took, what it would take on the machine of the budgets, and what is over."""
        terminal = config.pluginmanager.get_plugin("terminalreporter")
        if self.worker or terminal is None:
            return
        for tier, tests in sorted(self.costs.items()):
            there = f"; {sum(tests.values()):.0f} s on the machine of the budgets"
            terminal.write_line(f"tier {tier}: {self.taken[tier]:.0f} s of the {clock_of(tier)}{there}")
        if self.taken[FAST]:
            named = ", ".join(f"{name} {value / self.taken[FAST]:.2f}" for name, value in self.weights.items())
            terminal.write_line(f"this machine's seconds over those of the machine of the budgets: {named}")
        for line in self.over:
            terminal.write_line(f"OVER BUDGET: {line}", red=True)
