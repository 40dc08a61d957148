"""The report of Snakemake: one file, readable offline, of tables, figures and grids."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from resurgence.files import atomic_file
from resurgence.stages.job import Job, start


def make(job: Job) -> None:
    """Run `snakemake --report` on the configuration of the settings; the running Snakemake holds the lock."""
    with tempfile.TemporaryDirectory() as folder:
        config, page = Path(folder) / "config.json", Path(folder) / "report.html"
        config.write_text(json.dumps(job.settings), encoding="utf-8")
        shown = [path.as_posix() for path in job.inputs["shown"]]
        command = [sys.executable, "-m", "snakemake", *shown, "--nolock", "--configfile", str(config)]
        subprocess.run([*command, "--report", str(page)], check=True)
        report = job.out.parents[1] / "report.html"
        with atomic_file(report) as temporary:
            shutil.copyfile(page, temporary)
    job.write_made("report", [report])


if __name__ == "__main__":
    make(start())
