"""Pack the scores and weight movements of all models of a study into two Parquet files; unpack them again.

scores.parquet: columns base, model, step, and those of each scores.parquet, row by row; a column that a model lacks is
empty in its rows. geometry.parquet: base, model, step, group, measure, value (empty if the measure is undefined).
Types and bits of all numbers are preserved, so tables from unpacked scores have the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Set
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from resurgence.files import atomic_file, write_json
from resurgence.scorers import SCORES

PACKED, MOVEMENT = "scores.parquet", "geometry.parquet"  # in the folder scores of a results tree
KEYS = ("base", "model", "step")
GEOMETRY = "geometry.json"  # of one model, written by stages/geometry.py
MEASURES = {
    **dict.fromkeys(("base", "model"), pa.string()), "step": pa.int32(),
    **dict.fromkeys(("group", "measure"), pa.string()), "value": pa.float64(),
}  # fmt: skip


def write_table(table: pa.Table, file: Path) -> None:
    """Write Parquet, whole or not at all: text by dictionary encoding, pages compressed by zstd."""
    with atomic_file(file) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=19, use_dictionary=True)


def names_of(folder: Path, scores: Path) -> tuple[str, str]:
    """Base and model of an artefact's folder, SCORES/BASE/MODEL/{scores,geometry}."""
    base, *model = folder.parent.relative_to(scores).parts
    return base, "/".join(model)


def score_rows(folder: Path, scores: Path) -> pa.Table:
    """The rows of one image set, `folder` being its step-NNNNNN, with KEYS in front."""
    rows = pq.read_table(folder / SCORES).replace_schema_metadata(None)
    base, model = names_of(folder.parent, scores)
    step = int(folder.name.removeprefix("step-"))
    keys = {"base": pa.array([base] * len(rows)), "model": pa.array([model] * len(rows))}
    keys["step"] = pa.array([step] * len(rows), pa.int32())
    return pa.table({**keys, **dict(zip(rows.column_names, rows.columns, strict=True))})


def movement_rows(folder: Path, scores: Path) -> list[dict]:
    """The measures of one model: step -> group -> measure of its geometry.json."""
    base, model = names_of(folder, scores)
    return [
        {"base": base, "model": model, "step": int(step), "group": group, "measure": measure, "value": value}
        for step, groups in json.loads((folder / GEOMETRY).read_text(encoding="utf-8")).items()
        for group, values in groups.items()
        for measure, value in values.items()
    ]


def pack(scores: Path, folders: Iterable[Path], out: Path) -> None:
    """Write scores.parquet, and geometry.parquet where weight movements were measured, to the folder `out`.

    Args:
        scores: the folder scores of a results tree. folders: the score folders of the models, below it.

    Raises:
        FileNotFoundError: a folder holds no scores.
        pyarrow.ArrowTypeError: a column has different types in two models.
    """
    folders = sorted(folders)
    sets = [step for folder in folders for step in sorted(folder.glob("step-*"))]
    if missing := set(folders) - {step.parent for step in sets}:
        raise FileNotFoundError(f"{min(missing)} holds no step-*; score this model first")
    parts = [score_rows(step, scores) for step in sets]
    write_table(pa.concat_tables(parts, promote_options="default"), out / PACKED)
    moved = [folder.with_name("geometry") for folder in folders if (folder.with_name("geometry") / GEOMETRY).is_file()]
    rows = [row for folder in moved for row in movement_rows(folder, scores)]
    if rows:
        write_table(pa.Table.from_pylist(rows, pa.schema(MEASURES)), out / MOVEMENT)


def add_models(packed: Path, earlier: Path, models: Set[tuple[str, str]]) -> int:
    """Add to the folder `packed` the rows of those of `models` that only the folder `earlier` holds.

    Args:
        models: pairs of base and model. packed: may be empty.

    Returns:
        The number of models in scores.parquet.
    """
    for name in (PACKED, MOVEMENT):
        if (earlier / name).is_file():
            tables = [pq.read_table(folder / name) for folder in (packed, earlier) if (folder / name).is_file()]
            there = {pair for table in tables[:-1] for pair in pairs_of(table)}
            wanted = [pair in models and pair not in there for pair in pairs_of(tables[-1])]
            tables[-1] = tables[-1].filter(pa.array(wanted, pa.bool_()))
            if any(map(len, tables)):
                table = pa.concat_tables(tables, promote_options="default")
                folders = [(base, *model.split("/"), "scores") for base, model in pairs_of(table)]  # in pack's order
                write_table(table.take(sorted(range(len(table)), key=folders.__getitem__)), packed / name)
    return len(set(pairs_of(pq.read_table(packed / PACKED))))


def pairs_of(table: pa.Table) -> list[tuple[str, str]]:
    """Base and model of each row."""
    return list(zip(*(table[key].to_pylist() for key in KEYS[:2]), strict=True))


def unpack(packed: Path, scores: Path) -> None:
    """Write each model's scores.parquet and geometry.json below the folder `scores`, as the study had them."""
    table = pq.read_table(packed / PACKED)
    keys = table.select(KEYS).to_pandas()
    changes = np.flatnonzero((keys != keys.shift()).any(axis=1))
    rows = table.drop_columns(list(KEYS))
    for begin, end in pairwise([*changes, len(table)]):
        base, model, step = keys.iloc[begin]
        folder = scores / base / model / "scores" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        pq.write_table(rows.slice(begin, end - begin), folder / SCORES)
    if (packed / MOVEMENT).is_file():
        unpack_movement(packed / MOVEMENT, scores)


def unpack_movement(file: Path, scores: Path) -> None:
    """Write the geometry.json of each model."""
    movements: dict[Path, dict] = {}
    for row in pq.read_table(file).to_pylist():
        steps = movements.setdefault(scores / row["base"] / row["model"] / "geometry", {})
        steps.setdefault(str(row["step"]), {}).setdefault(row["group"], {})[row["measure"]] = row["value"]
    for folder, steps in movements.items():
        write_json(folder / GEOMETRY, steps)
