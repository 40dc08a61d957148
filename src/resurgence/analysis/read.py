"""Read the tables, training curves and run records of a finished study."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from resurgence.files import read_json

NUMBERS = [
    "step", "value", "low", "high", "base_value", "erased_value", "finetuned_value",
    "resurgence", "resurgence_low", "resurgence_high", "recovered_fraction", "resurgence_mean",
    *(f"{name}_{what}" for name in ("erased", "finetuned", "resurgence") for what in ("median", "deviation")),
]  # fmt: skip
NAMES = ["base", "task", "eraser", "variant", "finetune", "finetune_variant"]


def read_table(path: Path) -> pd.DataFrame:
    """Read cells.csv, means.csv, resurgence.csv or seeds.csv; empty names are empty text, empty numbers NaN.

    Names may consist of digits, as the variant of `uce.01`.
    """
    return pd.read_csv(
        path, keep_default_na=False, na_values={name: [""] for name in NUMBERS}, dtype=dict.fromkeys(NAMES, str)
    )


def read_runs(folders: Iterable[Path]) -> pd.DataFrame:
    """Kind, seconds, device and folder of finished artefacts (manifest.json and run.json of each)."""
    rows = []
    for folder in map(Path, folders):
        kind = read_json(folder / "manifest.json")["kind"]
        run = read_json(folder / "run.json")
        rows.append((kind, float(run["seconds"]), run["device"], folder.as_posix()))
    return pd.DataFrame(rows, columns=["kind", "seconds", "device", "folder"])


def read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Curves of a JSON file: a list of {step, loss}, or concept -> losses in order (the LoRAs of MACE)."""
    stored = read_json(Path(path))
    if isinstance(stored, list):
        return {"loss": [(point["step"], point["loss"]) for point in stored]}
    if not isinstance(stored, dict) or not all(isinstance(values, list) for values in stored.values()):
        raise ValueError(f"{path} holds neither a list of {{step, loss}} nor lists of losses by name; train again")
    return {name: list(enumerate(values, 1)) for name, values in stored.items()}
