"""Figures of the study from its tables and training curves; the main table also as a page for the report."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from resurgence.analysis.comparison import changed_objectives
from resurgence.analysis.headline import blank_warning, changed_note, headline, titles
from resurgence.analysis.read import read_curves, read_table
from resurgence.figures.comparison import draw_comparison
from resurgence.figures.sensitive_words import words_figure
from resurgence.figures.study import training_losses, write_figures
from resurgence.figures.style import save
from resurgence.stages.job import Job, start

PAGE = """<!doctype html>
<meta charset="utf-8"><title>Resurgence</title>
<style>
body {{ font: 14px sans-serif; margin: 1.5em }}
table {{ border-collapse: collapse }}
td, th {{ border-bottom: 1px solid #ddd; padding: 0.3em 0.7em; text-align: right }}
</style>
{body}
"""


def page(
    cells: pd.DataFrame, resurgence: pd.DataFrame, seeds: pd.DataFrame, changed: Mapping[str, str] | None = None
) -> str:
    """One table a metric as HTML, below a warning if images are blank.

    Args:
        changed: eraser -> the settings that change its objective, which its name is marked for.
    """
    warning = blank_warning(cells)
    parts = [f"<p><strong>{html.escape(warning)}</strong></p>"] if warning else []
    for metric, title in titles().items():
        if (resurgence["metric"] == metric).any():
            table = headline(resurgence, seeds, metric, changed).to_html(index=False, border=0)
            parts.append(f"<h2>{html.escape(title)}</h2>\n{table}")
    if note := changed_note(changed or {}):
        parts.append(f"<p>{html.escape(note)}</p>")
    return PAGE.format(body="\n".join(parts))


def make(job: Job) -> None:
    """Write results/figures and results/tables/resurgence.html."""
    out, tables = job.out.parent, job.out.parents[1] / "tables"
    page_file = tables / "resurgence.html"
    stems = write_figures(tables, out, job.settings["metrics"])
    for task in job.settings["tasks"]:
        folders = {title: path for title, path in job.settings["weights"].items() if title.startswith(f"{task}: ")}
        files = {title.removeprefix(f"{task}: "): next(Path(p).glob("curve*.json")) for title, p in folders.items()}
        if files:
            stems.append(out / f"training_{task}")
            save(training_losses({title: read_curves(file) for title, file in files.items()}), stems[-1])
    for name, folder in job.settings["searched"].items():
        stems.append(out / f"sensitive_{name}")
        save(words_figure(json.loads((Path(folder) / "sensitive.json").read_text())), stems[-1])
    for metric in job.settings["metrics"]:
        draw_comparison(tables.parent, metric)
        stems.append(out / f"compare_{metric}")
    stored = [read_table(tables / f"{name}.csv") for name in ("cells", "resurgence", "seeds")]
    page_file.write_text(page(*stored, changed_objectives(tables.parent)), "utf-8")
    pictures = [stem.with_name(f"{stem.name}.{kind}") for stem in stems for kind in ("png", "svg")]
    job.write_made("figures", [page_file, *pictures])


if __name__ == "__main__":
    make(start())
