"""What a result is made from: a row of a table, an image, an artefact or any of its files, down to the world's seeds.

Each artefact is printed once, with its settings, seeds, modules, and the run that made it; the artefacts that it was
made from follow, indented. At the end stand the files of the base and the scorers, DVC's entries for them, and the
seeds of the trainings and the packages of the drawings behind them. Of a reference only the manifests of scores and
weight movements are there (manifest_table.py): the chain ends at the inputs that they name.
"""

from __future__ import annotations

import json
import os
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from resurgence.config.model_path import ModelPath
from resurgence.provenance.manifest import MANIFEST, digest_of, read_manifest, verify
from resurgence.provenance.manifest_table import TABLE, unpack_manifests
from resurgence.provenance.runs import device_of, run_of

SHORT = 12  # digits of a digest that are printed


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings."""
    if isinstance(value, Mapping) and value:
        for key in value:
            yield from leaves(value[key], f"{place}.{key}" if place else str(key))
    else:
        yield place, value


def row_of(file: Path, number: int) -> dict[str, Any]:
    """A row of a table or image set, the first one being 1; without the image itself.

    Raises:
        ValueError: the file has no such row.
    """
    import pandas as pd

    if file.suffix == ".parquet":
        import pyarrow.parquet as parquet

        names = [name for name in parquet.read_schema(file).names if name != "image"]
        table = pd.read_parquet(file, columns=names)
    else:
        table = pd.read_csv(file, keep_default_na=False, dtype=str)
    if not 1 <= number <= len(table):
        raise ValueError(f"--row {number}: {file} has rows 1 to {len(table)}")
    return {str(name): value for name, value in table.iloc[number - 1].items()}


def models_of(row: Mapping[str, str], controls: list[str]) -> list[str]:
    """The models behind a row of a table, as in paths; the row of a resurgence has three of them.

    Raises:
        ValueError: the table has no such row, because it holds several seeds together.
    """
    if "erase_seed" not in row:
        raise ValueError("this table holds several models in a row; take a row of cells.csv or resurgence.csv")

    model = ModelPath.of_columns(row)
    shown = [path.base if path.steps[-1].method in controls else path for path in model.prefixes()]
    return [str(path) for path in ([model.base, *shown][-1:] if "state" in row else [*reversed(shown), model.base])]


def folders_behind(file: Path, number: int | None, results: Path) -> list[Path]:
    """The artefacts that a file is, belongs to, or has a row of.

    Args:
        results: the results tree with the scores behind a table.

    Raises:
        ValueError: no artefact is behind it, or a table is given without a row.
    """
    holder = next((p for p in (file, *file.parents) if (p / MANIFEST).is_file()), None)
    if holder is not None:
        return [holder]
    record = file.parent / "made.json"
    if file.suffix != ".csv" or not record.is_file():
        raise ValueError(f"{file} belongs to no artefact; give a table, an artefact's folder, or a file in one")
    if number is None:
        raise ValueError(f"{file} is a table; say which row with --row, the first one being 1")
    block, row = read_manifest(record)["parameters"], row_of(file, number)
    scores = results / "scores" / block["base"]
    return [scores / model / "scores" for model in models_of(row, block.get("controls", []))]


class Chain:
    """Walks from artefacts to what they were made from, and collects the files at the end of the chain.

    Args:
        root: the folder from which files are named. unpacked: the folder with the manifests of a reference, if any.
    """

    def __init__(self, root: Path, unpacked: Path | None = None) -> None:
        self.root, self.seen, self.files = root, set[Path](), dict[str, str]()
        self.artefacts, self.is_packed = unpacked or root, unpacked is not None

    def walk(self, folder: Path, depth: int = 0) -> Iterator[str]:
        """The lines of an artefact and of what it was made from."""
        pad, place = "  " * depth, folder.relative_to(self.artefacts)
        if place in self.seen:
            yield f"{pad}{place} (above)"
            return
        self.seen.add(place)
        manifest = read_manifest(folder)
        problems = [] if self.is_packed else verify(folder)
        state = f"CHANGED: {problems[0]}" if problems else "packed" if self.is_packed else "as it was written"
        yield f"{pad}{place}: {manifest['kind']}, manifest {digest_of(folder)[:SHORT]}, {state}"
        yield from (f"{pad}  | {line}" for line in self.facts(place, manifest))
        for name, digest in manifest["inputs"].items():
            if Path(name).name != MANIFEST:
                self.files[name] = digest
                continue
            above = (self.artefacts / name).parent
            if not (above / MANIFEST).is_file():
                yield f"{pad}  {name}: MISSING, was {digest[:SHORT]}"
                continue
            if digest_of(above) != digest:
                yield f"{pad}  {name}: ANOTHER than the one read, which was {digest[:SHORT]}"
            yield from self.walk(above, depth + 1)

    def facts(self, place: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
        """Settings, seeds, modules and run of an artefact."""
        for key, value in leaves(manifest["parameters"]):
            yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
        yield from (f"seed: {name} {value}" for name, value in manifest["seeds"].items())
        if manifest["format"] == 1:
            sources = (f"{n.removeprefix('resurgence/')} {digest[:8]}" for n, digest in manifest["sources"].items())
            yield f"sources: {', '.join(sources)}"
        run = run_of(place, self.artefacts)
        if not run:
            yield "run: not known; `make adopt` restores it from the record"
            return
        dirty = " with changes that are not committed" if run.get("dirty") else ""
        yield f"code: version {run.get('code') or 'not known'}, commit {run.get('commit', 'not known')}{dirty}"
        versions = " ".join(f"{name} {version}" for name, version in run.get("versions", {}).items())
        yield f"run: {run['seconds']} s on {device_of(run)}, {run.get('host', 'unknown host')}; {versions}"

    def ends(self) -> Iterator[str]:
        """The files that no artefact holds, and whether they are still the same."""
        for name, digest in sorted(self.files.items()):
            path = self.root / name
            state = "MISSING" if not path.exists() else "" if digest_of(path) == digest else "CHANGED"
            yield f"  {name} {digest[:SHORT]} {state}".rstrip()


def dvc_entries(root: Path, files: list[str]) -> Iterator[str]:
    """What DVC's lock files say of the folders that hold these files, and of what those were made from."""
    folders = sorted({parent for name in files for parent in Path(name).parents})
    for lock in (root / folder / "dvc.lock" for folder in folders if (root / folder / "dvc.lock").is_file()):
        declared, locked = (yaml.safe_load(file.read_text("utf-8")) for file in (lock.with_name("dvc.yaml"), lock))
        outs: dict[Path, tuple[str, str]] = {}
        for stage, entry in locked.get("stages", {}).items():
            place = lock.parent / declared["stages"][stage].get("wdir", ".")
            paths = {os.path.relpath(place / out["path"], root): out["md5"] for out in entry["outs"]}
            outs |= {Path(path): (stage, md5) for path, md5 in paths.items()}
        if any(folder in outs for folder in folders):
            source = lock.relative_to(root)
            yield from (f"  {out}: md5 {md5}, stage {stage} of {source}" for out, (stage, md5) in sorted(outs.items()))


def world_of(root: Path) -> Iterator[str]:
    """The seeds of the trainings that made the world, and the packages of the drawings."""
    config = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    file = Path(config.get("world", "config/world.yaml"))
    yield f"The world behind them, {file}:"
    for part, settings in yaml.safe_load((root / file).read_text(encoding="utf-8")).items():
        if part == "packages":
            yield from (f"  drawings: {name} {version}" for name, version in settings.items())
        elif isinstance(settings, Mapping) and "seed" in settings:
            steps = f", {settings['steps']} steps" if "steps" in settings else ""
            yield f"  {part}: seed {settings['seed']}{steps}"


def below(root: Path, file: Path) -> Path:
    """The path of a file below the folder of a study, of which results/ may be a link to another disk.

    Raises:
        ValueError: the file is not in the study.
    """
    path, real = Path(os.path.normpath(file)), Path(os.path.realpath(file))
    disk = Path(os.path.realpath(root / "results"))
    if path.is_relative_to(root):
        return path
    if real.is_relative_to(root):
        return real
    if real.is_relative_to(disk):
        return root / "results" / real.relative_to(disk)
    raise ValueError(f"{file} is not below {root}; run the command in the folder of the study that wrote it")


def provenance(file: Path, number: int | None, root: Path = Path()) -> Iterator[str]:
    """All lines."""
    root = root.resolve()
    file = below(root, root / file)
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing; run the study, or `dvc pull`")
    if number is not None and file.is_file():
        values = ", ".join(f"{key} {value}" for key, value in row_of(file, number).items() if value != "")
        yield f"{file.relative_to(root)}, row {number}: {values}"
    results = file.parents[1]
    record = results / "made.json"
    held = read_manifest(record) if record.is_file() else {}
    is_packed = held.get("kind") == "reference" and held["parameters"].get("models") != 0
    if is_packed and not (results / "scores" / TABLE).is_file():
        pull = results.parent / "dvc.yaml"
        raise FileNotFoundError(f"{results / 'scores' / TABLE} is missing; run `dvc pull {pull.relative_to(root)}`")
    with tempfile.TemporaryDirectory() as place:
        unpacked = Path(place).resolve() if (results / "scores" / TABLE).is_file() else None
        if unpacked:
            unpack_manifests(results / "scores" / TABLE, unpacked / "results")
        chain = Chain(root, unpacked)
        for folder in folders_behind(file, number, unpacked / "results" if unpacked else results):
            yield from chain.walk(folder)
    yield "Files at the end of the chain:"
    yield from chain.ends()
    yield from dvc_entries(root, list(chain.files))
    yield from world_of(root)


def provenance_arguments(parser: ArgumentParser) -> None:
    """Arguments of `resurgence provenance`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a table, an artefact's folder, or a file in one")
    parser.add_argument("--row", type=int, metavar="N", help="row of a table or image set, the first one being 1")


def run(args: Namespace) -> None:
    """Print where a result comes from."""
    print("\n".join(provenance(args.file, args.row)))
