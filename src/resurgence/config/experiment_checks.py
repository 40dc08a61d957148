"""Checks of the experiments of a study: tasks, methods, sets and cells that they name."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from resurgence.config.experiment_cells import NOT_TUNED, cells_of, row_of, setting_of
from resurgence.config.fields import ConfigError, known
from resurgence.config.model_path import EXPERIMENT, method_name
from resurgence.config.scorers import ROLES, scorer_class

if TYPE_CHECKING:
    from resurgence.config.experiment import Experiment
    from resurgence.config.study import Cell, Study

OF_TABLES = (*ROLES, "all")
"""Roles of the rows of tables; all: of the harmonic means."""


def check_experiments(study: Study) -> None:
    """Raise ConfigError for an experiment of a task, method, set or cell that the study does not have."""
    erasers = {study.name_of(erasure) for erasure in study.erasures()}
    finetunes = {method_name(f, v) for f, m in study.finetunes.items() for v in m.variants}
    for name, experiment in study.experiments.items():
        place = f"experiments.{name}"
        if not EXPERIMENT.fullmatch(name):
            raise ConfigError("experiments", name, "use small letters, digits and _: it becomes the name of a rule")
        for key, names in (("tasks", study.tasks.names), ("erasers", erasers), ("finetunes", finetunes)):
            for value in getattr(experiment, key):
                known(f"{place}.{key}", value, names)
        for value in experiment.sets:
            known(f"{place}.sets", value, study.finetune_sets)
        for kind, scorer in (("scatter", "sensitivity"), ("similarity", "clip")):
            if experiment.kind == kind and scorer not in study.scorers:
                cure = f"is computed by scorers.{scorer}, which the study does not have; add it, or remove this"
                raise ConfigError(f"{place}.kind", kind, cure)
        if experiment.kind in ("members", "similarity"):
            continue
        if experiment.kind == "tuning" or experiment.over_tasks:
            check_every_task(study, name)
        if experiment.kind == "tuning":
            continue
        check_roles(study, experiment, f"{place}.roles")
        cells = cells_of(study, name)
        rows = [row_of(study, cell) for cell in cells]
        for key in ("task", "eraser", "finetune"):
            for value in getattr(experiment, f"{key}s"):
                if not any(row[key] == value for row in rows):
                    remedy = (
                        "has no cell with the others named here; look at the limits (tasks, erasers) of its variants"
                    )
                    raise ConfigError(f"{place}.{key}s", value, remedy)
        for number, claim in enumerate(experiment.claims):
            for key, choice in (("of", claim.of), ("against", claim.against)):
                if choice and not any(map(choice.holds, rows_with_roles(study, experiment, rows))):
                    where = f"{place}.claims[{number}].{key}"
                    raise ConfigError(where, dataclasses.asdict(choice), "is no row of this experiment; see its lists")
        for cell in cells if experiment.kind == "words" else ():
            config = study.erasers[cell.erasure.eraser].config
            if config is None or not config.has_words:
                remedy = "searches no words; name erasers that do, such as eap"
                raise ConfigError(f"{place}.erasers", cell.erasure.eraser, remedy)
        if experiment.kind in ("grid", "words"):
            check_first_seed(study, experiment, cells, f"{place}.erasers")
        if experiment.kind == "line":
            check_axis(study, experiment, cells, f"{place}.along")


def check_first_seed(study: Study, experiment: Experiment, cells: list[Cell], key: str) -> None:
    """Raise ConfigError for an eraser without a model of the study's first seed, whose images and words are shown."""
    first = study.seeds.erase[0]
    there = {study.name_of(cell.erasure) for cell in cells if cell.erasure.seed == first}
    for eraser in experiment.erasers:
        if eraser not in there:
            raise ConfigError(key, eraser, f"has no model of seed {first}, the first of seeds.erase; give it that seed")


def check_roles(study: Study, experiment: Experiment, key: str) -> None:
    """Raise ConfigError for an unknown role, or one without prompts: in all tasks, or for a grid in one of them."""
    for role in experiment.roles:
        known(key, role, OF_TABLES)
        lacking = [task for task in experiment.tasks if not has_role(study, task, role)]
        if lacking and (experiment.kind == "grid" or len(lacking) == len(experiment.tasks)):
            raise ConfigError(key, role, f"has no prompts in {lacking[0]}; name other tasks, or remove the role")


def has_role(study: Study, name: str, role: str) -> bool:
    """Whether a task has prompts of a role: general ones, synonyms of erased or of retained concepts."""
    task, general = study.task(name), study.general_of(name)
    of = {"synonym": task.erase, "synonym-retain": task.retain}.get(role)
    return general is not None if role == "general" else of is None or bool({*of} & {*task.synonyms})


def check_axis(study: Study, experiment: Experiment, cells: list[Cell], key: str) -> None:
    """Raise ConfigError for a setting that is no number, or has another value of an eraser in another task."""
    values: dict[str, float] = {}
    for cell in cells:
        eraser, value = study.name_of(cell.erasure), setting_of(study, cell, experiment.along, key)
        if (other := values.setdefault(eraser, value)) != value:
            remedy = f"is {value:g} for {eraser} in {cell.erasure.task} and {other:g} in another; draw each by itself"
            raise ConfigError(key, experiment.along, remedy)


def check_every_task(study: Study, name: str) -> None:
    """Raise ConfigError for a task that some eraser of the experiment, or its fine-tune, leaves out: the means of the
    models would be over different tasks."""
    shown, rows = study.experiments[name], [row_of(study, cell) for cell in cells_of(study, name)]
    models = dict.fromkeys((row["eraser"], row["finetune"]) for row in rows)
    models |= dict.fromkeys((eraser, NOT_TUNED) for eraser in shown.erasers if not shown.finetunes)
    for (eraser, finetune), task in itertools.product(models, shown.tasks):
        if {"task": task, "eraser": eraser, "finetune": finetune} not in rows:
            model = " + ".join(filter(None, (eraser, finetune)))
            remedy = f"leaves out {task}, which others have; name the same tasks in its limits, or no limits"
            raise ConfigError(f"experiments.{name}.erasers", model, remedy)


def check_scored(study: Study, experiment: Experiment, key: str, metric: str) -> None:
    """Raise ConfigError for a task of an experiment whose images the scorer of its metric leaves out."""
    scorer = next((name for name in study.scorers if metric in scorer_class(name).metrics), None)
    for task in experiment.tasks if scorer else ():
        if scorer not in study.scorers_of(kind := study.loaded[task].kind):
            remedy = f"is of scorers.{scorer}, whose kinds leave out {kind}, the kind of {task}; add it"
            raise ConfigError(key, metric, remedy)


def rows_with_roles(study: Study, experiment: Experiment, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of an experiment with each of its roles, and each of their concepts if it shows them."""
    for row, role in itertools.product(rows, experiment.roles):
        task = study.task(row["task"])
        concepts = {"erase": task.erase, "retain": task.retain, "synonym": tuple(task.synonyms)}.get(role)
        # those of general prompts are known only when these are fetched
        for concept in concepts if experiment.each_concept and concepts is not None else (None,):
            yield {**row, "role": role, "concept": concept}
