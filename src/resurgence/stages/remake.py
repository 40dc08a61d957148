"""`resurgence verify`: hash a results tree again, and make its tables and experiments again from the stored scores."""

from __future__ import annotations

import contextlib
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path

from resurgence.analysis.packed_scores import PACKED, unpack
from resurgence.provenance.manifest import MANIFEST, read_manifest
from resurgence.provenance.verify import count, made_files, omitted, told
from resurgence.scorers import FEATURES

RESURGENCE_ENDS = ("resurgence_low", "resurgence_high")


def same(own: Path, made: Path, without: str | None = None) -> bool:
    """Whether a file is what was made again: the same bytes, or a table of the same numbers to a ten thousandth, since
    another processor may round otherwise.

    Args:
        without: rows of `own` whose metric begins so are not compared, because they cannot be made again.
    """
    if not own.is_file():
        return False
    if own.suffix != ".csv" or own.read_bytes() == made.read_bytes():
        return own.read_bytes() == made.read_bytes()
    import numpy as np
    import pandas as pd

    ours, theirs = (pd.read_csv(file, keep_default_na=False, dtype=str) for file in (own, made))
    if without and "metric" in ours:
        ours = ours[~ours["metric"].str.startswith(without)].reset_index(drop=True)
    if ours.shape != theirs.shape or list(ours.columns) != list(theirs.columns):
        return False
    other = [name for name in ours if not ours[name].equals(theirs[name])]
    numbers = [table[other].apply(pd.to_numeric, errors="coerce").to_numpy(float) for table in (ours, theirs)]
    words = [table[other].where(np.isnan(values), "") for table, values in zip((ours, theirs), numbers, strict=True)]
    return words[0].equals(words[1]) and np.allclose(*numbers, rtol=1e-4, atol=1e-6, equal_nan=True)


def otherwise(own: Path, made: Path, names: Iterable[str], without: str | None = None) -> Iterator[str]:
    """One sentence for each file that is another than the one made again.

    Figures and pages follow from the tables beside them, so they are compared only where these have the same bytes.
    """
    tables = [name for name in names if name.endswith(".csv")]
    exact = all((own / n).is_file() and (own / n).read_bytes() == (made / n).read_bytes() for n in tables)
    for name in names if exact else tables:
        if not same(own / name, made / name, without):
            yield f"{own / name} is not what the stored scores give"


def packed(root: Path) -> Path | None:
    """The folder of packed scores in a reference's results tree; None in a tree with a folder for each model.

    Raises:
        FileNotFoundError: a reference whose scores are not there.
    """
    made = root / "made.json"
    if not made.is_file() or read_manifest(made)["kind"] != "reference":
        return None
    if not (root / "scores" / PACKED).is_file():
        raise FileNotFoundError(f"{root / 'scores' / PACKED} is missing; run `dvc pull {root.parent / 'dvc.yaml'}`")
    return root / "scores"


@contextlib.contextmanager
def stored_scores(root: Path) -> Iterator[None]:
    """Work in a folder whose results/scores holds the scores of each model of the results tree `root`."""
    folder = packed(root)
    with tempfile.TemporaryDirectory() as place:
        if folder:
            unpack(folder, Path(place) / "results" / "scores")
        with contextlib.chdir(place if folder else root.parent):
            yield


def unmade(root: Path) -> str | None:
    """Which metrics the stored scores cannot give: the Fréchet distances, where the features are left out."""
    kept_out = read_manifest(root / "made.json")["parameters"]["left_out"] if packed(root) else omitted(root)
    return "frechet" if any(Path(name).name == FEATURES for name in kept_out) else None


def tables_again(root: Path) -> Iterator[str]:
    """Make the tables again from the stored scores, elsewhere; one sentence for each that comes out otherwise.

    Args:
        root: an absolute path.
    """
    from resurgence.analysis.score_folders import by_step, entry
    from resurgence.analysis.tables import FILES
    from resurgence.analysis.tables import run as make

    block = read_manifest(root / "tables" / "made.json")["parameters"]
    with tempfile.TemporaryDirectory() as place, stored_scores(root):
        make(by_step(entry(block, model) for model in block["models"]), Path(place), **block["statistics"])
        yield from otherwise(root / "tables", Path(place), FILES, unmade(root))


def experiments_again(root: Path) -> Iterator[str]:
    """Make the experiments again from the stored scores, elsewhere; one sentence for each file that is another then.

    Grids of images and lists of members are left out: they are not made from scores.

    Args:
        root: an absolute path.
    """
    from resurgence.stages.experiment import make
    from resurgence.stages.job import Job

    without = unmade(root)
    with stored_scores(root):
        for made in sorted((root / "experiments").glob("*/made.json")):
            manifest = read_manifest(made)
            block = manifest["parameters"]
            if block["kind"] in ("grid", "members") or (without and block["metric"].startswith(without)):
                continue
            with tempfile.TemporaryDirectory() as place:
                make(Job(block, Path(place) / made.name, {}, "cpu"))
                yield from otherwise(made.parent, Path(place), manifest["files"])


def differing(own: Path, reference: Path) -> Iterator[str]:
    """Compare two folders of tables: one sentence for each row that one of them lacks, or whose intervals do not meet.

    Runs on other hardware differ in rounding, and so in single images; numbers that agree within their intervals are
    the same result.
    """
    import pandas as pd

    from resurgence.analysis.estimates import KEYS
    from resurgence.analysis.read import read_table

    keys = [*KEYS, "state", "step", "role", "metric"]
    names = {"cells.csv": ("value", "low", "high"), "resurgence.csv": ("resurgence", *RESURGENCE_ENDS)}
    for file, (value, low, high) in names.items():
        tables = []
        for folder in (own, reference):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"{folder / file} is missing; give a folder with cells.csv and resurgence.csv")
            table = read_table(folder / file)
            tables.append(table.set_index([key for key in keys if key in table]).sort_index())
        ours, theirs = tables
        for table, other, place in ((theirs, ours, own), (ours, theirs, reference)):
            for index in table.index.difference(other.index):
                yield f"{place / file} has no row {told_row(table.index.names, index)}"
        for index in ours.index.intersection(theirs.index):
            a, b = ours.loc[index], theirs.loc[index]
            ends = [(row[low], row[high]) if pd.notna(row[low]) else (row[value], row[value]) for row in (a, b)]
            apart = max(ends[0][0], ends[1][0]) > min(ends[0][1], ends[1][1])
            if pd.isna(a[value]) != pd.isna(b[value]) or apart:
                shown = " against ".join(f"{row[value]:g} [{row[low]:g}, {row[high]:g}]" for row in (a, b))
                yield f"{file}, {told_row(ours.index.names, index)}: {shown}"


def told_row(names: Iterable[str], index: tuple) -> str:
    """The keys of a row that are not empty."""
    return ", ".join(f"{name} {value}" for name, value in zip(names, index, strict=True) if value not in ("", None))


def verify_arguments(parser: ArgumentParser) -> None:
    """Arguments of `resurgence verify`."""
    parser.add_argument("--tables", action="store_true", help="also make the tables again from the stored scores")
    parser.add_argument("--against", type=Path, metavar="TABLES", help="compare with a reference run's tables too")
    parser.add_argument("folder", type=Path, metavar="DIR", help="a results tree, or one artefact")


def run(args: Namespace) -> None:
    """Print what is wrong, or that nothing is.

    Raises:
        ValueError: when something is, or when there is nothing to verify.
    """
    if not any(args.folder.rglob(MANIFEST)) and not made_files(args.folder):
        raise FileNotFoundError(f"{args.folder} holds no {MANIFEST}; give a results tree or an artefact")
    packed(args.folder)  # scores that were not pulled are an error before anything is hashed
    problems = list(told(args.folder))
    if args.tables and not problems:
        problems = [*tables_again(args.folder.resolve()), *experiments_again(args.folder.resolve())]
    if args.against and not problems:
        problems = list(differing(args.folder / "tables", args.against))
    print("\n".join(problems), end="\n" if problems else "")
    if problems:
        what = "are not as they were written" if not args.against else "differ"
        raise ValueError(f"{len(problems)} files or rows of {args.folder} {what}")
    left = f"; {len(omitted(args.folder))} were left out of the archive" if omitted(args.folder) else ""
    if args.tables:
        but = f"; {unmade(args.folder)} cannot be, the features are left out" if unmade(args.folder) else ""
        print(f"{args.folder / 'tables'} and experiments: made again from the stored scores, the same numbers{but}")
    if args.against:
        print(f"{args.folder / 'tables'}: the intervals of every number meet those of {args.against}")
    print(f"{args.folder}: {count(args.folder)} files are as they were written, none is missing, none foreign{left}")
