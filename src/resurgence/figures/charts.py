"""Bars and curves of a page: where each number is drawn, for the templates in figures/page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from resurgence.figures.numbers import Number

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 210, 36, 12, 10, 34  # of a curve's panel in CSS pixels


def limits(numbers: Iterable[Number], share: bool) -> tuple[float, float]:
    """The ends of an axis: 0 and 100 for a share in percent, else those of values and intervals, and 0."""
    if share:
        return 0.0, 100.0
    ends = [v for n in numbers for v in (n.value, n.low, n.high) if math.isfinite(v)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    return low, high if high > low else low + 1


@dataclass(frozen=True)
class Bar:
    """A bar with its interval, in percent of the width of the axis."""

    label: str
    state: str  # base, erased or finetuned
    number: Number
    start: float
    length: float
    low: float | None
    high: float | None


def bars(items: Sequence[tuple[str, str, Number]], share: bool) -> list[Bar]:
    """Bars from zero.

    Args:
        items: label, state and number of each.
    """
    least, most = limits((number for *_, number in items), share)

    def place(value: float) -> float:
        return round(100 * (min(max(value, least), most) - least) / (most - least), 2)

    drawn = []
    for label, state, number in (item for item in items if math.isfinite(item[2].value)):
        zero, end = place(0), place(number.value)
        whole = math.isfinite(number.low) and math.isfinite(number.high)
        ends = (place(number.low), place(number.high)) if whole else (None, None)
        drawn.append(Bar(label, state, number, min(zero, end), abs(end - zero), *ends))
    return drawn


@dataclass(frozen=True)
class Curve:
    """A line over steps in the pixels of its panel."""

    label: str
    line: str  # SVG path
    band: str  # SVG path of the intervals; empty without them
    points: list[tuple[float, float, int, Number]]  # x, y, step, number


@dataclass(frozen=True)
class Panel:
    """Curves with their axes: position and text of the ticks, and the height of the base."""

    curves: list[Curve]
    xs: list[tuple[float, str]]
    ys: list[tuple[float, str]]
    base: float | None


def panel(lines: Mapping[str, Sequence[tuple[int, Number]]], base: Number | None, share: bool) -> Panel:
    """The panel of some curves.

    Args:
        lines: label -> step and number of each point; step 0 is the erased model. base: the value of the base.
    """
    steps = sorted({step for points in lines.values() for step, _ in points})
    numbers = [number for points in lines.values() for _, number in points] + ([base] if base else [])
    least, most = limits(numbers, share)

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / steps[-1], 1)

    def y(value: float) -> float:
        inside = min(max(value, least), most)
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (most - inside) / (most - least), 1)

    curves = []
    for label, points in lines.items():
        drawn = [(x(step), y(n.value), step, n) for step, n in points if math.isfinite(n.value)]
        ends = [(x(step), y(n.low), y(n.high)) for step, n in points if math.isfinite(n.low) and math.isfinite(n.high)]
        edge = [(at, high) for at, _, high in ends] + [(at, low) for at, low, _ in reversed(ends)]
        curves.append(Curve(label, path(drawn), path(edge) + "Z" if ends else "", drawn))
    ticks = [least + (most - least) * part / 4 for part in range(5)]
    height = y(base.value) if base and math.isfinite(base.value) else None
    return Panel(curves, [(x(step), str(step)) for step in steps], [(y(tick), f"{tick:g}") for tick in ticks], height)


def path(points: Iterable[tuple[float, ...]]) -> str:
    """The SVG path through points; empty without any."""
    text = "L".join(f"{point[0]:g} {point[1]:g}" for point in points)
    return f"M{text}" if text else ""
