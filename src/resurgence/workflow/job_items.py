"""The wildcards of the jobs of a study, by rule, and the models that they name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from resurgence.config.model_path import EARLIER, NAME, method_name, split_name
from resurgence.config.settings import Method
from resurgence.config.study import Cell, Erasure, Study
from resurgence.workflow import experiment_settings, job_settings

NOTHING = r"\.^"  # a regular expression that matches nothing


def erasure(wildcards: Any) -> Erasure:
    """The erased model of a job's wildcards; `eraser` begins with the erasures before it, as in its path."""
    return Erasure(wildcards.task, *split_name(wildcards.eraser.rpartition("/")[2]), int(wildcards.erase_seed))


def cell(wildcards: Any) -> Cell:
    """The fine-tuned model of a job's wildcards."""
    return Cell(erasure(wildcards), *split_name(wildcards.finetune), int(wildcards.finetune_seed))


def eraser_pattern(study: Study, solved: bool) -> dict[str, str]:
    """The wildcard of the erasers whose last step is solved in closed form, or is not, as a regular expression."""
    names = "|".join(name for name, method in study.erasers.items() if is_solved(method) == solved)
    return {"eraser": rf"{EARLIER}({names})(\.{NAME.pattern})?" if names else NOTHING}


def is_solved(method: Method) -> bool | None:
    """Whether the last step of an eraser is solved in closed form; None for the eraser that changes nothing."""
    return None if method.config is None else bool(method.config.closed_form)


def tasks(study: Study) -> Iterator[dict[str, str]]:
    """Wildcards of a job for each task."""
    yield from ({"task": name} for name in study.tasks.names)


def tasks_read(study: Study, kind: str) -> Iterator[dict[str, str]]:
    """Wildcards of a job for each task of which some eraser of the study reads this kind of data."""
    readers = {erasure.task for erasure in study.erasures() if kind in job_settings.reads(study, erasure)}
    yield from ({"task": name} for name in study.tasks.names if name in readers)


def prior(study: Study) -> Iterator[dict[str, str]]:
    """Wildcards of the single job of the general captions, if some eraser reads their moment."""
    if any("prior" in job_settings.reads(study, item) for item in study.erasures()):
        yield {}


def owned_sets(study: Study) -> dict[tuple[str | Erasure, str], None]:
    """The task or erased model, and the name, of each fine-tuning set that some model is trained on."""
    return dict.fromkeys((study.set_owner(cell), study.set_of(cell.finetune, cell.variant)) for cell in study.cells())


def sorted_sets(study: Study, used: Iterable[tuple[str, str]]) -> Iterator[dict[str, str]]:
    """Wildcards of sets, each a task and a name, in the order of the tasks."""
    for task, name in sorted(used, key=lambda pair: (study.tasks.names.index(pair[0]), pair[1])):
        yield {"task": task, "set": name}


def sets(study: Study, makers: Collection[str]) -> Iterator[dict[str, str]]:
    """Wildcards of each fine-tuning set, of some makers, that all models of a task are trained on."""
    used = [(owner, name) for owner, name in owned_sets(study) if isinstance(owner, str)]
    yield from sorted_sets(study, [pair for pair in used if study.finetune_sets[pair[1]].maker in makers])


def set_pattern(study: Study, makers: Collection[str]) -> dict[str, str]:
    """The wildcard of the fine-tuning sets of some makers, as a regular expression."""
    names = "|".join(name for name, images in study.finetune_sets.items() if images.maker in makers)
    return {"set": f"({names})" if names else NOTHING}


def erased_sets(study: Study) -> Iterator[dict[str, str]]:
    """Wildcards of each fine-tuning set that an erased model samples."""
    for owner, name in owned_sets(study):
        if isinstance(owner, Erasure):
            yield wildcards_of(study, owner) | {"set": name}


def drawn_sets(study: Study) -> Iterator[dict[str, str]]:
    """Wildcards of each set whose concepts are drawn from a tercile, also for the experiments that list them."""
    used = {(cell.erasure.task, study.set_of(cell.finetune, cell.variant)) for cell in study.cells()}
    lists = [experiment for experiment in study.experiments.values() if experiment.kind == "members"]
    used |= {(task, name) for experiment in lists for task in experiment.tasks for name in experiment.sets}
    yield from sorted_sets(study, [pair for pair in used if study.finetune_sets[pair[1]].tercile is not None])


def wildcards_of(study: Study, item: Erasure | Cell) -> dict[str, str]:
    """The wildcards of an erased or fine-tuned model."""
    if isinstance(item, Erasure):
        *earlier, last = study.model(item).steps
        return {"task": item.task, "eraser": "/".join([*map(str, earlier), last.name]), "erase_seed": str(item.seed)}
    tuned = {"finetune": method_name(item.finetune, item.variant), "finetune_seed": str(item.seed)}
    return wildcards_of(study, item.erasure) | tuned


def erasures(study: Study, solved: bool) -> Iterator[dict[str, str]]:
    """Wildcards of each erased model whose last step is solved in closed form, or is not."""
    items = (item for item in study.erasures() if is_solved(study.erasers[item.eraser]) == solved)
    yield from (wildcards_of(study, item) for item in items)


def trained_loras(study: Study) -> Iterator[dict[str, str]]:
    """Wildcards of each training of LoRAs; erased models that differ in their fusion alone share one."""
    owners = [job_settings.loras_of(study, e) for e in study.erasures() if job_settings.has_loras(study, e.eraser)]
    yield from (wildcards_of(study, owner) for owner in dict.fromkeys(owners))


def cells(study: Study) -> Iterator[dict[str, str]]:
    """Wildcards of each fine-tuned model."""
    yield from (wildcards_of(study, item) for item in study.cells())


def models(study: Study) -> Iterator[dict[str, str]]:
    """Wildcards of each model that is sampled: bases, erased models, fine-tuned models."""
    changed = (item for item in study.erasures() if study.erasers[item.eraser].config)
    items: list[str | Erasure | Cell] = [*study.tasks.names, *changed, *study.cells()]
    yield from ({"model": str(study.model(item))} for item in items)


def moved(study: Study) -> Iterator[dict[str, str]]:
    """Wildcards of each fine-tuned model whose movement of weights an experiment shows."""
    folders = {f for name in study.experiments for f in experiment_settings.experiment_reads(study, name)}
    yield from (wildcards_of(study, item) for item in study.cells() if study.folder(item, "geometry") in folders)
