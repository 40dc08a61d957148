"""All erasers side by side: what is left, what it cost the rest, what comes back, seconds and size.

Made from the tables of a finished study and the run.json of its erased models, never from images. What holds seconds,
which vary from run to run, goes to results/cost, the rest to results/figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resurgence.analysis.comparison import KEYS, compare, costs, read_tables, returns
from resurgence.analysis.headline import (
    aligned,
    drop_repeats,
    markdown_table,
    title_of,
)  # fmt: skip
from resurgence.analysis.read import over_seeds
from resurgence.config.model_path import method_name
from resurgence.figures.style import BLUE, GREY, LINES, ORANGE, STYLE, errors, save
from resurgence.figures.style import MARKS as SHAPES

MARKS = ((ORANGE, "s"), ("#009E73", "^"))  # of the fine-tunes, in their order


def picture(cells: pd.DataFrame, metric: str) -> Figure:
    """For each task a panel of erased and one of retained concepts: a line an eraser, from erased to fine-tuned."""
    cells = cells[cells["metric"] == metric]
    tasks = sorted(set(cells["task"]))
    names = list(dict.fromkeys(zip(cells["eraser"], cells["variant"], strict=True)))
    names = [pair for pair in names if pair[0]]
    tuned = list(dict.fromkeys(cells[cells["state"] == "finetuned"]["finetune"]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 1.2 + 0.34 * len(names) * len(tasks)), layout="constrained")
        axes = figure.subplots(len(tasks), 2, squeeze=False, sharey=True, sharex=True)
        figure.suptitle(f"{title_of(metric)}: erased, and after fine-tuning")
        for line, task in zip(axes, tasks, strict=True):
            for axis, (role, told) in zip(line, {"erase": "erased", "retain": "retained"}.items(), strict=True):
                panel(axis, cells[(cells["task"] == task) & (cells["role"] == role)], names, tuned)
                axis.set_title(f"{task}: {told} concepts", fontsize=10)
        for axis in axes[-1]:
            axis.set_xlabel(title_of(metric))
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def panel(axis: Axes, rows: pd.DataFrame, names: list[tuple[str, str]], tuned: list[str]) -> None:
    """One line an eraser: its erased model, and its fine-tuned ones at their last steps, with intervals."""
    base = rows[rows["state"] == "base"]["value"]
    if len(base):
        axis.axvline(base.iloc[0], color=GREY, linestyle="--", label="base")
    states = [("erased", None, BLUE, "o"), *(("finetuned", t, c, m) for t, (c, m) in zip(tuned, MARKS, strict=False))]
    for shift, (state, finetune, colour, mark) in zip((-0.22, 0.0, 0.22), states, strict=False):
        part = rows[rows["state"] == state]
        part = part if finetune is None else part[part["finetune"] == finetune]
        last = part.groupby(KEYS, dropna=False)["step"].transform("max")
        part = part if finetune is None else part[part["step"] == last]
        middle = over_seeds(part, KEYS)
        places = [names.index(pair) + shift for pair in zip(middle["eraser"], middle["variant"], strict=True)]
        told = "erased" if finetune is None else f"after fine-tuning: {finetune}"
        axis.errorbar(middle["value"], places, xerr=errors(middle), fmt=mark, color=colour, markersize=5, label=told)
    axis.set_yticks(range(len(names)), [method_name(*pair) for pair in names], fontsize=8)
    axis.set_ylim(len(names) - 0.5, -0.5)


def price(found: pd.DataFrame, metric: str, cost: pd.DataFrame) -> Figure:
    """For each task three panels, a line an eraser: what comes back, seconds of work, MiB of the delta.

    Args:
        found: of `returns`. cost: of `costs`.
    """
    tasks, tuned = sorted(set(found["task"])), list(dict.fromkeys(found["finetune"]))
    names = list(dict.fromkeys(zip(found["eraser"], found["variant"], strict=True)))
    titles = f"resurgence: {title_of(metric)}", "seconds of work, one model", "MiB of the delta"
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 1.2 + 0.34 * len(names) * len(tasks)), layout="constrained")
        axes = figure.subplots(len(tasks), 3, squeeze=False, sharey=True, sharex="col", width_ratios=(2, 1, 1))
        for line, task in zip(axes, tasks, strict=True):
            own = found[found["task"] == task]
            line[0].axvline(0, color=GREY, linestyle="--")
            for place, finetune in enumerate(tuned):
                part, colour, mark = own[own["finetune"] == finetune], LINES[place % len(LINES)], SHAPES[place % 8]
                shift = 0.5 * ((place + 0.5) / len(tuned) - 0.5)
                places = [names.index(pair) + shift for pair in zip(part["eraser"], part["variant"], strict=True)]
                line[0].errorbar(
                    part["value"], places, xerr=errors(part), fmt=mark, color=colour, markersize=5, label=finetune
                )
            paid = cost[cost["task"] == task]
            paid = paid[[pair in names for pair in zip(paid["eraser"], paid["variant"], strict=True)]]
            places = [names.index(pair) for pair in zip(paid["eraser"], paid["variant"], strict=True)]
            for axis, column in zip(line[1:], ("seconds", "MiB"), strict=True):
                axis.barh(places, paid[column], color=GREY, height=0.6)
            line[0].set_title(task, fontsize=10)
            line[0].set_yticks(range(len(names)), [method_name(*pair) for pair in names], fontsize=8)
            line[0].set_ylim(len(names) - 0.5, -0.5)
        for axis, title in zip(axes[-1], titles, strict=True):
            axis.set_xlabel(title)
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def write(results: Path, metric: str) -> str:
    """Write cost/compare_<metric>.csv, .md, .svg and .png; returns the table as text."""
    cells, resurgence, seeds = read_tables(results, metric)
    cost = costs(results, cells)
    table = compare(resurgence, seeds, metric, cost)
    out = results / "cost"
    out.mkdir(exist_ok=True)
    text = f"# {title_of(metric)} of all erasers\n\n{markdown_table(table)}\n"
    files: Mapping[str, str] = {f"compare_{metric}.csv": table.to_csv(index=False), f"compare_{metric}.md": text}
    for name, content in files.items():
        temporary = out / f".{name}.tmp"
        temporary.write_text(content, encoding="utf-8")
        temporary.rename(out / name)
    save(price(returns(resurgence, seeds, metric), metric, cost), out / f"compare_{metric}")
    return aligned(drop_repeats(table, ["task", "eraser"]))


def draw(results: Path, metric: str) -> None:
    """Write figures/compare_<metric>.svg and .png."""
    cells, *_ = read_tables(results, metric)
    save(picture(cells, metric), results / "figures" / f"compare_{metric}")
