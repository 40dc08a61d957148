"""Snakemake's choice of the next jobs, at a cost that does not grow with the study.

Snakemake chooses jobs whenever one has ended. Three habits of its JobScheduler (9.27) make a choice dearer the more
jobs a run has, so that the run grows faster than its jobs:

- It lists all jobs that remain, for a scheduler that may want to know them. The greedy one does not.
- It goes through all jobs that are ready, several times, before it takes its sample of them (`scheduler-subsample`).
- It starts a timer after each choice, because the limit of jobs per second may allow more later; that timer ends in a
  choice, which starts the next timer. While jobs wait for a core none of these chains ends: after a thousand jobs
  Snakemake chooses a thousand times a second, and takes a core of the machine to do so.

And Python looks through the whole graph for garbage again and again while it grows, a quarter of the time of a dry run.

`lean` lists the remaining jobs when they are read, takes the sample first, has one timer at a time, and looks
for garbage less often. Which jobs run, all limits, and the order among equals, random in both, stay as they are.
benchmarks/scheduling.py measures both.
"""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import snakemake
from snakemake.logging import logger
from snakemake.scheduling.job_scheduler import JobScheduler

REPLACED = ("remaining_jobs", "open_jobs", "_schedule_reevalutation")  # spelled as there
GARBAGE = (100_000, 50, 100)  # gc.set_threshold; Python's own, 700, 10, 10, suits programs with less to keep
_stock = {name: vars(JobScheduler).get(name) for name in REPLACED}


class RemainingJobs(Sequence):
    """The jobs that are neither finished, failed nor running, listed when the first of them is asked for."""

    def __init__(self, scheduler: JobScheduler) -> None:
        self.scheduler = scheduler

    @cached_property
    def jobs(self) -> list[Any]:
        return _stock["remaining_jobs"].fget(self.scheduler)

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: Any) -> Any:
        return self.jobs[index]


def some_open_jobs(scheduler: JobScheduler) -> list[Any]:
    """Jobs that are ready: as many as a choice looks at, drawn as Snakemake draws them; all of them in a dry run."""
    ready = scheduler.workflow.dag.ready_jobs
    most = scheduler.subsample
    if scheduler.dryrun or not most or len(ready) <= most:
        return list(ready)
    return random.sample(tuple(ready), k=most)


def choose_again(scheduler: JobScheduler, delay: float) -> None:
    """Have the scheduler choose in `delay` seconds, or sooner if that is already arranged.

    The thread does not keep Snakemake from ending, as the timers do that this one is in place of.
    """
    due = time.monotonic() + delay
    pending, timer = getattr(scheduler, "_pending_choice", (0.0, None))
    if timer is not None and timer.is_alive():
        if pending <= due:
            return
        timer.cancel()

    def choose() -> None:
        # forgotten before the choice, which may want the next one
        if scheduler._pending_choice[1] is threading.current_thread():
            scheduler._pending_choice = (0.0, None)
        scheduler._open_jobs.release()

    timer = threading.Timer(delay, choose)
    timer.daemon = True
    scheduler._pending_choice = (due, timer)
    timer.start()


def lean() -> None:
    """Replace the three members of Snakemake's JobScheduler, and look for garbage less often, in this process.

    A Snakemake without one of them is left as it is, with a warning: the same results, at Snakemake's own speed.
    """
    gc.set_threshold(*GARBAGE)
    missing = [name for name in REPLACED if _stock[name] is None]
    if missing:
        logger.warning(
            f"Snakemake {snakemake.__version__} has no JobScheduler.{missing[0]}: studies of thousands of cells are "
            "scheduled at its own speed. envs/requirements.txt has a version that is known."
        )
        return
    JobScheduler.remaining_jobs = property(RemainingJobs)
    JobScheduler.open_jobs = property(some_open_jobs)
    JobScheduler._schedule_reevalutation = choose_again
