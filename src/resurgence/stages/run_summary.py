"""Summary of a finished study: the resurgence table, concepts that the base hardly draws, its pages, and cost."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from resurgence.analysis.base_concepts import hardly_drawn, warning
from resurgence.analysis.headline import blank_warning, terminal
from resurgence.analysis.read import read_table
from resurgence.config.counting import counted
from resurgence.progress import duration
from resurgence.provenance.manifest import read_manifest


def summary(results: Path, level: float) -> str:
    """The last lines of a run; empty while there are no tables."""
    cost = results / "cost/cost.csv"
    tables = [results / f"tables/{name}.csv" for name in ("cells", "resurgence", "seeds")]
    if not all(file.exists() for file in (*tables, cost)):
        return ""
    runs = pd.read_csv(cost)
    devices = ", ".join(sorted(set(runs["device"])))
    cells, resurgence, seeds = map(read_table, tables)
    parameters = read_manifest(results / "tables/made.json")["parameters"]
    lines = [terminal(resurgence, seeds, level, parameters.get("changed_objectives"))]
    if message := blank_warning(cells):
        lines.append(message)
    if weak := hardly_drawn(parameters, results.parent):
        lines.append(warning(weak))
    pages = {"Open": results / "index.html", "Report": results / "report.html"}
    lines += [f"{title}: {page.absolute()}" for title, page in pages.items() if page.exists()]
    lines.append(f"Cost: {duration(runs['seconds'].sum())} of work in {counted(len(runs), 'step')} on {devices}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(summary(Path("results"), float(sys.argv[1])))
