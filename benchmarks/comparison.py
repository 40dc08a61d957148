"""A line of benchmarks/all.py: both sides timed, the limits of a row, and what a row says that misses one."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bases import WIDTHS, Clock

LONG = 20.0  # seconds from which one run is enough
REPEATS = 1 if "--quick" in sys.argv else 5  # runs otherwise
WORSE = 0.8  # of the last ratio


@dataclass(frozen=True)
class Size:
    """How much is run."""

    layers: int  # of the encoder
    widths: list[int]  # channels of the cross-attentions
    concepts: int
    captions: int  # templates
    sampled_concepts: int  # concepts that the naive MACE is run for
    sampled_widths: int  # cross-attentions that the naive closed forms are run for
    steps: int  # of a training
    images: int
    many: int  # concepts of the large closed forms
    sampled_many: int  # of these, how many are run with all templates
    sampled_layers: int  # of the encoder, how many are run for these
    forms: int | None = None  # closed forms that are run for these; None: all
    dimension: int = 768  # of the embeddings


FULL = Size(12, WIDTHS, 10, 30, 10, 16, 20, 64, 100, 100, 12)
DEFAULT = Size(12, WIDTHS, 10, 30, 2, 4, 10, 64, 100, 50, 1, forms=4)
QUICK = Size(1, [64, 64], 2, 2, 1, 1, 2, 2, 3, 2, 1, dimension=64)


@dataclass(frozen=True)
class Side:
    """One procedure of a row."""

    work: str  # passes of captions, solves, precision
    run: Callable[[Clock], Any]


@dataclass(frozen=True)
class Result:
    """A line of the table; seconds of the processor."""

    row: str
    ours: str
    naive: str
    seconds: float
    naive_seconds: float | None
    ratio: float | None
    spread: float  # the larger of both sides
    note: str = ""
    least: float = 1.0  # ratio
    most: float | None = None  # seconds of ours

    @property
    def limits(self) -> str:
        """What the row is to keep."""
        ratio = [] if self.ratio is None else [f"ratio >= {self.least:g}"]
        return ", ".join(ratio + ([] if self.most is None else [f"<= {self.most:.4g} s"]))

    @property
    def missed(self) -> str:
        """The limit that it misses, or nothing."""
        if self.ratio is not None and self.ratio < self.least:
            return f"ratio {self.ratio:.2f} is below {self.least:g}"
        if self.most is not None and self.seconds > self.most:
            return f"{self.seconds:.1f} s are more than {self.most:.4g}"
        return ""


def measured(run: Callable[[Clock], Any]) -> tuple[float, float, Any]:
    """Median seconds, spread, and the result of the last run."""
    times: list[float] = []
    while not times or (len(times) < REPEATS and max(times) < LONG):
        clock, start = Clock(), time.process_time()
        result = run(clock)
        times.append(clock.total or time.process_time() - start)
    median = statistics.median(times)
    return median, (max(times) - min(times)) / median, result


def difference(ours: Any, other: Any) -> str:
    """The largest relative difference of two results: of edits in norm, of images in grey levels."""
    if isinstance(other, list):
        worst = max(int(abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(ours, other, strict=True))
        if worst > 1:
            raise SystemExit(f"images differ by {worst} grey levels; ours are wrong, or the pipeline has changed")
        return f"differ by {worst} of 255"
    if not isinstance(other, dict):
        return ""
    pairs = ((ours[f"unet.{name}.weight"].double(), w.double()) for name, w in other.items())
    return f"weights differ by {max(float((a - b).norm() / b.norm()) for a, b in pairs):.0e}"


def compare(row: str, ours: Side, other: Side | None, note: str = "", most: float | None = None) -> Result:
    """Time both sides."""
    seconds, spread, result = measured(ours.run)
    if other is None:
        return Result(row, ours.work, "", seconds, None, None, spread, note, most=most)
    slow, other_spread, expected = measured(other.run)
    notes = [part for part in (note, difference(result, expected)) if part]
    worst = max(spread, other_spread)
    return Result(row, ours.work, other.work, seconds, slow, slow / seconds, worst, "; ".join(notes), most=most)


HEAD = "| row | ours | naive | ours, CPU s | naive, CPU s | ratio | limit | spread | |\n" + 9 * "|---" + "|"


def line(result: Result, is_judged: bool = True) -> str:
    """A line of the table; one that misses its limit says so."""
    slow = "" if result.naive_seconds is None else f"{result.naive_seconds:.2f}"
    ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
    mark = f"**MISSES its limit: {result.missed}**" if is_judged and result.missed else ""
    note = "; ".join(part for part in (mark, result.note) if part)
    cells = (result.row, result.ours, result.naive, f"{result.seconds:.2f}", slow, ratio, result.limits,
             f"{result.spread:.0%}", note)  # fmt: skip
    return f"| {' | '.join(cells)} |"


def misses(table: Iterable[Result]) -> list[str]:
    """What the rows say that miss their limits."""
    return [f"{result.row}: {result.missed}" for result in table if result.missed]


def fallen(table: Iterable[Result], last: Mapping[str, float]) -> list[str]:
    """What the rows say whose ratio has fallen."""
    known = [(r, last[r.row]) for r in table if r.ratio is not None and r.row in last]
    return [f"{r.row}: ratio {r.ratio:.2f}, last {old:.2f}" for r, old in known if r.ratio < WORSE * old]


def unmatched(table: Iterable[Result], last: Mapping[str, float]) -> list[str]:
    """The rows with a ratio that only one of the tables has, so that a fall of theirs would not be seen."""
    ours = {result.row for result in table if result.ratio is not None}
    return [f"{row}: not compared, as only one of the tables has it" for row in sorted(ours ^ last.keys())]
