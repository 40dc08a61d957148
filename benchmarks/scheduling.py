"""What Snakemake costs by the number of cells: start, dry run, a run with nothing to do, seconds a trivial job.

    python benchmarks/scheduling.py [--cells 100 1000 10000] [--run 100 1000 10000] [--batch 1000]

The graph has the shape of a study of many fine-tunes and no work in it: for each cell a fine-tune, a sample and a
score job (`touch`), one erased model for ten cells, and one table of all. Dry run, run, and the run with nothing to do
are of that graph, with the profile of this repository. Larger graphs are also run in batches (`snakemake --batch
table=1/10`, `2/10`, ...). Writes benchmarks/scheduling.csv and .png. Seconds are of the clock, so the machine must do
nothing else; those of the processor (Snakemake and its jobs) stand beside them. Exit 1 when the dry run of 10,000 cells
takes a minute or more, or when ten times the cells cost more than 15 times as much.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
PROFILE = HERE.parent / "profiles" / "default"
JOBS = 3.1  # jobs a cell
TIMES = ("dry_run", "run", "a_job", "nothing_to_do", "run_in_batches")
COLUMNS = ["cells", "jobs", *(name + unit for name in TIMES for unit in ("", "_cpu"))]
LIMIT = 60.0  # seconds of the clock for the dry run of 10,000 cells
SNAKEFILE = """\
CELLS = range(int(config["cells"]))

localrules: all

rule all:
    input: "out/table.csv"

rule erase:
    output: "out/erased/{eraser}"
    shell: "touch {output}"

rule finetune:
    input: lambda w: f"out/erased/{int(w.cell) // 10}"
    output: "out/finetuned/{cell}"
    params: cfg=lambda w: f'{{"steps": 300, "cell": {w.cell}}}'
    shell: "touch {output}"

rule sample:
    input: "out/finetuned/{cell}"
    output: "out/images/{cell}"
    shell: "touch {output}"

rule score:
    input: "out/images/{cell}"
    output: "out/scores/{cell}"
    shell: "touch {output}"

rule table:
    input: expand("out/scores/{cell}", cell=CELLS)
    output: "out/table.csv"
    shell: "touch {output}"
"""


def timed(*arguments: str, root: Path) -> tuple[float, float]:
    """Seconds of the clock and of the processor of one Snakemake."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "snakemake", "--quiet", "all", "--workflow-profile", str(PROFILE), *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} fails:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, processor


def measure(cells: int, run: bool, batch: int) -> dict[str, float]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "Snakefile").write_text(SNAKEFILE)
        config = ("--config", f"cells={cells}")
        row: dict[str, float] = {"cells": cells, "jobs": round(cells * JOBS) + 2}
        row["dry_run"], row["dry_run_cpu"] = timed("-n", *config, root=root)
        if run:
            took, cpu = timed("--cores", "2", *config, root=root)
            row |= {"run": took, "run_cpu": cpu, "a_job": took / row["jobs"], "a_job_cpu": cpu / row["jobs"]}
            row["nothing_to_do"], row["nothing_to_do_cpu"] = timed("--cores", "2", *config, root=root)
    if run and cells > batch:
        row["run_in_batches"], row["run_in_batches_cpu"] = in_batches(cells, -(-cells // batch))
    return row


def in_batches(cells: int, count: int) -> tuple[float, float]:
    """Seconds of the clock and of the processor of all batches of a new graph."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Snakefile").write_text(SNAKEFILE)
        options = ("--cores", "2", "--config", f"cells={cells}")
        parts = [timed(*options, "--batch", f"table={k + 1}/{count}", root=Path(folder)) for k in range(count)]
        assert (Path(folder) / "out/table.csv").is_file()
    return sum(clock for clock, _ in parts), sum(processor for _, processor in parts)


def ratios(table: pd.DataFrame) -> pd.Series:
    """Growth of each time of the clock over that of the cells, the largest from row to row; 1 is linear.

    The seconds of a start are taken off, and a second or less of what remains is noise, no base of a ratio.
    """
    start = table.loc[table["cells"] == 1].iloc[0]
    grown = {}
    rows = table[table["cells"] > 1].set_index("cells")
    whole = rows.assign(run_in_batches=rows["run_in_batches"].fillna(rows["run"]))  # small graphs are one batch
    for column in ("dry_run", "nothing_to_do", "run", "run_in_batches"):
        own = (whole[column] - start[column.removesuffix("_in_batches")]).dropna()
        own = own[own > 1]
        steps = (own / own.shift()) / (own.index.to_series() / own.index.to_series().shift())
        grown[column] = steps.max()
    return pd.Series(grown).round(2)


def plot(table: pd.DataFrame, path: Path) -> None:
    """Seconds over cells, both axes logarithmic; a straight line of slope one is what linear growth looks like."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    rows = table[table["cells"] > 1]
    names = {"dry_run": "dry run", "nothing_to_do": "nothing to do", "run": "run of trivial jobs"}
    for column, name in names.items():
        axes.plot(rows["cells"], rows[column], marker="o", label=name)
    axes.plot(rows["cells"], rows["run_in_batches"], "kx", label="the same in batches")
    last = rows.iloc[-1]
    axes.plot(
        rows["cells"], last["dry_run"] * rows["cells"] / last["cells"], color="grey", lw=0.8, ls=":", label="linear"
    )
    axes.set(xscale="log", yscale="log", xlabel="cells (3.1 jobs each)", ylabel="seconds")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument(
        "--run", type=int, nargs="*", default=[100, 1000, 10_000], help="cells for which the jobs are run, too"
    )
    parser.add_argument("--batch", type=int, default=1000, help="cells in a batch of a larger graph")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for scheduling.csv and scheduling.png")
    args = parser.parse_args()
    rows = []
    for cells in [1, *args.cells]:  # one cell: the start of Snakemake
        rows.append(measure(cells, cells == 1 or cells in args.run, args.batch))
        print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False), flush=True)
    table = pd.DataFrame(rows).reindex(columns=COLUMNS).round(4)
    table.to_csv(args.out / "scheduling.csv", index=False)
    plot(table, args.out / "scheduling.png")
    growth = ratios(table)
    print(f"growth over that of the cells (1 is linear):\n{growth.to_string()}")
    slow = table.loc[(table["cells"] == 10_000) & (table["dry_run"] >= LIMIT)]
    return int(len(slow) > 0 or bool((growth > 1.5).any()))


if __name__ == "__main__":
    sys.exit(main())
