"""The prompt set of a task: what every model is sampled on."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from resurgence.data.prompts import prompt_set
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> dict:
    """Write prompts.csv."""
    general = pd.read_csv(job.block["general"], keep_default_na=False) if "general" in job.block else None
    if general is not None and not {"prompt", "seed"} <= set(general):
        raise ValueError(
            f"tasks.general = {job.block['general']!r}: has the columns {list(general)}; it needs prompt, seed"
        )
    rows = prompt_set(job.task()) if general is None else prompt_set(job.task(), general["prompt"], general["seed"])
    rows.to_csv(folder / "prompts.csv", index=False)
    return {"images": len(rows)}


if __name__ == "__main__":
    main("prompt set", make)
