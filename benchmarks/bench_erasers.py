"""Seconds of each closed form on the miniature, at the settings of a study, loading of the base included.

    python benchmarks/bench_erasers.py [--study studies/methods.yaml] [--threads 2] [--repeats 3]

The limit is 2 s, without the import of PyTorch and diffusers (some 6 s on two cores). The erasers that train are timed
by the jobs of a study (results/cost/cost.csv).
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from resurgence.config.load import load_study
from resurgence.config.study import Study
from resurgence.config.task import Task
from resurgence.data.moments import second_moment
from resurgence.diffusion.pipeline import load_base
from resurgence.diffusion.text import fill, load_captions
from resurgence.erasers import EraserData, method
from resurgence.files import read_lines

CLOSED = ("uce", "rece", "time", "mace-refinement")
LIMIT = 2.0


def moments(study: Study, task: Task) -> EraserData:
    """The second moments that the refinement reads; a study computes them once for all erasers."""
    pipe = load_base(study.base.path)
    captions = load_captions("config/prompts/closed_form.txt", task.kind)
    prior = read_lines(Path("config/prompts/miniature-2/general.txt"))
    domain = [caption for concept in task.retain for caption in fill(captions, concept)]
    return EraserData(prior=second_moment(pipe, prior), domain=second_moment(pipe, domain))


def seconds(study: Study, task: Task, eraser: str, data: EraserData) -> float:
    """Seconds of loading the base and erasing."""
    run, cfg = method(study.erasers[eraser].name).erase, study.eraser_config(task.name, eraser, "default")
    start = time.perf_counter()
    run(load_base(study.base.path), task, cfg, data, 0)
    return time.perf_counter() - start


def main() -> None:
    """Print the median over the repeats for each task and eraser; fail above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("studies/methods.yaml"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    study, slow = load_study([Path("params.yaml"), args.study], Path()), []
    for task in map(study.task, study.tasks.names):
        data = moments(study, task)
        for eraser in CLOSED:
            median = statistics.median(seconds(study, task, eraser, data) for _ in range(args.repeats))
            print(f"{task.name:16} {eraser:16} {median:6.2f} s", flush=True)
            slow += [f"{eraser} on {task.name}"] if median > LIMIT else []
    if slow:
        raise SystemExit(f"slower than {LIMIT:g} s: {', '.join(slow)}")


if __name__ == "__main__":
    main()
