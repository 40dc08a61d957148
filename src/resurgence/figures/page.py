"""The page on which a study opens: the answer in one sentence a task and eraser, tables, bars, curves, explorer.

The page is rendered from the templates in figures/page, which escape all texts of the study. It is one file of at most
LIMIT bytes, reads nothing else and needs no network. Equal tables and images give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jinja2 import DictLoader, Environment, StrictUndefined

from resurgence.analysis.answers import TITLES, answer, clause, sentence
from resurgence.analysis.headline import CELL, ROLES, accuracies, last_steps, titles, unit, verdict
from resurgence.config.counting import counted
from resurgence.config.model_path import ModelPath, method_name
from resurgence.config.scorers import ranked
from resurgence.figures import charts
from resurgence.figures.numbers import Number, Numbers
from resurgence.provenance.templates import templates

LIMIT = 10_000_000  # bytes of a page
FOLDER = "figures/page"  # of the templates
STATES = ("base", "erased", "finetuned")
WHOLE = ("erase", "all")  # roles of which tables show the resurgence
COLUMNS = {name: ROLES[name] for name in sorted(ROLES, key=lambda name: (name not in WHOLE, "retain" not in name))}


def environment() -> Environment:
    """The templates; what they insert is escaped, and an unknown name is an error."""
    jinja = Environment(
        loader=DictLoader(templates(FOLDER)), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    jinja.globals["counted"] = counted
    jinja.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":")}
    return jinja


@dataclass(frozen=True)
class Cell:
    """The runs of an eraser and a fine-tune on a task, at one metric."""

    key: dict[str, Any]
    rows: pd.DataFrame  # of resurgence.csv

    @property
    def eraser(self) -> str:
        """Name of the eraser's variant."""
        return method_name(self.key["eraser"], self.key["variant"])

    @property
    def finetune(self) -> str:
        """Name of the fine-tune's variant."""
        return method_name(self.key["finetune"], self.key["finetune_variant"])


def cells_of(rows: pd.DataFrame) -> Iterator[Cell]:
    """The cells in the order of the table."""
    for key, group in rows.groupby(CELL, sort=False):
        yield Cell(dict(zip(CELL, key, strict=True)), group)


def leading_metrics(resurgence: pd.DataFrame) -> dict[str, str]:
    """Task -> the metric of its sentences: the first accuracy, else the first that shows the concept."""
    shown = [name for name, metric in ranked().items() if metric.shows_concept]
    scored = {task: set(rows["metric"]) for task, rows in resurgence[resurgence["role"] == "erase"].groupby("task")}
    others = {task: next((m for m in shown if m in names), "") for task, names in scored.items()}
    return {task: name for task, name in {**others, **accuracies(resurgence)}.items() if name}


def metric_rows(numbers: Numbers, resurgence: pd.DataFrame, metric: str) -> list[dict[str, Any]]:
    """The rows of a table: one a cell at its last step, with the numbers of each role."""
    declared, rows = ranked().get(metric), []
    for cell in cells_of(last_steps(resurgence[resurgence["metric"] == metric])):
        step = cell.rows["step"].max()
        line = {"task": cell.key["task"], "eraser": cell.eraser, "finetune": cell.finetune, "step": f"{step:g}"}
        line["roles"] = {}
        for role in [role for role in ROLES if (cell.rows["role"] == role).any()]:
            part = cell.rows[cell.rows["role"] == role]
            values = {state: numbers.state(cell.key, state, step, role, metric) for state in STATES}
            if role in WHOLE:
                values["gain"] = numbers.gain(part)
                shows = declared is not None and declared.shows_concept
                values["verdict"] = verdict(part, numbers.seeds) if shows else ""
            line["roles"][role] = values
        rows.append(line)
    return rows


def metric_table(numbers: Numbers, resurgence: pd.DataFrame, metric: str) -> dict[str, Any]:
    """A table of one metric, with the roles that any of its rows has."""
    rows = metric_rows(numbers, resurgence, metric)
    roles = {role: title for role, title in COLUMNS.items() if any(role in row["roles"] for row in rows)}
    shows = any(values.get("verdict") for row in rows for values in row["roles"].values())
    return {"title": titles()[metric], "rows": rows, "roles": roles, "shows": shows, "whole": WHOLE}


def answers(numbers: Numbers, rows: pd.DataFrame, shown: Set[str]) -> list[dict[str, Any]]:
    """Eraser, outcome, sentence and numbers of each eraser on a task.

    Args:
        rows: of resurgence.csv, of the task at its leading metric and the role erase. shown: models of the explorer.
    """
    by_eraser: dict[str, list[Cell]] = {}
    for cell in cells_of(last_steps(rows)):
        by_eraser.setdefault(cell.eraser, []).append(cell)
    items = []
    for name, cells in by_eraser.items():
        clauses = [clause(cell.rows, numbers.seeds) for cell in cells]
        outcome = answer(clauses)
        parts = [proof(numbers, cell, shown) for cell in cells]
        text = sentence(name, clauses)
        items.append({"eraser": name, "outcome": outcome, "title": TITLES[outcome], "text": text, "parts": parts})
    return items


def proof(numbers: Numbers, cell: Cell, shown: Set[str]) -> dict[str, Any]:
    """The numbers behind a clause of a sentence, and the image sets that show it: base, erased, fine-tuned."""
    step, first = cell.rows["step"].max(), cell.rows.iloc[0]
    values = {state: numbers.state(cell.key, state, step, first["role"], first["metric"]) for state in STATES}
    paths = [ModelPath.of_columns(row) for row in cell.rows.to_dict("records")]
    sets = next(([path.base, *path.prefixes()] for path in paths if str(path) in shown), [])
    names = [str(path) for path in sets if str(path) in shown]
    models = [*names[:-1], f"{names[-1]}@{step:g}"] if names else []
    values["gain"], word = numbers.gain(cell.rows), verdict(cell.rows, numbers.seeds)
    return {**values, "verdict": word, "finetune": cell.finetune, "step": f"{step:g}", "models": models}


def drawn_bars(numbers: Numbers, rows: pd.DataFrame, role: str, metric: str) -> list[charts.Bar]:
    """The bars of a task: its base, then each erased model followed by its fine-tuned ones."""
    items: dict[tuple[str, str], Number] = {}
    for cell in cells_of(last_steps(rows)):
        for state, label in zip(STATES, ("base", cell.eraser, f"{cell.eraser} + {cell.finetune}"), strict=True):
            if number := numbers.state(cell.key, state, cell.rows["step"].max(), role, metric):
                items.setdefault((label, state), number)
    return charts.bars([(label, state, number) for (label, state), number in items.items()], bool(unit(metric)))


def drawn_curves(numbers: Numbers, rows: pd.DataFrame, role: str, metric: str) -> charts.Panel | None:
    """The curves of a task over steps, from the erased model on; None where every cell has a single step."""
    lines, base = {}, None
    for cell in cells_of(rows):
        steps = sorted(set(cell.rows["step"]))
        places = [(0, "erased"), *((int(step), "finetuned") for step in steps)]
        points = [(step, numbers.state(cell.key, state, step, role, metric)) for step, state in places]
        if len(steps) > 1:
            lines[f"{cell.eraser} + {cell.finetune}"] = [(step, number) for step, number in points if number]
            base = base or numbers.state(cell.key, "base", 0, role, metric)
    return charts.panel(lines, base, bool(unit(metric))) if lines else None


def task_block(numbers: Numbers, task: str, metric: str, shown: Set[str]) -> dict[str, Any]:
    """What the page says of a task: sentences, bars, curves."""
    every = numbers.resurgence
    rows = every[(every["task"] == task) & (every["metric"] == metric)]
    drawn = []
    for role in ("erase", "retain"):
        if len(part := rows[rows["role"] == role]):
            parts = (drawn_bars(numbers, part, role, metric), drawn_curves(numbers, part, role, metric))
            drawn.append({"title": ROLES[role], "bars": parts[0], "curves": parts[1]})
    erased = rows[rows["role"] == "erase"]
    return {"name": task, "metric": titles()[metric], "answers": answers(numbers, erased, shown), "drawn": drawn}


def context(numbers: Numbers, facts: Mapping[str, Any]) -> dict[str, Any]:
    """All that the template shows but the explorer.

    Args:
        facts: study, base, level, warnings, notes, and models, those of the explorer as in paths.
    """
    resurgence = numbers.resurgence
    leading = leading_metrics(resurgence)
    tasks = [task_block(numbers, task, metric, facts["models"]) for task, metric in leading.items()]
    outcomes = [item["outcome"] for task in tasks for item in task["answers"]]
    chosen = resurgence[resurgence["metric"] == resurgence["task"].map(leading)]
    first = [metric for metric in titles() if metric in leading.values()]
    others = [metric for metric in titles() if (resurgence["metric"] == metric).any()]
    return {
        **facts,
        "tasks": tasks,
        "counts": [(name, title, outcomes.count(name)) for name, title in TITLES.items()],
        "main": [metric_table(numbers, chosen, metric) for metric in first],
        "others": [metric_table(numbers, resurgence, metric) for metric in others],
        "sources": list(numbers.sources.values()),
    }


def render(template: str, values: Mapping[str, Any], explorer: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        template: name of the file. values: see `context`. explorer: see `explorer_data`.
    """
    return environment().get_template(template).render(**values, explorer=explorer)
