"""Cost of the study, and the record of all its runs: everything here varies from run to run.

Inputs: the manifests of all artefacts and the run.json beside each. Outputs in results/cost: cost.csv, cost.png,
compare_METRIC.csv, .md, .svg and .png (with seconds and sizes), runs.json.
"""

from __future__ import annotations

from resurgence.analysis.read import read_runs
from resurgence.figures.comparison import write_comparison
from resurgence.figures.study import cost
from resurgence.figures.style import save
from resurgence.files import write_json
from resurgence.provenance.runs import record
from resurgence.stages.job import Job, start


def make(job: Job) -> None:
    """Write results/cost."""
    out = job.out.parent
    folders = job.folders("artefacts")
    runs = read_runs(folders)
    runs.to_csv(out / "cost.csv", index=False)
    save(cost(runs), out / "cost")
    names = ["cost.csv", "cost.png", "cost.svg", "runs.json"]
    for metric in job.settings["metrics"]:
        write_comparison(out.parent, metric)
        names += [f"compare_{metric}.{kind}" for kind in ("csv", "md", "svg", "png")]
    write_json(out / "runs.json", record(folders))
    job.write_made("cost", (out / name for name in names))


if __name__ == "__main__":
    make(start())
