"""What Snakemake costs by the number of cells: start, dry run, a run with nothing to do, seconds a trivial job.

    python benchmarks/scheduling.py [--cells 100 1000 10000] [--stock 100 1000 10000]

The graph has the shape of a study of many fine-tunes and no work in it: for each cell a fine-tune, a sample and a
score job (`touch`), one erased model for ten cells, and one table of all. Dry run, run, and the run with nothing to do
are of that graph, with the profile and the scheduler of this repository (src/resurgence/scheduling.py); `stock` is the
run with Snakemake's own. `waiting` is what Snakemake takes of a core while a long job runs and two hundred are ready,
after as many quick jobs as there are cells.

Writes benchmarks/scheduling.csv and .png. Dry runs and runs with nothing to do are medians of three, the others one
measurement. Seconds are of the clock, so the machine must do nothing else; those of the processor (Snakemake and its
jobs) stand beside them. Exit 1 when the dry run of 10,000 cells takes a minute or more, or when one of the first three,
or `waiting`, grows faster than the cells. 24 minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
PROFILE = HERE.parent / "profiles" / "default"
JOBS = 3.1  # jobs a cell
TIMES = ("dry_run", "nothing_to_do", "run", "a_job", "run_stock", "a_job_stock")
WAITING = ("waiting", "waiting_stock")  # of a core, no seconds
COLUMNS = ["cells", "jobs", *(name + unit for name in TIMES for unit in ("", "_cpu")), *WAITING]
LIMIT = 60.0  # seconds of the clock for the dry run of 10,000 cells
NOISE = 1.1  # a growth up to here is called linear: two runs of the same graph differ by as much
NOISE_WAITING = 0.05  # of a core
LONG = 20  # seconds of the job that the others wait for
LEAN = "from resurgence import scheduling\n\nscheduling.lean()\n"
STUDY = """\
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


# the long job takes the cores of the two hundred that are ready with it; its shell reads what its parent, Snakemake,
# has used of the processor
READY = """\
rule all:
    input: "long", expand("late/{i}", i=range(200))

rule quick:
    output: "quick/{i}"
    shell: "touch {output}"

rule quick_jobs:
    input: expand("quick/{i}", i=range(int(config["cells"])))
    output: "quick.done"
    shell: "touch {output}"

rule long:
    input: "quick.done"
    output: "long"
    threads: 2
    shell: "cp /proc/$PPID/stat before; sleep {config[seconds]}; cp /proc/$PPID/stat {output}"

rule late:
    input: "quick.done"
    output: "late/{i}"
    threads: 2
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


def median(*arguments: str, root: Path) -> tuple[float, float]:
    """The median of three times: a tenth more or less is common."""
    clock, processor = zip(*(timed(*arguments, root=root) for _ in range(3)), strict=True)
    return statistics.median(clock), statistics.median(processor)


def run(cells: int, stock: bool) -> dict[str, float]:
    """All of one graph from nothing, and once more; with Snakemake's own scheduler the run alone."""
    jobs, name = round(cells * JOBS) + 2, "_stock" if stock else ""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "Snakefile").write_text(("" if stock else LEAN) + STUDY)
        config, row = ("--config", f"cells={cells}"), {}
        if not stock:
            row["dry_run"], row["dry_run_cpu"] = median("-n", *config, root=root)
        took, cpu = timed("--cores", "2", *config, root=root)
        row |= {f"run{name}": took, f"run{name}_cpu": cpu, f"a_job{name}": took / jobs, f"a_job{name}_cpu": cpu / jobs}
        if not stock:
            row["nothing_to_do"], row["nothing_to_do_cpu"] = median("--cores", "2", *config, root=root)
    return row


def waiting(cells: int, stock: bool) -> float:
    """What Snakemake takes of a core while a long job runs."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "Snakefile").write_text(("" if stock else LEAN) + READY)
        timed("--cores", "2", "--config", f"cells={cells}", f"seconds={LONG}", "--prioritize", "long", root=root)
        # user and system ticks, the 14th and 15th word; the second is in parentheses and may hold blanks
        before, after = (
            sum(map(int, (root / name).read_text().rpartition(")")[2].split()[11:13])) for name in ("before", "long")
        )
    return (after - before) / os.sysconf("SC_CLK_TCK") / LONG


def measure(cells: int, stock: bool) -> dict[str, float]:
    """One row of the table."""
    row = {"cells": cells, "jobs": round(cells * JOBS) + 2, **run(cells, stock=False)}
    if cells > 1:
        row["waiting"] = waiting(cells, stock=False)
    if stock:
        row |= run(cells, stock=True)
        if cells > 1:
            row["waiting_stock"] = waiting(cells, stock=True)
    return row


def ratios(table: pd.DataFrame) -> pd.Series:
    """Growth of each time of the clock over that of the cells, the largest from row to row; 1 is linear.

    The seconds of a start are taken off, and a second or less of what remains is noise, no base of a ratio.
    """
    start = table.loc[table["cells"] == 1].iloc[0]
    rows = table[table["cells"] > 1].set_index("cells")
    grown = {}
    for column in ("dry_run", "nothing_to_do", "run", "run_stock"):
        own = (rows[column] - start[column]).dropna()
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
    axes.plot(rows["cells"], rows["run_stock"], "kx", label="the same, Snakemake's own scheduler")
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
    parser.add_argument("--stock", type=int, nargs="*", default=[100, 1000, 10_000], help="cells for Snakemake's own")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for scheduling.csv and scheduling.png")
    args = parser.parse_args()
    rows = []
    for cells in [1, *args.cells]:  # one cell: the start of Snakemake
        rows.append(measure(cells, cells == 1 or cells in args.stock))
        print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False), flush=True)
    table = pd.DataFrame(rows).reindex(columns=COLUMNS).round(4)
    table.to_csv(args.out / "scheduling.csv", index=False)
    plot(table, args.out / "scheduling.png")
    growth = ratios(table)
    print(f"growth over that of the cells (1 is linear):\n{growth.to_string()}")
    slow = table.loc[(table["cells"] == 10_000) & (table["dry_run"] >= LIMIT)]
    waits = table["waiting"].dropna()
    return int(
        len(slow) > 0
        or bool((growth.drop("run_stock") > NOISE).any())
        or waits.iloc[-1] > waits.iloc[0] + NOISE_WAITING
    )


if __name__ == "__main__":
    sys.exit(main())
