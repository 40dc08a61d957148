"""Variances of means of tables (units, runs) from their mean squares, as terms with their degrees of freedom.

Runs are independent draws, or all pairs of some seeds of erasing and some of fine-tuning. Such pairs are no independent
draws: those of one erased model share its seed, and those of one seed of fine-tuning share that. With units u, seeds of
erasing e and of fine-tuning f the table is then a three-way layout of random effects without replication (Searle,
Casella and McCulloch 1992, Variance Components, chapter 4), whose mean has the variance

    s_u / U + s_e / E + s_f / F + s_ue / UE + s_uf / UF + s_ef / EF + s_uef / UEF.

Each component is a sum of mean squares; one that comes out negative counts as 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Design = tuple[int, int]
"""Number of seeds of erasing and of fine-tuning; the columns of a table have those of one erasing side by side."""


def design_of(seeds: Sequence[tuple[Hashable, Hashable]]) -> Design | None:
    """The design of runs that are all pairs of two seeds or more of each kind; None for any others.

    Args:
        seeds: of erasing and of fine-tuning, a pair a run.
    """
    numbers = len({erase for erase, _ in seeds}), len({tune for _, tune in seeds})
    is_whole = len(set(seeds)) == len(seeds) == numbers[0] * numbers[1]
    return numbers if is_whole and min(numbers) > 1 else None


def independent(tables: Sequence[Array]) -> list[tuple[float, float]]:
    """Terms of the variance of the sum of the means of some tables, with their degrees of freedom.

    Units of different tables are different, and their runs the same. With mean squares A of units, B of runs and E of
    the rest, the variance of the mean of U x S is (max(A - E, 0) + max(B - E, 0) + E) / (U S), for several tables the
    sum of the terms of units with the one term of runs.
    """
    terms: list[tuple[float, float]] = []  # coefficient x mean square, degrees of freedom
    runs = tables[0].shape[1]
    between = float(sum(table.mean(0) for table in tables).var(ddof=1)) if runs > 1 else 0.0
    rests = [rest(table) for table in tables]
    seeds = between > sum(rests)  # the runs differ more than the rest explains
    for table, residual in zip(tables, rests, strict=True):
        units = len(table)
        spread = float(table.mean(1).var(ddof=1)) / units if units > 1 else 0.0
        concepts = spread > residual / runs
        terms.append((spread if concepts else 0.0, units - 1))
        terms.append((residual / runs * (1 - concepts - seeds), (units - 1) * max(runs - 1, 1)))
    if seeds:
        terms.append((between / runs, runs - 1))
    return terms


def rest(table: Array) -> float:
    """Variance of a run's mean by the interaction of units and runs, E / U; 0 without repetition."""
    units, runs = table.shape
    if units < 2 or runs < 2:
        return 0.0
    residual = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    return float((residual**2).sum()) / ((units - 1) * (runs - 1)) / units


def crossed(tables: Sequence[Array], design: Design) -> list[tuple[float, float]]:
    """Terms as those of `independent`, of runs that are all pairs of seeds."""
    e, f = design
    squares: dict[str, tuple[float, float]] = {}  # mean square as its part of the variance, degrees of freedom
    effects: list[dict[str, int]] = []  # components as sums of these
    for k, table in enumerate(tables):
        if (u := len(table)) < 2:
            continue
        cube = table.reshape(u, e, f)
        squares |= {
            f"u{k}": (table.mean(1).var(ddof=1) / u, u - 1),
            f"ue{k}": (rest(cube.mean(2)) / e, (u - 1) * (e - 1)),
            f"uf{k}": (rest(cube.mean(1)) / f, (u - 1) * (f - 1)),
            f"uef{k}": three_way(cube),
        }
        effects += [
            {f"uef{k}": 1}, {f"ue{k}": 1, f"uef{k}": -1}, {f"uf{k}": 1, f"uef{k}": -1},
            {f"u{k}": 1, f"ue{k}": -1, f"uf{k}": -1, f"uef{k}": 1},
        ]  # fmt: skip
    runs = np.sum([table.mean(0) for table in tables], axis=0).reshape(e, f)
    squares |= {
        "e": (runs.mean(1).var(ddof=1) / e, e - 1),
        "f": (runs.mean(0).var(ddof=1) / f, f - 1),
        "ef": (rest(runs) / f, (e - 1) * (f - 1)),
    }
    varying = [k for k in range(len(tables)) if f"u{k}" in squares]
    whole = {f"uef{k}": 1 for k in varying}
    effects.append({"ef": 1} | {name: -1 for name in whole})
    effects += [{each: 1, "ef": -1} | {f"u{each}{k}": -1 for k in varying} | whole for each in ("e", "f")]
    sums = dict.fromkeys(squares, 0)
    for effect in effects:
        if sum(times * squares[name][0] for name, times in effect.items()) > 0:
            for name, times in effect.items():
                sums[name] += times
    return [(times * squares[name][0], squares[name][1]) for name, times in sums.items()]


def three_way(cube: Array) -> tuple[float, float]:
    """The mean square of the interaction of all three of (A, B, C) over A B C, and its degrees of freedom."""
    residual = cube
    for axis in range(3):
        residual = residual - residual.mean(axis, keepdims=True)
    degrees = int(np.prod([n - 1 for n in cube.shape]))
    return float((residual**2).sum()) / degrees / cube.size, degrees
