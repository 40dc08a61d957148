"""Checks of the experiments of a study: tasks, methods, sets and cells that they name."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from resurgence.config.experiment_cells import cells_of, row_of, setting_of
from resurgence.config.fields import ConfigError, known
from resurgence.config.model_path import method_name

if TYPE_CHECKING:
    from resurgence.config.experiment import Experiment
    from resurgence.config.study import Study

EXPERIMENT = re.compile(r"[a-z][a-z0-9_]*")  # becomes the name of a rule


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
        if experiment.kind == "tuning":
            check_tuned(study, name)
            continue
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
        if experiment.kind == "line":
            for cell in cells:
                setting_of(study, cell, experiment.along, f"{place}.along")


def check_tuned(study: Study, name: str) -> None:
    """Raise ConfigError for a task that some eraser of the experiment does not erase: their means would differ."""
    shown, rows = study.experiments[name], [row_of(study, cell) for cell in cells_of(study, name)]
    for task, eraser in itertools.product(shown.tasks, shown.erasers):
        if not any(row["task"] == task and row["eraser"] == eraser for row in rows):
            remedy = f"does not erase {task}, which the others do; name the same tasks in its limits, or no limits"
            raise ConfigError(f"experiments.{name}.erasers", eraser, remedy)


def rows_with_roles(study: Study, experiment: Experiment, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of an experiment with each of its roles, and each of their concepts if it shows them."""
    for row, role in itertools.product(rows, experiment.roles):
        task = study.task(row["task"])
        concepts = {"erase": task.erase, "retain": task.retain, "synonym": tuple(task.synonyms)}.get(role, ())
        for concept in concepts if experiment.each_concept else (None,):
            yield {**row, "role": role, "concept": concept}
