"""The plan of a study before anything runs, in a dozen lines: jobs, images, time, disk, device.

For a base of workflow/rates.yaml, GPU-hours (gpu_hours.py) or seconds of one core (cpu_seconds.py) are computed until
something has run; for another base they are the seconds of rule_table.py. Weights need not be there.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from resurgence.config.counting import counted
from resurgence.config.fields import ConfigError, at_least, known
from resurgence.config.hints import nearest
from resurgence.config.lists import LISTS
from resurgence.config.load import load_study
from resurgence.config.study import STAGE_OF, Study
from resurgence.files import plain, read_lines, resolve_path
from resurgence.progress import duration
from resurgence.provenance.manifest import read_manifest
from resurgence.provenance.runs import run_of
from resurgence.workflow.cpu_seconds import CpuCoster
from resurgence.workflow.gpu_hours import PNG, Cost, Coster, by_rule, general_images, prompts_of, read_rates
from resurgence.workflow.jobs import Job, jobs
from resurgence.workflow.resources import uses_gpu
from resurgence.workflow.rule_table import DATA, RULES
from resurgence.workflow.snakemake import configured, job_counts, outputs, snakemake
from resurgence.workflow.weights import examine

COCO = {"coco_annotations": 60.0, "coco_captions": 10.0, "coco_sample": 5.0}  # seconds of jobs without artefacts
FETCHED = COCO | dict.fromkeys(LISTS, 5.0)
PHASES = {DATA: [*FETCHED]}
for _rule in RULES.values():
    PHASES.setdefault(_rule.phase, []).append(_rule.name)


def dry_runs(overlays: Sequence[Path], extra: Sequence[str] = ()) -> tuple[Counter[str], Counter[str], set[Path]]:
    """Jobs to do and all jobs, from two dry runs side by side, and the outputs of the jobs to do.

    Args:
        extra: further words of the command line: --until RULE, or targets.

    Raises:
        ConfigError: Snakemake refuses the configuration; with its message.
    """
    kinds: tuple[list[str], ...] = (["-p"], ["-q", "rules", "--forceall"])
    with ThreadPoolExecutor(len(kinds)) as pool:
        texts = list(pool.map(lambda kind: snakemake("-n", *kind, *configured(overlays), *extra), kinds))
    return job_counts(texts[0]), job_counts(texts[1]), outputs(texts[0])


def benchmark_seconds(file: Path) -> list[float]:
    """Seconds of the runs in a benchmark file of Snakemake; empty if there is none."""
    return [float(json.loads(line)["s"]) for line in read_lines(file)] if file.is_file() else []


def same_card(job: Job, run: Mapping[str, Any], coster: Coster) -> bool:
    """Whether a job ran on the card of a plan, with the determinism and at the speed of the study."""
    name, mode = str(run.get("device", "")), (run.get("deterministic", True), run.get("speed", "eager"))
    expected = (coster.study.base.deterministic, job.rule.speed(coster))
    return coster.gpu.upper().replace("-", " ") in name.upper() and mode == expected


def comparable(job: Job, device: str, root: Path, coster: Coster | None = None) -> bool:
    """Whether a job has run with its present settings, and, if its rule uses a GPU, on this kind of device or card."""
    try:
        same = read_manifest(root / job.out)["parameters"] == plain(job.settings)
        run = run_of(job.out, root)
    except (FileNotFoundError, ValueError):  # not finished, or damaged
        return False
    ran_on = "CPU" if run.get("device", "cpu") == "cpu" else "GPU"
    alike = ran_on == device if coster is None else same_card(job, run, coster)
    return same and (alike or not job.rule.gpu)


def measured_runs(
    jobs: Iterable[Job], device: str, root: Path = Path(), coster: Coster | None = None
) -> dict[str, list[tuple[Job, float]]]:
    """Rule -> the jobs of this study that have run here, with the seconds of each run.

    A job counts only with the base, the settings (so the size) and the kind of device of the study: the seconds of
    another one say nothing about it.

    Args:
        device: CPU or GPU. coster: of the card that the plan is for; None: any of this kind.
    """
    runs: dict[str, list[tuple[Job, float]]] = {}
    for job in jobs:
        seconds = benchmark_seconds(root / job.benchmark)
        if seconds and comparable(job, device, root, coster):
            runs.setdefault(job.rule.name, []).extend((job, value) for value in seconds)
    return runs


def measured_seconds(jobs: Iterable[Job], device: str, root: Path = Path()) -> dict[str, float]:
    """Mean seconds of a job of each rule that has run here; see `measured_runs`."""
    runs = {name: [seconds for _, seconds in of] for name, of in measured_runs(jobs, device, root).items()}
    for name in COCO:
        if seconds := benchmark_seconds(root / f"results/benchmarks/{name}/coco.jsonl"):
            runs[name] = seconds
    return {name: statistics.fmean(seconds) for name, seconds in runs.items()}


def measured_costs(
    runs: Mapping[str, list[tuple[Job, float]]],
    todo: Counter[str],
    costs: Mapping[str, Cost],
    coster: Callable[[Job], Cost],
) -> dict[str, float]:
    """Seconds of the jobs to do of each rule that has run: the computed ones, times measured by computed of those runs.

    Jobs of a rule differ in their numbers of images and steps, which the computed cost knows; where none is computed,
    each takes the mean.
    """
    seconds = {}
    for rule, of in runs.items():
        spent, expected = (sum(values) for values in zip(*((s, coster(job).seconds) for job, s in of), strict=True))
        there = rule in costs and expected
        seconds[rule] = costs[rule].seconds * spent / expected if there else todo[rule] * spent / len(of)
    return seconds


def images_of(study: Study) -> int:
    """Images of all models of the study for its prompts."""
    models = Counter(study.tasks.names)
    models.update(e.task for e in study.erasures() if study.erasers[e.eraser].config)
    for cell in study.cells():
        models[cell.erasure.task] += len(study.finetune_settings(cell.finetune, cell.variant)["checkpoints"])
    return sum(number * (prompts_of(study.task(task)) + general_images(study, task)) for task, number in models.items())


def bytes_of(study: Study, root: Path) -> float:
    """Approximate size of the results: images as PNG, deltas as parts of the UNet."""
    unet = sum(file.stat().st_size for file in (root / study.base.path / "unet").glob("*.safetensors"))
    checkpoints = 0.0
    for cell in study.cells():
        settings = study.finetune_settings(cell.finetune, cell.variant)
        checkpoints += len(settings["checkpoints"]) * (1.0 if settings["algorithm"] == "full" else 0.03)
    size = study.sampling.size or 512
    return images_of(study) * PNG * size**2 + unet * (checkpoints + 0.1 * len(list(study.erasures())))


def device_of(study: Study) -> str:
    """The device of the jobs."""
    return "GPU" if uses_gpu(study.base.device, {}) else "CPU"


def head(study: Study) -> str:
    """First line of the plan."""
    models = f"{len(list(study.erasures()))} erased and {counted(len(list(study.cells())), 'fine-tuned model')}"
    return f"Study {study.study} on {study.base.name}: {', '.join(study.tasks.names)}; {models}"


def row(phase: str, todo: Counter[str], total: Counter[str], rules: Iterable[str]) -> str:
    """Beginning of a line: jobs of some rules that are to do, and that are there."""
    wanted = sum(todo[rule] for rule in rules)
    return f"{phase:<26}{wanted:>7}{sum((total - todo)[rule] for rule in rules):>7}"


def lines(study: Study, todo: Counter[str], total: Counter[str], seconds: Mapping[str, float], cores: int) -> list[str]:
    """The plan, with measured or estimated times."""
    device = device_of(study)
    lanes = 1 if device == "GPU" else cores  # one model at a time on a GPU, one a core without
    text, whole = [head(study), f"{'stage':<26}{'to do':>7}{'there':>7}   time"], 0.0
    for phase, rules in PHASES.items():
        time = sum(todo[rule] * seconds.get(rule, 0.0) for rule in rules) / lanes
        whole += time
        text.append(
            f"{row(phase, todo, total, rules)}   {duration(time) if any(todo[rule] for rule in rules) else '-'}"
        )
    size = f"{study.sampling.size} x {study.sampling.size} pixels" if study.sampling.size else "the base's size"
    return [
        *text,
        f"{row('all', todo, total, total)}   about {duration(whole)} on {counted(cores, 'core')}",
        f"{counted(images_of(study), 'image')} of {size} by all models of the study",
        f"about {bytes_of(study, Path()) / 2**20:.0f} MiB on disk when all of the study is there; device: {device}",
    ]


def computed(
    study: Study,
    todo: Counter[str],
    total: Counter[str],
    costs: Mapping[str, Cost],
    measured: Mapping[str, float],
    gpu: str,
) -> list[str]:
    """The plan of a study on a GPU.

    Args:
        costs: computed costs of the jobs to do, by rule. measured: the seconds instead, of the rules that have run.
    """
    text = [head(study), f"{'stage':<26}{'to do':>7}{'there':>7}{'images':>11}{'GPU-hours':>11}{'GiB':>9}"]
    whole = Cost()
    for phase, rules in PHASES.items():
        cost = Cost()
        for rule in rules:
            of_rule = costs.get(rule, Cost())
            cost += replace(of_rule, seconds=measured[rule]) if rule in measured else of_rule
        whole += cost
        mark = "*" if any(rule in measured and todo[rule] for rule in rules) else " "
        text.append(f"{row(phase, todo, total, rules)}{table_end(cost)}{mark}".rstrip())
    text.append(f"{row('all', todo, total, total)}{table_end(whole)}")
    source = "computed (workflow/rates.yaml), * measured here"
    mode = f"sampling in {study.base.precision}, speed {study.base.speed}"
    return [*text, f"GPU-hours on one {gpu}: {source}; {mode}"]


def lacking(study: Study, todo: Counter[str], overlays: Sequence[Path]) -> list[str]:
    """What of the weights and packages of the jobs to do is not there, with the command that names them; or nothing."""
    state = Counter(state for _, state, _ in examine(study, todo))
    if not (number := state["missing"] + state["damaged"]):
        return []
    command = shlex.join(["resurgence", "weights", "check", *(["--overlay", *map(str, overlays)] if overlays else [])])
    return [f"{number} of {state.total()} weights and packages that these jobs need are not there: {command}"]


def table_end(cost: Cost) -> str:
    """Images, GPU-hours and GiB as the end of a line."""
    return f"{cost.images:>11,}{cost.seconds / 3600:>11.1f}{cost.bytes / 2**30:>9.1f}"


def plan_arguments(parser: ArgumentParser) -> None:
    """Arguments of `resurgence plan`."""
    parser.add_argument("--overlay", type=Path, nargs="*", default=[], help="studies laid over params.yaml")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="cores of the study")
    parser.add_argument("--gpu", default="a100", help="GPU of the computed hours, a key of workflow/rates.yaml")
    parser.add_argument("--until", nargs="+", default=[], metavar="RULE", help="only up to these rules")
    parser.add_argument("--target", nargs="+", default=[], metavar="NAME", help="only what these rules or files need")


def check_targets(study: Study, until: Iterable[str], targets: Iterable[str], told: str) -> None:
    """Raise ConfigError for the rule or target that Snakemake said it does not know, with the nearest names."""
    rules = {name for phase in PHASES.values() for name in phase}
    whole = {name for name in rules if name not in RULES or "{" not in RULES[name].output}
    stages = {*STAGE_OF.values(), "presented", "world"}
    for name in until:
        if f"No rule to produce {name} " in told:
            raise ConfigError("--until", name, f"is no rule; {nearest(name, rules)}")
    for name in targets:
        if f"No rule to produce {name} " in told or (name in rules - whole and "may not contain wildcards" in told):
            remedy = f"is no target of this study; {nearest(name, {*whole, *stages, *study.experiments})}"
            raise ConfigError("--target", name, remedy)


def plan(args: Namespace) -> None:
    """Print the plan of the study in this folder."""
    at_least("--cores", args.cores, 1)
    study, rates = load_study([Path(resolve_path("params.yaml")), *args.overlay]), read_rates()
    known("--gpu", args.gpu, rates.gpus)
    extra = [*(["--until", *args.until] if args.until else []), *(["--", *args.target] if args.target else [])]
    try:
        todo, total, outs = dry_runs(args.overlay, extra)
    except ConfigError as error:
        check_targets(study, args.until, args.target, error.remedy)
        raise
    study_jobs, device = jobs(study), device_of(study)
    if study.base.name in rates.work and device == "GPU":
        coster = Coster(study, rates, args.gpu)
        costs = by_rule([job for job in study_jobs if job.out in outs], coster)
        measured = measured_costs(measured_runs(study_jobs, device, coster=coster), todo, costs, coster)
        rows = computed(study, todo, total, costs, measured, args.gpu)
        print("\n".join([*rows, *lacking(study, todo, args.overlay)]))
        return
    seconds = FETCHED | {rule.name: rule.seconds for rule in RULES.values()} | measured_seconds(study_jobs, device)
    if study.base.name in rates.cpu and device == "CPU":
        cpu = CpuCoster(study, rates)
        costs = by_rule([job for job in study_jobs if job.out in outs], cpu)
        of_rules = {rule: cost.seconds for rule, cost in costs.items()}
        of_rules |= measured_costs(measured_runs(study_jobs, device), todo, costs, cpu)
        seconds |= {rule: whole / todo[rule] for rule, whole in of_rules.items() if todo[rule]}
    print("\n".join(lines(study, todo, total, seconds, args.cores)))
