"""The manifests and run records of many artefacts in one Parquet file, for a reference without their other files.

Columns: folder (from the results tree), manifest (text of manifest.json, to the byte, so that its digest is the one
that other manifests refer to) and run (text of run.json without the command line).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

from resurgence.files import atomic_file, json_text
from resurgence.provenance.manifest import MANIFEST, RUN

TABLE = "manifests.parquet"


def pack_manifests(results: Path, folders: Iterable[Path], file: Path) -> None:
    """Write the manifests and runs of artefacts, given their folders below the results tree."""
    rows = [
        {
            "folder": folder.relative_to(results).as_posix(),
            "manifest": (folder / MANIFEST).read_text(encoding="utf-8"),
            "run": without_command(folder / RUN),
        }
        for folder in sorted(folders)
    ]
    write_rows(rows, file)


def write_rows(rows: list[dict[str, Any]], file: Path) -> None:
    """Write the table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in ("folder", "manifest", "run")]))
    with atomic_file(file) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=19, use_dictionary=False)


def add_manifests(file: Path, earlier: Path, models: Set[tuple[str, str]]) -> None:
    """Add to the table `file` the rows of those models that only the table `earlier` holds; `file` need not exist.

    Args:
        models: pairs of base and model, whose folders are scores/BASE/MODEL/scores and .../geometry.

    Raises:
        ValueError: the manifest of a model is another one in each: other settings, other images, or other values.
    """
    rows = {row["folder"]: row for row in read_manifests(file)} if file.is_file() else {}
    folders = {f"scores/{base}/{model}/{part}" for base, model in models for part in ("scores", "geometry")}
    for row in (row for row in read_manifests(earlier) if row["folder"] in folders):
        if rows.setdefault(row["folder"], row)["manifest"] != row["manifest"]:
            raise ValueError(
                f"{row['folder']} has other values or settings in {earlier.parent.parent} than here; run the "
                "experiments that were stored with it once more, or store all of them anew"
            )
    write_rows([rows[folder] for folder in sorted(rows, key=Path)], file)


def without_command(run: Path) -> str:
    """Text of a run record without the command line, which holds paths of the machine; empty record without a file."""
    record = json.loads(run.read_text(encoding="utf-8")) if run.is_file() else {}
    return json_text({key: value for key, value in record.items() if key != "argv"})


def read_manifests(file: Path) -> list[dict[str, Any]]:
    """Rows of the table: folder, manifest, run, all of them text."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows


def unpack_manifests(file: Path, results: Path) -> None:
    """Write manifest.json and run.json of each artefact below a results tree."""
    for row in read_manifests(file):
        folder = results / row["folder"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).write_text(row["manifest"], encoding="utf-8")
        (folder / RUN).write_text(row["run"], encoding="utf-8")
