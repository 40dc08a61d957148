"""All erasers of a study side by side: resurgence, seconds and size of each."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from resurgence.analysis.headline import (
    gain,
    last_steps,
    number,
    together,
    verdict,
)  # fmt: skip
from resurgence.analysis.read import read_table
from resurgence.config.fields import known
from resurgence.config.model_path import ModelPath, method_name

KEYS = ["task", "eraser", "variant"]
PARTS = {"delta": "delta.safetensors", "loras": "refined.safetensors"}  # what an eraser writes, and its main file


def costs(results: Path, cells: pd.DataFrame) -> pd.DataFrame:
    """Seconds of work and MiB of the delta of each eraser, medians over its seeds.

    Args:
        results: the folder results/. cells: the table cells.csv.
    """
    rows = []
    erased = cells[cells["state"] == "erased"][["base", *KEYS, "erase_seed"]].drop_duplicates()
    for base, task, eraser, variant, seed in erased.itertuples(index=False):
        place = results / "erased" / base / str(ModelPath(task).then("erase", eraser, variant, int(seed)))
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
            "eraser": method_name(eraser, variant),
            "erased": f"{number(erase['base_value'].median())} -> {number(erase['erased_value'].median())}",
            "retained": f"{number(retain['base_value'].median())} -> {number(retain['erased_value'].median())}",
            "fine-tune": method_name(finetune, finetune_variant),
            "comes to": number(erase["finetuned_value"].median()),
            "resurgence": gain(erase, seeds),
            "came back": verdict(erase, seeds),
            "retained after": number(retain["finetuned_value"].median()),
            "seconds": number(seconds),
            "MiB": number(size),
        })  # fmt: skip
    return pd.DataFrame(rows)


def returns(resurgence: pd.DataFrame, seeds: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Resurgence of the erased concepts at the last step of each cell, as numbers: KEYS, finetune, value, low, high.

    Several seeds: their mean with its interval over concepts.
    """
    rows = []
    chosen = resurgence[(resurgence["metric"] == metric) & (resurgence["role"] == "erase")]
    for key, group in last_steps(chosen).groupby([*KEYS, "finetune", "finetune_variant"], sort=False):
        found = together(group, seeds)
        value = found["resurgence_mean" if len(group) > 1 else "resurgence"]
        ends = {"value": value, "low": found["resurgence_low"], "high": found["resurgence_high"]}
        rows.append(dict(zip(KEYS, key, strict=False)) | {"finetune": method_name(*key[3:])} | ends)
    return pd.DataFrame(rows)


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
