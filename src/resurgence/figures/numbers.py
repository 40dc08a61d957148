"""The numbers of a page from the tables of a study, each with the file and row that it stands in.

A number over several seeds stands in means.csv or seeds.csv; the rows of its runs are in cells.csv or resurgence.csv,
for which `resurgence provenance` prints the whole chain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from resurgence.analysis.headline import CELL, cell_row, number
from resurgence.analysis.read import read_table

TABLES = ("cells", "means", "resurgence", "seeds")
RULE = "tables"  # that writes them
KEY = [*CELL, "state", "step", "role", "metric"]


class Source(NamedTuple):
    """Where a number stands, and the commands that print its provenance."""

    name: str  # of the entry in the list of sources
    place: str  # such as a row of a table, the first one being 1
    commands: tuple[str, ...]
    rule: str = RULE


@dataclass(frozen=True)
class Number:
    """A number of the page with its interval; NaN: there is none."""

    value: float
    low: float
    high: float
    source: Source

    @property
    def text(self) -> str:
        """The number as in the reports."""
        return number(self.value)

    @property
    def interval(self) -> str:
        """The interval in brackets; empty without one."""
        return f"[{number(self.low)}, {number(self.high)}]" if math.isfinite(self.low) else ""


class Numbers:
    """The tables of a study, and the sources of the numbers that were asked for.

    Args:
        folder: results/tables, as the page names it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cells, self.means, self.resurgence, self.seeds = (read_table(folder / f"{name}.csv") for name in TABLES)
        self.sources: dict[tuple[str, int], Source] = {}
        self._means = {key_of(row): row for _, row in self.means.iterrows()}
        self._runs: dict[tuple, list[int]] = {}
        for position, row in self.cells.iterrows():
            self._runs.setdefault(key_of(row), []).append(position)

    def cite(self, table: str, position: int, behind: str, positions: list[int]) -> Source:
        """The source of a row.

        Args:
            position: of the row, from 0. behind, positions: table and rows of its runs.
        """
        file = (self.folder / f"{table}.csv").as_posix()
        if (file, position) not in self.sources:
            place = (self.folder / f"{behind}.csv").as_posix()
            commands = tuple(f"resurgence provenance {place} --row {at + 1}" for at in positions)
            self.sources[file, position] = Source(f"s{len(self.sources) + 1}", f"{file}, row {position + 1}", commands)
        return self.sources[file, position]

    def state(self, cell: Mapping[str, Any], state: str, step: float, role: str, metric: str) -> Number | None:
        """The value of a metric in the base, erased or fine-tuned images of a cell, the mean over its seeds."""
        keys = {"base": CELL[:2], "erased": CELL[:4], "finetuned": CELL}[state]
        names = tuple(cell[name] if name in keys else "" for name in CELL)
        key = (*names, state, step if state == "finetuned" else None, role, metric)
        if (row := self._means.get(key)) is None:
            return None
        if len(runs := self._runs[key]) == 1:
            source = self.cite("cells", runs[0], "cells", runs)
        else:
            source = self.cite("means", row.name, "cells", runs)
        return Number(row["value"], row["low"], row["high"], source)

    def gain(self, rows: pd.DataFrame) -> Number | None:
        """The resurgence of a cell, from its rows of resurgence.csv at one step, role and metric."""
        if (row := cell_row(rows, self.seeds)) is None:
            return None
        single = len(rows) == 1
        source = self.cite("resurgence" if single else "seeds", row.name, "resurgence", list(rows.index))
        value = row["resurgence" if single else "resurgence_mean"]
        return Number(value, row["resurgence_low"], row["resurgence_high"], source)


def key_of(row: Mapping[str, Any]) -> tuple:
    """The cell, state, step, role and metric of a row; the step is None for base and erased."""
    return tuple(None if name == "step" and pd.isna(row[name]) else row[name] for name in KEY)
