"""Make the tables and experiments of a reference run again from its stored scores, after a change of the statistics.

    python tools/reference_again.py reference/miniature-full params.yaml studies/miniature-full.yaml
    python docs/results.py

The settings of the experiments are those of the study as it is now, those of the tables stay; inputs and scores remain,
and so do the tables' rows of metrics whose features a reference leaves out. Grids, lists of members, and experiments of
the Fréchet distance, whose features a reference leaves out, stay as they are but for the verdicts of claims about it,
and what has not run stays out. An experiment that shows settings of its erasers stays as it is where the study has
others now. `make verify` checks the result.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from resurgence.analysis.claims import claims_table, have_floor, without_floors
from resurgence.analysis.read import read_table
from resurgence.analysis.score_sets import KEYS
from resurgence.analysis.tables import FILES, write_pages
from resurgence.config.load import load_study
from resurgence.files import plain, read_text, sha256, write_json, write_text
from resurgence.provenance.manifest import read_manifest
from resurgence.stages import experiment, results
from resurgence.stages.job import Job
from resurgence.stages.remake import follows_from_scores, lost_metrics, remade_tables, stored_scores
from resurgence.workflow import experiment_settings, report_settings


def replace(made: Path, new: Path, settings: dict[str, Any]) -> None:
    """Copy the files that a job wrote beside `new`, and name them and its settings in the record `made`; files of the
    record that it no longer writes are removed."""
    record, files = read_manifest(made), list(read_manifest(new)["files"])
    for name in files:
        shutil.copyfile(new.parent / name, made.parent / name)
    digests = {name: sha256(made.parent / name) for name in files}
    write_json(made, record | {"parameters": settings, "files": digests})
    for name in record["files"].keys() - digests.keys():
        (made.parent / name).unlink(missing_ok=True)


def of_other_models(made: Path, settings: dict[str, Any]) -> bool:
    """Whether an experiment shows settings of its erasers, and the study has others now than its models were made
    with."""
    record = read_manifest(made)["parameters"]
    return any(record.get(key) != plain(settings.get(key)) for key in ("x", "settings"))


def open_floors(made: Path) -> None:
    """Open the stored claims of an experiment that are about a metric with a floor, in its table and on its page."""
    name, record = made.parent.name, read_manifest(made)
    file, text = made.parent / f"{name}_claims.csv", made.parent / f"{name}.md"
    floors = have_floor(record["parameters"])
    if not file.is_file() or not any(floors):
        return
    claims = pd.read_csv(file)
    claims = without_floors(claims if "differences" in claims else claims.assign(differences=""), floors)
    table = claims_table(claims, record["parameters"].get("claims_by", "paper"))
    head = re.escape(table.partition("|")[2].partition("|")[0])
    write_text(file, claims.to_csv(index=False, lineterminator="\n"))
    write_text(text, re.sub(rf"^\|{head}\|[^\n]*(\n\|[^\n]*)*", lambda _: table, read_text(text), count=1, flags=re.M))
    write_json(made, record | {"files": record["files"] | {each.name: sha256(each) for each in (file, text)}})


def with_rows_of(stored: Path, remade: Path, lost: tuple[str, ...] | None) -> None:
    """Write the rows of a remade table over those of the stored one; rows of lost metrics stay in their places.

    Raises:
        ValueError: the tables have other rows than each other.
    """
    old, new = (pd.read_csv(file, dtype=str, keep_default_na=False) for file in (stored, remade))
    kept = old["metric"].str.startswith(lost) if lost and "metric" in old else pd.Series(False, old.index)
    keys = [key for key in (*KEYS, "state", "step", "role", "metric") if key in old]
    if list(old) != list(new) or not old.loc[~kept, keys].reset_index(drop=True).equals(new[keys]):
        raise ValueError(f"{stored} has other rows than the stored scores give; archive the study again")
    old[~kept] = new.to_numpy()
    write_text(stored, old.to_csv(index=False, lineterminator="\n"))


def tables(root: Path) -> None:
    """Make the tables of a reference again, if it has any."""
    made = root / "tables" / "made.json"
    if not made.is_file():  # of a study that has run in part
        return
    with tempfile.TemporaryDirectory() as folder:
        record = remade_tables(root, Path(folder))
        files = [name for name in FILES if name.endswith(".csv")]
        for name in files:
            with_rows_of(made.parent / name, Path(folder) / name, lost_metrics(root))
    read, settings = {Path(name).stem: read_table(made.parent / name) for name in files}, record["parameters"]
    notes = (settings.get(key) for key in ("makers", "changed_objectives"))
    write_pages(made.parent, read, settings["statistics"]["level"], *notes)
    write_json(made, record | {"files": {name: sha256(made.parent / name) for name in record["files"]}})


def main(reference: Path, configuration: list[Path]) -> None:
    """Make the tables, the experiments and the page of all of them again, in place."""
    study, root = load_study(configuration), (reference / "results").resolve()
    tables(root)
    stored = [name for name in study.experiments if (root / "experiments" / name / "made.json").is_file()]
    wanted = {name: experiment_settings.experiment(study, name) for name in stored}
    lost = lost_metrics(root)
    with stored_scores(root), tempfile.TemporaryDirectory() as folder:
        for name, settings in wanted.items():
            made = root / "experiments" / name / "made.json"
            if of_other_models(made, settings):
                print(f"{name} stays as it is: its models have other settings than the study has now", flush=True)
            elif follows_from_scores(settings, lost):
                new = Path(folder) / name / "made.json"
                experiment.make(Job(settings, new, {}, "cpu"))
                replace(made, new, settings)
                print(name, flush=True)
            else:
                open_floors(made)
        if not (root / "experiments" / "made.json").is_file():  # of a study that has run in part
            return
        pages = Path(folder) / "experiments"
        shutil.copytree(root / "experiments", pages)
        settings = report_settings.results(study)
        results.make(Job(settings, pages / "made.json", {}, "cpu"))
        replace(root / "experiments" / "made.json", pages / "made.json", settings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path, help="folder of the reference")
    parser.add_argument("study", type=Path, nargs="+", help="params.yaml, and the studies over it")
    args = parser.parse_args()
    main(args.reference, args.study)
