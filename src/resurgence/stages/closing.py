"""What a finished study says: the resurgence table, where the report is, and what it cost."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from resurgence.figures import read_table
from resurgence.progress import duration
from resurgence.summary import terminal


def told(results: Path, level: float) -> str:
    """The last lines of a run; empty while there are no tables."""
    table, cost, report = (results / name for name in ("tables/resurgence.csv", "cost/cost.csv", "report.html"))
    if not (table.exists() and cost.exists()):
        return ""
    runs = pd.read_csv(cost)
    devices = ", ".join(sorted(set(runs["device"])))
    lines = [terminal(read_table(table), level)]
    if report.exists():
        lines.append(f"Report: {report.absolute()}")
    lines.append(f"Cost: {duration(runs['seconds'].sum())} of work in {len(runs)} steps on {devices}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(told(Path("results"), float(sys.argv[1])))
