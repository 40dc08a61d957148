"""Comparison of all erasers of a study: resurgence, seconds and size of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from resurgence.analysis.headline import cell_row, gain, last_steps, marked, number, verdict
from resurgence.analysis.read import read_table
from resurgence.config.fields import known
from resurgence.config.model_path import ModelPath, method_name
from resurgence.config.scorers import ranked
from resurgence.files import read_json
from resurgence.provenance.manifest import read_manifest

KEYS = ["task", "eraser", "variant"]
PARTS = ("delta", "loras")  # folders of the artefacts of an eraser


def costs(results: Path, cells: pd.DataFrame) -> pd.DataFrame:
    """Seconds of work and MiB of the delta of each eraser, medians over its seeds; of erasures one after the other the
    seconds of all, and the delta of the last.

    Args:
        results: the folder results/. cells: the table cells.csv.
    """
    rows = []
    erased = cells[cells["state"] == "erased"][["base", *KEYS, "erase_seed"]].drop_duplicates()
    for row in erased.to_dict("records"):
        model = ModelPath.of_columns(row)
        folders = [results / "erased" / row["base"] / str(path) for path in model.prefixes()]
        runs = [read_json(f / part / "run.json") for f in folders for part in PARTS if (f / part).is_dir()]
        file = folders[-1] / "delta/delta.safetensors"
        size = file.stat().st_size / 2**20 if file.exists() else 0.0
        rows.append((*(row[key] for key in KEYS), size, sum(float(run["seconds"]) for run in runs)))
    return pd.DataFrame(rows, columns=[*KEYS, "MiB", "seconds"]).groupby(KEYS, as_index=False, sort=False).median()


def changed_objectives(results: Path) -> dict[str, str]:
    """Eraser -> the settings that change its objective, from the record of the tables; empty where there is none."""
    record = results / "tables" / "made.json"
    return read_manifest(record)["parameters"].get("changed_objectives", {}) if record.is_file() else {}


def comparison_table(
    resurgence: pd.DataFrame, seeds: pd.DataFrame, metric: str, cost: pd.DataFrame, changed: Mapping[str, str]
) -> pd.DataFrame:
    """One row for each task, eraser and fine-tune at its last step, over its seeds, as text.

    Columns: task, eraser, erased and retained (base -> erased), fine-tune, comes to (erased concepts after it),
    resurgence with its interval, came back (a dash for metrics that do not increase with the concept), retained after,
    seconds, MiB.

    Args:
        changed: eraser -> the settings that change its objective.
    """
    rows, declared = [], ranked().get(metric)
    shows = declared is not None and declared.shows_concept
    last = last_steps(resurgence[resurgence["metric"] == metric])
    for key, group in last.groupby([*KEYS, "finetune", "finetune_variant"], sort=False):
        task, eraser, variant, finetune, finetune_variant = key
        erase, retain = (group[group["role"] == role] for role in ("erase", "retain"))
        price = cost[(cost[KEYS] == [task, eraser, variant]).all(axis=1)]
        seconds, size = price.iloc[0][["seconds", "MiB"]] if len(price) else (math.nan, math.nan)
        rows.append({
            "task": task,
            "eraser": marked(method_name(eraser, variant), changed),
            "erased": f"{number(erase['base_value'].median())} -> {number(erase['erased_value'].median())}",
            "retained": f"{number(retain['base_value'].median())} -> {number(retain['erased_value'].median())}",
            "fine-tune": method_name(finetune, finetune_variant),
            "comes to": number(erase["finetuned_value"].median()),
            "resurgence": gain(erase, seeds),
            "came back": verdict(erase, seeds) if shows else "-",
            "retained after": number(retain["finetuned_value"].median()),
            "seconds": number(seconds),
            "MiB": number(size),
        })  # fmt: skip
    return pd.DataFrame(rows)


def resurgence_values(resurgence: pd.DataFrame, seeds: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Resurgence of the erased concepts at the last step of each cell, as numbers: KEYS, finetune, value, low, high.

    With several seeds the mean, with its interval over concepts and seeds.
    """
    rows = []
    chosen = resurgence[(resurgence["metric"] == metric) & (resurgence["role"] == "erase")]
    for key, group in last_steps(chosen).groupby([*KEYS, "finetune", "finetune_variant"], sort=False):
        row = cell_row(group, seeds)
        value = row["resurgence_mean" if len(group) > 1 else "resurgence"]
        rows.append((*key[:3], method_name(*key[3:]), value, row["resurgence_low"], row["resurgence_high"]))
    return pd.DataFrame(rows, columns=[*KEYS, "finetune", "value", "low", "high"])


def read_tables(results: Path, metric: str) -> dict[str, pd.DataFrame]:
    """Cells, means, resurgence and seeds of a finished study by name.

    Raises:
        FileNotFoundError: no tables. ConfigError: a metric that the tables do not contain.
    """
    tables = results / "tables"
    if not (tables / "resurgence.csv").exists():
        raise FileNotFoundError(f"{tables / 'resurgence.csv'} is missing; run the study first: snakemake --cores all")
    read = {name: read_table(tables / f"{name}.csv") for name in ("cells", "means", "resurgence", "seeds")}
    known("--metric", metric, sorted(set(read["resurgence"]["metric"])))
    return read
