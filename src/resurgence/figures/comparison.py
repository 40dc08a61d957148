"""Figures that compare all erasers: erased and retained concepts, resurgence, seconds and size.

Drawn from the tables of a finished study and the run.json of its erased models, never from images. Seconds vary from
run to run, so files that contain them go to results/cost, the others to results/figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resurgence.analysis.comparison import (
    KEYS,
    changed_objectives,
    comparison_table,
    costs,
    read_tables,
    resurgence_values,
)
from resurgence.analysis.headline import aligned, changed_note, drop_repeats, markdown_table, title_of
from resurgence.config.model_path import method_name
from resurgence.figures.style import BLUE, GREY, LINES, ORANGE, ROLES, STYLE, errors, save
from resurgence.figures.style import MARKS as SHAPES
from resurgence.files import write_text

MARKS = (  # of the fine-tunes, in their order
    (ORANGE, "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#D55E00", "v"), ("#56B4E9", "P"), ("#000000", "X"),
    ("#8c6d00", "*"),
)  # fmt: skip


@matplotlib.rc_context(STYLE)
def comparison_figure(means: pd.DataFrame, metric: str) -> Figure:
    """For each task a panel of erased and one of retained concepts: a line an eraser, from erased to fine-tuned.

    Args:
        means: means.csv.
    """
    means = means[means["metric"] == metric]
    tasks, names = sorted(set(means["task"])), models_in(means[means["eraser"] != ""])
    tuned = means[means["state"] == "finetuned"]
    finetunes = list(dict.fromkeys(zip(tuned["finetune"], tuned["finetune_variant"], strict=True)))
    figure = Figure(figsize=(12, 1.2 + 0.34 * len(names) * len(tasks)), layout="constrained")
    axes = figure.subplots(len(tasks), 2, squeeze=False, sharey=True, sharex=True)
    figure.suptitle(f"{title_of(metric)}: erased, and after fine-tuning")
    for line, task in zip(axes, tasks, strict=True):
        for axis, role in zip(line, ROLES, strict=True):
            panel(axis, means[(means["task"] == task) & (means["role"] == role)], names, finetunes)
            axis.set_title(f"{task}: {ROLES[role]}", fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel(title_of(metric))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def models_in(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """The erasers with their variants, each once, in the order of the rows."""
    return list(dict.fromkeys(zip(rows["eraser"], rows["variant"], strict=True)))


def positions(rows: pd.DataFrame, names: list[tuple[str, str]], shift: float = 0) -> list[float]:
    """The height at which each row is drawn: the index of its eraser among `names`, shifted."""
    return [names.index(pair) + shift for pair in zip(rows["eraser"], rows["variant"], strict=True)]


def label_erasers(axis: Axes, names: list[tuple[str, str]]) -> None:
    """One line an eraser, the first at the top."""
    axis.set_yticks(range(len(names)), [method_name(*pair) for pair in names], fontsize=8)
    axis.set_ylim(len(names) - 0.5, -0.5)


def panel(axis: Axes, rows: pd.DataFrame, names: list[tuple[str, str]], finetunes: Sequence[tuple[str, str]]) -> None:
    """One line an eraser: its erased model, and its fine-tuned ones at their last steps, with intervals.

    Args:
        names: erasers and their variants, the first at the top. finetunes: fine-tunes and their variants.
    """
    base = rows[rows["state"] == "base"]["value"]
    if len(base):
        axis.axvline(base.iloc[0], color=GREY, linestyle="--", label="base")
    parts = [(rows[rows["state"] == "erased"], "erased", BLUE, "o")]
    for number, finetune in enumerate(finetunes):
        same = (rows[["finetune", "finetune_variant"]] == list(finetune)).all(axis=1)
        part = rows[(rows["state"] == "finetuned") & same]
        part = part[part["step"] == part.groupby(KEYS, dropna=False)["step"].transform("max")]
        parts.append((part, f"after fine-tuning: {method_name(*finetune)}", *MARKS[number % len(MARKS)]))
    shifts = np.linspace(-0.22, 0.22, max(3, len(parts)))
    for shift, (part, label, colour, mark) in zip(shifts, parts, strict=False):
        style = {"fmt": mark, "color": colour, "markersize": 5, "label": label}
        axis.errorbar(part["value"], positions(part, names, shift), xerr=errors(part), **style)
    label_erasers(axis, names)


@matplotlib.rc_context(STYLE)
def cost_figure(values: pd.DataFrame, metric: str, cost: pd.DataFrame) -> Figure:
    """For each task three panels, a line an eraser: resurgence, seconds of work, MiB of the delta.

    Args:
        values: from `resurgence_values`. cost: from `costs`.
    """
    tasks, finetunes, names = sorted(set(values["task"])), list(dict.fromkeys(values["finetune"])), models_in(values)
    titles = f"resurgence: {title_of(metric)}", "seconds of work, one model", "MiB of the delta"
    figure = Figure(figsize=(12, 1.2 + 0.34 * len(names) * len(tasks)), layout="constrained")
    axes = figure.subplots(len(tasks), 3, squeeze=False, sharey=True, sharex="col", width_ratios=(2, 1, 1))
    for line, task in zip(axes, tasks, strict=True):
        line[0].axvline(0, color=GREY, linestyle="--")
        for number, finetune in enumerate(finetunes):
            part = values[(values["task"] == task) & (values["finetune"] == finetune)]
            heights = positions(part, names, 0.5 * ((number + 0.5) / len(finetunes) - 0.5))
            style = {"fmt": SHAPES[number % 8], "color": LINES[number % len(LINES)], "markersize": 5, "label": finetune}
            line[0].errorbar(part["value"], heights, xerr=errors(part), **style)
        prices = cost[cost["task"] == task]
        prices = prices[[pair in names for pair in zip(prices["eraser"], prices["variant"], strict=True)]]
        for axis, column in zip(line[1:], ("seconds", "MiB"), strict=True):
            axis.barh(positions(prices, names), prices[column], color=GREY, height=0.6)
        line[0].set_title(task, fontsize=10)
        label_erasers(line[0], names)
    for axis, title in zip(axes[-1], titles, strict=True):
        axis.set_xlabel(title)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def write_comparison(results: Path, metric: str, place: str = "cost") -> str:
    """Write compare_<metric>.csv, .md, .svg and .png into a folder of the results; returns the table as text."""
    read = read_tables(results, metric)
    resurgence, seeds, cost = read["resurgence"], read["seeds"], costs(results, read["cells"])
    changed = changed_objectives(results)
    table, note = comparison_table(resurgence, seeds, metric, cost, changed), changed_note(changed)
    out = results / place
    write_text(out / f"compare_{metric}.csv", table.to_csv(index=False))
    page = [f"# {title_of(metric)} of all erasers", markdown_table(table), note]
    write_text(out / f"compare_{metric}.md", "\n\n".join(filter(None, page)) + "\n")
    save(cost_figure(resurgence_values(resurgence, seeds, metric), metric, cost), out / f"compare_{metric}")
    return "\n\n".join(filter(None, [aligned(drop_repeats(table, ["task", "eraser"])), note]))


def draw_comparison(results: Path, metric: str, place: str = "figures") -> None:
    """Write compare_<metric>.svg and .png into a folder of the results."""
    save(comparison_figure(read_tables(results, metric)["means"], metric), results / place / f"compare_{metric}")
