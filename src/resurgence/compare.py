"""All erasers side by side: what is left, what it cost the rest, what comes back, seconds and size.

Made from the tables of a finished study and the run.json of its erased models, never from images.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resurgence.config import known
from resurgence.figures import BLUE, GREY, ORANGE, STYLE, errors, over_seeds, read_table, save
from resurgence.summary import TITLES, aligned, drop_repeats, gain, label, last_steps, markdown_table, number, verdict

KEYS = ["task", "eraser", "variant"]
MARKS = ((ORANGE, "s"), ("#009E73", "^"))  # of the fine-tunes, in their order
PARTS = {"delta": "delta.safetensors", "loras": "refined.safetensors"}  # what an eraser writes, and its main file


def costs(results: Path, cells: pd.DataFrame) -> pd.DataFrame:
    """Seconds of work and MiB of the delta of each eraser, medians over its seeds.

    Args:
        results: the folder results/. cells: the table cells.csv.
    """
    rows = []
    erased = cells[cells["state"] == "erased"][["base", *KEYS, "erase_seed"]].drop_duplicates()
    for base, task, eraser, variant, seed in erased.itertuples(index=False):
        place = results / "erased" / base / task / label(eraser, variant) / f"s{int(seed)}"
        runs = [json.loads((place / part / "run.json").read_text()) for part in PARTS if (place / part).is_dir()]
        file = place / "delta" / PARTS["delta"]
        size = file.stat().st_size / 2**20 if file.exists() else 0.0
        found = {"task": task, "eraser": eraser, "variant": variant, "MiB": size}
        rows.append(found | {"seconds": sum(float(run["seconds"]) for run in runs)})
    return pd.DataFrame(rows, columns=[*KEYS, "MiB", "seconds"]).groupby(KEYS, as_index=False, sort=False).median()


def compare(resurgence: pd.DataFrame, seeds: pd.DataFrame, metric: str, cost: pd.DataFrame) -> pd.DataFrame:
    """One row for each task, eraser and fine-tune at its last step, as text; seeds together.

    Columns: task, eraser, erased and retained (base -> erased), fine-tune, after it (erased concepts), resurgence with
    its interval, came back, retained after it, seconds, MiB.
    """
    rows = []
    last = last_steps(resurgence[resurgence["metric"] == metric])
    for key, group in last.groupby([*KEYS, "finetune", "finetune_variant"], sort=False):
        task, eraser, variant, finetune, finetune_variant = key
        erase, retain = (group[group["role"] == role] for role in ("erase", "retain"))
        own = cost[(cost[KEYS] == [task, eraser, variant]).all(axis=1)]
        seconds, size = (own.iloc[0]["seconds"], own.iloc[0]["MiB"]) if len(own) else (float("nan"), float("nan"))
        rows.append({
            "task": task,
            "eraser": label(eraser, variant),
            "erased": f"{number(erase['base_value'].median())} -> {number(erase['erased_value'].median())}",
            "retained": f"{number(retain['base_value'].median())} -> {number(retain['erased_value'].median())}",
            "fine-tune": label(finetune, finetune_variant),
            "comes to": number(erase["finetuned_value"].median()),
            "resurgence": gain(erase, seeds),
            "came back": verdict(erase, seeds),
            "retained after": number(retain["finetuned_value"].median()),
            "seconds": number(seconds),
            "MiB": number(size),
        })  # fmt: skip
    return pd.DataFrame(rows)


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
        figure.suptitle(f"{TITLES.get(metric, metric)}: erased, and after fine-tuning")
        for line, task in zip(axes, tasks, strict=True):
            for axis, (role, told) in zip(line, {"erase": "erased", "retain": "retained"}.items(), strict=True):
                panel(axis, cells[(cells["task"] == task) & (cells["role"] == role)], names, tuned)
                axis.set_title(f"{task}: {told} concepts", fontsize=10)
        for axis in axes[-1]:
            axis.set_xlabel(TITLES.get(metric, metric))
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
    axis.set_yticks(range(len(names)), [label(*pair) for pair in names], fontsize=8)
    axis.set_ylim(len(names) - 0.5, -0.5)


def read_tables(results: Path, metric: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Cells, resurgence and seeds of a finished study.

    Raises:
        FileNotFoundError: the study has not run. ConfigError: a metric that the tables do not hold.
    """
    tables = results / "tables"
    if not (tables / "resurgence.csv").exists():
        raise FileNotFoundError(f"{tables / 'resurgence.csv'} is missing; run the study first: snakemake --cores all")
    cells, resurgence, seeds = (read_table(tables / f"{name}.csv") for name in ("cells", "resurgence", "seeds"))
    known("--metric", metric, sorted(set(resurgence["metric"])))
    return cells, resurgence, seeds


def write(results: Path, metric: str) -> str:
    """Write cost/compare_<metric>.csv and .md; returns the table as text. Its seconds vary from run to run."""
    cells, resurgence, seeds = read_tables(results, metric)
    table = compare(resurgence, seeds, metric, costs(results, cells))
    out = results / "cost"
    out.mkdir(exist_ok=True)
    text = f"# {TITLES.get(metric, metric)} of all erasers\n\n{markdown_table(table)}\n"
    files: Mapping[str, str] = {f"compare_{metric}.csv": table.to_csv(index=False), f"compare_{metric}.md": text}
    for name, content in files.items():
        temporary = out / f".{name}.tmp"
        temporary.write_text(content, encoding="utf-8")
        temporary.rename(out / name)
    return aligned(drop_repeats(table, ["task", "eraser"]))


def draw(results: Path, metric: str) -> None:
    """Write figures/compare_<metric>.svg and .png."""
    cells, *_ = read_tables(results, metric)
    save(picture(cells, metric), results / "figures" / f"compare_{metric}")


def run(args: Namespace) -> None:
    """Print the comparison and say where the picture is."""
    print(write(args.results, args.metric))
    draw(args.results, args.metric)
    print(f"\n{args.results / 'figures' / f'compare_{args.metric}.png'}")
