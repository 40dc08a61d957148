"""The prompt set of a task, on which all models are sampled."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from resurgence.config.task import TaskPart
from resurgence.data.prompts import prompt_set
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> dict:
    """Write prompts.csv."""
    general = pd.read_csv(job.settings["general"], keep_default_na=False) if "general" in job.settings else None
    if general is not None and not {"prompt", "seed"} <= set(general):
        raise ValueError(
            f"tasks.general = {job.settings['general']!r}: has the columns {list(general)}; it needs prompt, seed"
        )
    task = TaskPart({"first_seed": None, **job.settings["task"]}, f"the settings of {job.out}")
    rows = prompt_set(task) if general is None else prompt_set(task, general["prompt"], general["seed"])
    rows.to_csv(folder / "prompts.csv", index=False)
    return {"images": len(rows)}


if __name__ == "__main__":
    main("prompt set", make)
