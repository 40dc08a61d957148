"""The prompt set of a task, on which all models are sampled."""

from __future__ import annotations

from pathlib import Path

from resurgence.config.fields import known
from resurgence.config.task import TaskPart
from resurgence.data.prompts import prompt_set
from resurgence.files import read_rows
from resurgence.stages.job import Job, main


def read_general(path: Path) -> tuple[list[str], list[int], list[str]]:
    """Prompts of any content, their seeds and concepts ("", none), from the columns of a CSV file; `concept` may lack,
    and the column of the seeds is `seed`, or `evaluation_seed` as in I2P.

    Raises:
        ValueError: another file, no such columns, or a seed that is no whole number of 63 bits.
    """
    rows = read_rows(path)
    seed = next((name for name in ("seed", "evaluation_seed") if rows and name in rows[0]), None)
    if seed is None or "prompt" not in rows[0]:
        columns = list(rows[0]) if rows else "no rows"
        raise ValueError(f"tasks.general = {str(path)!r}: has {columns}; it needs the columns prompt, seed")
    for number, row in enumerate(rows, 2):
        if not row[seed].strip().isdecimal() or int(row[seed]) >= 2**63:
            raise ValueError(f"tasks.general = {str(path)!r}: row {number} has the seed {row[seed]!r}; write a whole "
                             "number below 2^63")  # fmt: skip
    return [row["prompt"] for row in rows], [int(row[seed]) for row in rows], [row.get("concept", "") for row in rows]


def make(job: Job, folder: Path) -> dict:
    """Write prompts.csv."""
    task = TaskPart({"first_seed": None, **job.settings["task"]}, f"the settings of {job.out}")
    general = read_general(Path(job.settings["general"])) if "general" in job.settings else ()
    for concept in sorted(set(general[2]) - {""}) if general else ():
        known(f"{job.settings['general']}: concept", concept, (*task.erase, *task.retain))
    purpose = {"purpose": job.settings["purpose"]} if "purpose" in job.settings else {}
    rows = prompt_set(task, *general, **purpose)
    rows.to_csv(folder / "prompts.csv", index=False)
    return {"images": len(rows)}


if __name__ == "__main__":
    main("prompt set", make)
