"""`resurgence verify`: hash a results tree again, and remake its tables and experiments from the stored scores."""

from __future__ import annotations

import contextlib
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from resurgence.analysis.score_archive import PACKED, unpack
from resurgence.config.experiment import MEASURED
from resurgence.provenance.manifest import MANIFEST, read_manifest
from resurgence.provenance.verify import count, made_files, named, omitted, problems
from resurgence.scorers import FEATURES


def same(stored: Path, remade: Path, without: tuple[str, ...] | None = None) -> bool:
    """Whether two files have the same bytes, or are tables with the same numbers to a relative error of 1e-4, since
    another processor may round differently.

    Args:
        without: rows of `stored` whose metric begins with one of these are ignored, because they cannot be remade.
    """
    if stored.is_file() and stored.read_bytes() == remade.read_bytes():
        return True
    if not stored.is_file() or stored.suffix != ".csv":
        return False
    import pandas as pd

    table, expected = pd.read_csv(stored), pd.read_csv(remade)
    if without and "metric" in table:
        table = table[~table["metric"].str.startswith(without)].reset_index(drop=True)
    if without and "claim" in table:  # those that are left
        table = table[table["claim"].isin(expected["claim"])].reset_index(drop=True)
    try:
        pd.testing.assert_frame_equal(table, expected, check_dtype=False, check_exact=False, rtol=1e-4, atol=1e-6)
    except AssertionError:
        return False
    return True


def differing_files(
    folder: Path, remade: Path, names: Iterable[str], without: tuple[str, ...] | None = None
) -> Iterator[str]:
    """One sentence for each file that differs from the remade one.

    Figures and pages depend on the tables beside them, so they are compared only if these have the same bytes.
    """
    tables = [name for name in names if name.endswith(".csv")]
    exact = all((folder / n).is_file() and (folder / n).read_bytes() == (remade / n).read_bytes() for n in tables)
    for name in names if exact else tables:
        if not same(folder / name, remade / name, without):
            yield f"{folder / name} is not what the stored scores give"


def packed(root: Path) -> Path | None:
    """The folder of packed scores in a reference's results tree; None in a tree with a folder for each model, and in a
    reference without models.

    Raises:
        FileNotFoundError: a reference without its scores.
    """
    record = root / "made.json"
    if not record.is_file() or read_manifest(record)["kind"] != "reference":
        return None
    if not scored(root):
        return None
    if not (root / "scores" / PACKED).is_file():
        raise FileNotFoundError(f"{root / 'scores' / PACKED} is missing; run `dvc pull {root.parent / 'dvc.yaml'}`")
    return root / "scores"


def scored(root: Path) -> bool:
    """Whether a results tree is not a reference without models."""
    record = root / "made.json"
    return not record.is_file() or read_manifest(record)["parameters"].get("models") != 0


@contextlib.contextmanager
def stored_scores(root: Path) -> Iterator[None]:
    """Work in a folder whose results/scores has the scores of all models of the results tree `root`."""
    scores = packed(root)
    with tempfile.TemporaryDirectory() as folder:
        if scores:
            unpack(scores, Path(folder) / "results" / "scores")
        with contextlib.chdir(folder if scores else root.parent):
            yield


def lost_metrics(root: Path) -> tuple[str, ...] | None:
    """Prefixes of the metrics that need files which are left out: of the distances the features; else None."""
    left_out = read_manifest(root / "made.json")["parameters"]["left_out"] if packed(root) else omitted(root)
    return ("frechet", "kid") if any(Path(name).name == FEATURES for name in left_out) else None


def remade_tables(root: Path, out: Path) -> dict[str, Any]:
    """Write the tables of a results tree again from its stored scores, below `out`; their stored manifest.

    Args:
        root: an absolute path, with tables.
    """
    from resurgence.analysis.score_folders import by_step, entry
    from resurgence.analysis.tables import write_tables

    record = read_manifest(root / "tables" / "made.json")
    settings = record["parameters"]
    with stored_scores(root):
        entries = by_step(entry(settings, model) for model in settings["models"])
        notes = (settings.get(key) for key in ("makers", "changed_objectives"))
        write_tables(entries, out, settings["statistics"]["level"], None, *notes)
    return record


def tables_again(root: Path) -> Iterator[str]:
    """Remake the tables, if there are any, from the stored scores elsewhere; one sentence for each that differs.

    Args:
        root: an absolute path.
    """
    from resurgence.analysis.tables import FILES

    if not (root / "tables" / "made.json").is_file():  # of a study that has run in part
        return
    with tempfile.TemporaryDirectory() as folder:
        remade_tables(root, Path(folder))
        yield from differing_files(root / "tables", Path(folder), FILES, lost_metrics(root))


def follows_from_scores(settings: Mapping[str, Any], lost: tuple[str, ...] | None) -> bool:
    """Whether an experiment of these settings is computed from stored scores alone.

    Args:
        lost: prefixes of the metrics that need files which are left out.
    """
    shown = settings.get("metrics") or [settings["metric"]]
    return settings["kind"] in (*MEASURED, "tuning") and not (lost and any(name.startswith(lost) for name in shown))


def remaining(settings: dict[str, Any], without: tuple[str, ...] | None) -> dict[str, Any] | None:
    """The settings of an experiment without the metrics that cannot be remade and the claims about them; None: no more.

    Args:
        without: prefixes of these metrics.
    """
    shown = settings.get("metrics") or [settings["metric"]]
    left = [metric for metric in shown if not (without and metric.startswith(without))]
    if not left or len(left) == len(shown):
        return settings if left else None
    claims = [{"metric": shown[0]} | claim for claim in settings["claims"]]
    pairs = [(c, d) for c, d in zip(claims, settings["differences"], strict=True) if c["metric"] in left]
    changed = {"metrics": left, "claims": [c for c, _ in pairs], "differences": [d for _, d in pairs]}
    return settings | changed


def experiments_again(root: Path) -> Iterator[str]:
    """Remake the experiments from the stored scores in another folder; one sentence for each file that differs.

    Except grids of images, lists of members and words, which are not made from scores.

    Args:
        root: an absolute path.
    """
    from resurgence.stages.experiment import make
    from resurgence.stages.job import Job

    without = lost_metrics(root)
    with stored_scores(root):
        for record in sorted((root / "experiments").glob("*/made.json")):
            manifest = read_manifest(record)
            settings = remaining(manifest["parameters"], without)
            if settings is None or not follows_from_scores(settings, without):
                continue
            with tempfile.TemporaryDirectory() as folder:
                make(Job(settings, Path(folder) / record.name, {}, "cpu"))
                names, lost = manifest["files"], without if settings != manifest["parameters"] else None
                present = [name for name in names if not lost or (Path(folder) / name).is_file()]
                yield from differing_files(record.parent, Path(folder), present, lost)


def differing(new: Path, reference: Path) -> Iterator[str]:
    """Compare two folders of tables: one sentence for each row that one of them lacks, or whose intervals do not meet.

    Runs on other hardware differ in rounding, and so in single images; numbers that agree within their intervals are
    the same result.
    """
    import pandas as pd

    from resurgence.analysis.read import read_table
    from resurgence.analysis.score_sets import KEYS

    keys = [*KEYS, "state", "step", "role", "metric"]
    columns = {
        "cells.csv": ("value", "low", "high"),
        "resurgence.csv": ("resurgence", "resurgence_low", "resurgence_high"),
    }
    for file, (value, low, high) in columns.items():
        tables = []
        for folder in (new, reference):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"{folder / file} is missing; give a folder with cells.csv and resurgence.csv")
            table = read_table(folder / file)
            tables.append(table.set_index([key for key in keys if key in table]).sort_index())
        ours, theirs = tables
        for table, other, folder in ((theirs, ours, new), (ours, theirs, reference)):
            for index in table.index.difference(other.index):
                yield f"{folder / file} has no row {row_name(table.index.names, index)}"
        for index in ours.index.intersection(theirs.index):
            a, b = ours.loc[index], theirs.loc[index]
            ends = [(row[low], row[high]) if pd.notna(row[low]) else (row[value], row[value]) for row in (a, b)]
            apart = max(ends[0][0], ends[1][0]) > min(ends[0][1], ends[1][1])
            if pd.isna(a[value]) != pd.isna(b[value]) or apart:
                shown = " against ".join(f"{row[value]:g} [{row[low]:g}, {row[high]:g}]" for row in (a, b))
                yield f"{file}, {row_name(ours.index.names, index)}: {shown}"


def row_name(names: Iterable[str], index: tuple) -> str:
    """The keys of a row that are not empty."""
    return ", ".join(f"{name} {value}" for name, value in zip(names, index, strict=True) if value not in ("", None))


def verify_arguments(parser: ArgumentParser) -> None:
    """Arguments of `resurgence verify`."""
    parser.add_argument("--tables", action="store_true", help="also compute the tables again from the stored scores")
    parser.add_argument("--against", type=Path, metavar="TABLES", help="compare with a reference run's tables too")
    parser.add_argument("folder", type=Path, metavar="DIR", help="a results tree, or one artefact")


def run(args: Namespace) -> None:
    """Print the problems, or that there are none.

    Raises:
        ValueError: there are problems. FileNotFoundError: there is nothing to verify.
    """
    if not named(args.folder, MANIFEST) and not made_files(args.folder):
        raise FileNotFoundError(f"{args.folder} holds no {MANIFEST}; give a results tree or an artefact")
    packed(args.folder)  # scores that were not pulled are an error before anything is hashed
    errors = list(problems(args.folder))
    if args.tables and not errors:
        errors = [*tables_again(args.folder.resolve()), *experiments_again(args.folder.resolve())]
    if args.against and not errors:
        errors = list(differing(args.folder / "tables", args.against))
    if errors:
        print("\n".join(errors))
        verb = "differ" if args.against else "are not as they were written"
        raise ValueError(f"{len(errors)} files or rows of {args.folder} {verb}; run the study again, or `dvc checkout`")
    if args.tables and not scored(args.folder):
        print(f"{args.folder}: no model has scores there, so no table or experiment was made again")
    elif args.tables:
        metrics = lost_metrics(args.folder)
        but = f"; {' and '.join(metrics)} cannot be, the features are left out" if metrics else ""
        print(f"{args.folder / 'tables'} and experiments: made again from the stored scores, the same numbers{but}")
    if args.against:
        print(f"{args.folder / 'tables'}: the intervals of every number meet those of {args.against}")
    left = f"; {len(omitted(args.folder))} were left out of the archive" if omitted(args.folder) else ""
    print(f"{args.folder}: {count(args.folder)} files are as they were written, none is missing, none foreign{left}")
