"""`resurgence compare`: print and plot all erasers of a finished study."""

from __future__ import annotations

from argparse import Namespace

from resurgence.analysis.comparison import read_tables
from resurgence.figures.comparison import draw_comparison, write_comparison
from resurgence.provenance.manifest import as_written, read_manifest
from resurgence.stages.runtime import only_writer

PLACE = "compare"  # of the results: no folder of a rule, whose files have manifests


def run(args: Namespace) -> None:
    """Print the comparison and the paths of its pictures.

    Raises:
        FileNotFoundError: no tables. ValueError: a table has changed since it was written.
        OSError: the results cannot be written.
    """
    tables = args.results / "tables"
    if (record := tables / "made.json").is_file() and (errors := as_written(tables, read_manifest(record)["files"])):
        raise ValueError("\n".join(f"{error}; run the study again: snakemake --cores all" for error in errors))
    read_tables(args.results, args.metric)  # refuses missing tables before anything is written
    with only_writer(args.results / PLACE / args.metric):
        print(write_comparison(args.results, args.metric, f"{PLACE}/cost"))
        draw_comparison(args.results, args.metric, f"{PLACE}/figures")
    for folder in ("figures", "cost"):
        print(args.results / PLACE / folder / f"compare_{args.metric}.png")
