"""The leaner scheduler runs the same jobs within the same limits, and does not choose more often than it has to."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

# counts the choices, and writes down what each was given; `lean` as a configuration value
WATCHED = """\
import json
from snakemake.scheduling.job_scheduler import JobScheduler

lists = []  # one for each time that Snakemake lists what remains
listed = JobScheduler.remaining_jobs.fget
JobScheduler.remaining_jobs = property(lambda self: lists.append(1) or listed(self))
if config["lean"]:
    from resurgence import scheduling

    scheduling.lean()

choices = []
select = JobScheduler.job_selector


def watched(self, jobs):
    with self._lock:
        dag = self.workflow.dag
        left = {job for job in dag.jobs if dag.needrun(job) and not dag.finished(job)} - self.running - self.failed
        known = self.remaining_jobs
        same = set(known) == left and len(known) == len(left) and bool(known) == bool(left)
    lists.clear()
    selected = select(self, jobs)
    choices.append(dict(ready=len(jobs), same=same, lists=len(lists)))
    return selected


JobScheduler.job_selector = watched


def written():
    open("choices.json", "w").write(json.dumps(choices))


onsuccess:
    written()


onerror:
    written()


"""
WAITING = """
rule all:
    input: "slow", expand("late/{i}", i=range(3))

rule quick:
    output: "quick/{i}"
    shell: "touch {output}"

rule slow:
    input: expand("quick/{i}", i=range(40))
    output: "slow"
    priority: 1
    threads: 2
    shell: "sleep 4; touch {output}"

rule late:
    input: expand("quick/{i}", i=range(40))
    output: "late/{i}"
    threads: 2
    shell: "test -e slow; touch {output}"
"""
MANY = """
rule all:
    input: expand("out/{i}", i=range(int(config["jobs"])))

rule one:
    output: "out/{i}"
    shell: "date +%s.%N > {output}"
"""


def snakemake(
    folder: Path, rules: str, *options: str, lean: bool = True, watch: bool = True, jobs: int = 60
) -> tuple[list[dict], str]:
    """The choices of a real run, and what it printed."""
    (folder / "Snakefile").write_text((WATCHED if watch else "") + rules)
    command = [sys.executable, "-m", "snakemake", *options, "--config", f"lean={int(lean)}", f"jobs={jobs}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    choices = json.loads((folder / "choices.json").read_text()) if (folder / "choices.json").exists() else []
    return choices, done.stdout + done.stderr


@pytest.mark.parametrize("lean", [True, False])
def test_waiting_costs_one_choice_a_second(tmp_path: Path, lean: bool) -> None:
    """Forty jobs have run, a job of four seconds takes both cores, and three are ready: nothing is to be chosen."""
    choices, _ = snakemake(tmp_path, WAITING, "--cores", "2", "--scheduler", "greedy", lean=lean)
    waiting = [choice for choice in choices if choice["ready"] == 3]
    if lean:
        assert len(waiting) <= 8  # one a second, and those at the end of the quick jobs and of the slow one
    else:
        assert len(waiting) > 40  # what it is for: a chain for each of the jobs that ran, a choice a second each


@pytest.mark.parametrize("scheduler", ["greedy", "ilp"])
def test_the_remaining_jobs_are_those_of_the_graph(tmp_path: Path, scheduler: str) -> None:
    """Read, they are all that is neither done nor running; the integer program, which reads them, runs all jobs."""
    choices, _ = snakemake(tmp_path, MANY, "--cores", "2", "--scheduler", scheduler, "--scheduler-subsample", "8")
    assert len(list((tmp_path / "out").iterdir())) == 60
    assert all(choice["same"] for choice in choices)
    lists = {choice["lists"] for choice in choices}
    assert lists == ({0} if scheduler == "greedy" else {1})  # nobody reads them; read again and again, listed once
    assert max(choice["ready"] for choice in choices) == 8


def test_without_a_sample_all_that_are_ready_are_looked_at(tmp_path: Path) -> None:
    choices, _ = snakemake(tmp_path, MANY, "--cores", "2", "--scheduler", "greedy")
    assert choices[0]["ready"] == 60


def test_a_dry_run_shows_every_job(tmp_path: Path) -> None:
    _, printed = snakemake(tmp_path, MANY, "-n", "--scheduler-subsample", "8")
    assert printed.count("rule one:") == 60


def test_the_limit_of_jobs_in_a_timespan_holds(tmp_path: Path) -> None:
    """Twelve jobs, four in two seconds: three times four, and no start is forgotten when a timer is pending."""
    started = time.monotonic()
    snakemake(tmp_path, MANY, "--cores", "4", "--max-jobs-per-timespan", "4/2s", jobs=12)
    assert time.monotonic() - started > 4
    at = sorted(float(path.read_text()) for path in (tmp_path / "out").iterdir())
    assert len(at) == 12
    assert all(later - earlier > 1 for earlier, later in zip(at, at[4:], strict=False))


def test_an_earlier_choice_takes_the_place_of_a_later_one() -> None:
    from threading import Semaphore
    from types import SimpleNamespace

    from resurgence.scheduling import choose_again

    scheduler = SimpleNamespace(_open_jobs=Semaphore(0))
    choose_again(scheduler, 30)
    choose_again(scheduler, 0.05)
    choose_again(scheduler, 20)  # one is pending that comes sooner
    assert scheduler._open_jobs.acquire(timeout=10)
    assert not scheduler._open_jobs.acquire(timeout=0.2)
    choose_again(scheduler, 0.01)  # it came; the next may be arranged
    assert scheduler._open_jobs.acquire(timeout=10)


def test_another_snakemake_is_left_as_it_is(tmp_path: Path) -> None:
    unknown = """\
from snakemake.scheduling.job_scheduler import JobScheduler

del JobScheduler._schedule_reevalutation
from resurgence import scheduling

before = dict(vars(JobScheduler))
scheduling.lean()
assert dict(vars(JobScheduler)) == before
"""
    _, printed = snakemake(tmp_path, unknown + MANY, "-n", watch=False)
    assert "has no JobScheduler._schedule_reevalutation: studies of thousands of cells" in printed
    assert printed.count("rule one:") == 60
