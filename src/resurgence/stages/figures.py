"""Figures of the study from its tables, and what it cost; the main table also as a page for the report."""

from __future__ import annotations

import html
from pathlib import Path

import pandas as pd

from resurgence import compare
from resurgence.figures import cost, read_curves, read_runs, read_table, run, save, training
from resurgence.manifest import MANIFEST
from resurgence.stages.job import Job, start
from resurgence.summary import TITLES, headline

PAGE = """<!doctype html>
<meta charset="utf-8"><title>Resurgence</title>
<style>
body {{ font: 14px sans-serif; margin: 1.5em }}
table {{ border-collapse: collapse }}
td, th {{ border-bottom: 1px solid #ddd; padding: 0.3em 0.7em; text-align: right }}
</style>
{body}
"""


def page(resurgence: pd.DataFrame) -> str:
    """One table a metric as HTML."""
    parts = []
    for metric, title in TITLES.items():
        if (resurgence["metric"] == metric).any():
            table = headline(resurgence, metric).to_html(index=False, border=0)
            parts.append(f"<h2>{html.escape(title)}</h2>\n{table}")
    return PAGE.format(body="\n".join(parts))


def make(job: Job) -> None:
    """Write results/figures and results/tables/cost.csv, and the page at the declared place."""
    tables, out = job.out.parent, job.out.parents[1] / "figures"
    run(tables, out, job.block["metrics"], {}, [])
    for task in job.block["tasks"]:
        files = {t: Path(p) for t, p in job.block["weights"].items() if t.startswith(f"{task}: ")}
        curves = {t.removeprefix(f"{task}: "): next(p.glob("curve*.json")) for t, p in files.items()}
        if curves:
            save(training({title: read_curves(path) for title, path in curves.items()}), out / f"training_{task}")
    runs = read_runs(path.parent for path in job.inputs if path.name == MANIFEST)
    runs.to_csv(tables / "cost.csv", index=False)
    save(cost(runs), out / "cost")
    for metric in job.block["metrics"]:
        compare.write(tables.parent, metric)
    job.out.write_text(page(read_table(tables / "resurgence.csv")), encoding="utf-8")


if __name__ == "__main__":
    make(start())
