"""Checks that the metrics of an experiment have a value in its roles, and in the cells that its claims are about.

A metric need not have a value for every prompt: ESR-1 is of erased concepts alone, an accuracy of prompts with a
concept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from resurgence.config.experiment_cells import cells_of, row_of
from resurgence.config.experiment_checks import has_role, rows_with_roles
from resurgence.config.fields import ConfigError, known
from resurgence.config.scorers import HARMONIC, NAMED, metrics
from resurgence.files import read_rows

if TYPE_CHECKING:
    from resurgence.config.experiment import Cells
    from resurgence.config.study import Study

TEXTS = {NAMED: "general prompts that name a concept", "all": "all (and synonyms for H_o, none for H_c)"}


def check_values(study: Study, name: str, key: str, root: Path) -> None:
    """Raise ConfigError for a metric without a value in the roles of an experiment, or a claim about cells without one.

    Args:
        key: of its metrics, for messages.
    """
    shown = study.experiments[name]
    rows = [row_of(study, cell) for cell in cells_of(study, name)]
    parts = {(row["task"], row["role"], row["concept"]) for row in rows_with_roles(study, shown, rows)}
    there = {(m, *part) for m in shown.shown_metrics for part in parts if has_value(study, m, *part, root)}
    for metric in shown.shown_metrics if rows else ():
        if not any(metric == present for present, *_ in there):
            raise ConfigError(key, metric, f"has no value in the roles {', '.join(shown.roles)}; {roles_text(metric)}")
    for number, claim in enumerate(shown.claims):
        metric, place = claim.metric or shown.shown_metrics[0], f"experiments.{name}.claims[{number}]"
        for side, cells in (("of", claim.of), ("against", claim.against)):
            if cells is None:
                continue
            chosen = [row for row in rows_with_roles(study, shown, rows) if cells.holds(row)]
            if chosen and not any((metric, row["task"], row["role"], row["concept"]) in there for row in chosen):
                remedy = f"has no value of {metric}; {roles_text(metric)}"
                raise ConfigError(f"{place}.{side}", cell_text(cells), remedy)
            for task in sorted({row["task"] for row in chosen}) if claim.words else ():
                words = concepts_of(study, task, cells.role, root)
                for word in claim.words if words else ():
                    known(f"{place}.words", word, words)


def cell_text(cells: Cells) -> str:
    """The fields of cells that are given."""
    return ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(cells).items() if value is not None)


def roles_text(metric: str) -> str:
    """The roles in which a metric has a value, as the remedy of a message."""
    roles = ("all",) if metric in HARMONIC else metrics()[metric].roles
    return f"it has one in {', '.join(TEXTS.get(role, role) for role in roles)}"


def has_value(study: Study, metric: str, task: str, role: str, concept: str | None, root: Path) -> bool:
    """Whether images of a role of a task have a metric, or those of a concept of it."""
    if metric in HARMONIC:
        of_synonyms = has_role(study, task, "synonym")
        return role == "all" and concept is None and (metric == "H_o") == of_synonyms
    roles = metrics()[metric].roles
    if role == "general" and role not in roles:
        return NAMED in roles and names_concept(study, task, roles, root)
    return role in roles and has_role(study, task, role)


def names_concept(study: Study, task: str, roles: Collection[str], root: Path) -> bool:
    """Whether a general prompt of a task names a concept of these roles; also before a rule has fetched the prompts."""
    path = study.general_of(task)
    if path is None or not (root / path).is_file():
        return path is not None
    named, of = {row.get("concept", "") for row in read_rows(root / path)}, study.task(task)
    return bool(named & {*(of.erase if "erase" in roles else ()), *(of.retain if "retain" in roles else ())})


def concepts_of(study: Study, name: str, role: str, root: Path) -> tuple[str, ...]:
    """The concepts of a role of a task as `concept_means.by_concept` names them; () of prompts that are not fetched."""
    task, path = study.task(name), study.general_of(name)
    if role != "general":
        return {"erase": task.erase, "retain": task.retain}.get(role, tuple(task.synonyms))
    if path is None or not (root / path).is_file():
        return ()
    return tuple(dict.fromkeys(row.get("concept") or row["prompt"] for row in read_rows(root / path)))
