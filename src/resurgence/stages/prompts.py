"""The prompt set of a task: what every model is sampled on."""

from __future__ import annotations

from pathlib import Path

from resurgence.prompts import prompt_set
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> dict:
    """Write prompts.csv."""
    rows = prompt_set(job.task())
    rows.to_csv(folder / "prompts.csv", index=False)
    return {"images": len(rows)}


if __name__ == "__main__":
    main("prompt set", make)
