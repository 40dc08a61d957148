"""The tables of the study from the scores of all models; the main table is also logged."""

from __future__ import annotations

import logging

import numpy as np
from safetensors.numpy import load_file

from resurgence.analysis.score_folders import by_step, entry
from resurgence.analysis.tables import FILES, write_tables
from resurgence.stages.job import Job, start

log = logging.getLogger(__name__)


def reference(job: Job) -> np.ndarray | None:
    """Features of the real images of the study, if it has any."""
    folder = job.optional("reference")
    return None if folder is None else next(iter(load_file(folder / "features.safetensors").values()))


def main() -> None:
    """Write results/tables."""
    job = start()
    entries = [entry(job.settings, model) for model in job.settings["models"]]
    level, notes = job.settings["statistics"]["level"], [job.settings.get(k) for k in ("makers", "changed_objectives")]
    table = write_tables(by_step(entries), job.out.parent, level, reference(job), *notes)
    job.write_made("tables", (job.out.parent / name for name in FILES))
    log.info("tables in %s\n%s", job.out.parent, table)


if __name__ == "__main__":
    main()
