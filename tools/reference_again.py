"""Make the tables and experiments of a reference run again from its stored scores, after a change of the statistics.

    python tools/reference_again.py reference/miniature-full params.yaml studies/miniature-full.yaml
    python docs/results.py

`--add NAME` makes an experiment that has not run, of models whose scores are stored (a claim that came up later).

The settings of the experiments are those of the study as it is now, those of the tables stay; inputs and scores remain,
and so do the tables' rows of metrics whose features a reference leaves out. Grids, lists of members, and experiments of
the Fréchet distance, whose features a reference leaves out, stay as they are but for the verdicts of claims about it,
and what has not run stays out. An experiment that shows settings of its erasers stays as it is where the study has
others now. `make verify` checks the result.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from resurgence.analysis.cells import display_table
from resurgence.analysis.claims import claims_table, have_floor, without_floors
from resurgence.analysis.headline import changed_note, markdown_table
from resurgence.analysis.metric_tables import wide
from resurgence.analysis.read import read_table
from resurgence.analysis.score_sets import KEYS
from resurgence.analysis.scorer_checks import checks_page
from resurgence.analysis.tables import FILES, write_pages
from resurgence.config.load import load_study
from resurgence.files import plain, read_text, sha256, write_json, write_text
from resurgence.provenance.manifest import MANIFEST, read_manifest
from resurgence.provenance.manifest_table import read_manifests
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


def claims_again(made: Path, settings: dict[str, Any] | None = None) -> None:
    """Write the claims of an experiment that stays again, in its table and on its page: open where they are about a
    metric with a floor, and beside the settings in which their sides differ by the study as it is now."""
    name, record = made.parent.name, read_manifest(made)
    file, text, parameters = made.parent / f"{name}_claims.csv", made.parent / f"{name}.md", dict(record["parameters"])
    if not file.is_file():
        return
    claims = pd.read_csv(file)
    claims = claims if "differences" in claims else claims.assign(differences="")
    now = plain(settings or {})
    if now.get("claims") == parameters["claims"] and now["differences"] != parameters.get("differences"):
        parameters["differences"] = now["differences"]
        claims["differences"] = [text or None for text in now["differences"]]
    claims = without_floors(claims, have_floor(parameters))
    table = claims_table(claims, parameters.get("claims_by", "paper"))
    head = re.escape(table.partition("|")[2].partition("|")[0])
    write_text(file, claims.to_csv(index=False, lineterminator="\n"))
    write_text(text, re.sub(rf"^\|{head}\|[^\n]*(\n\|[^\n]*)*", lambda _: table, read_text(text), count=1, flags=re.M))
    files = record["files"] | {each.name: sha256(each) for each in (file, text)}
    write_json(made, record | {"parameters": parameters, "files": files})


def marked_tables(
    numbers: pd.DataFrame, page: Callable[..., pd.DataFrame], checked: pd.DataFrame | None, marks: dict[str, str]
) -> Iterator[str]:
    """The tables of an experiment's page, with the note of their marks."""
    yield "\n\n".join(filter(None, [markdown_table(page(numbers, marks)), changed_note(marks)]))
    if checked is not None:
        yield markdown_table(checks_page(checked, marks))


def mark_again(made: Path, settings: dict[str, Any]) -> None:
    """Mark erasers on the page of an experiment that stays by what is another objective now, and record that.

    Raises:
        ValueError: the page has no table of the stored numbers.
    """
    name, record = made.parent.name, read_manifest(made)
    before, now = (of.get("changed_objectives", {}) for of in (record["parameters"], plain(settings)))
    numbers, file = read_table(made.parent / f"{name}.csv"), made.parent / f"{name}.md"
    if before == now or "resurgence_low" not in numbers:
        return
    page, text = wide if settings["kind"] == "table" else display_table, read_text(file)
    beside = made.parent / f"{name}_checks.csv"
    checked = read_table(beside) if beside.is_file() else None
    for old, new in zip(*(marked_tables(numbers, page, checked, marks) for marks in (before, now)), strict=True):
        if text.count(old) != 1:
            raise ValueError(f"{file} has no table of the numbers beside it; run the experiment again")
        text = text.replace(old, new)
    write_text(file, text)
    changed = {key: value for key, value in record["parameters"].items() if key != "changed_objectives"}
    changed |= {"changed_objectives": now} if now else {}
    write_json(made, record | {"parameters": changed, "files": record["files"] | {file.name: sha256(file)}})


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


def add(root: Path, name: str, settings: dict[str, Any]) -> None:
    """Make an experiment from stored scores, beside those that have run.

    Raises:
        ValueError: it has run, it cannot be made from scores, or those of a model are not stored.
    """
    out, stored = root / "experiments" / name, {}
    for row in read_manifests(root / "scores" / "manifests.parquet"):
        stored[f"results/{row['folder']}/{MANIFEST}"] = hashlib.sha256(row["manifest"].encode()).hexdigest()
    wanted = [f"results/scores/{settings['base']}/{model}/scores/{MANIFEST}" for model in settings.get("models", ())]
    if out.exists() or not follows_from_scores(settings, lost_metrics(root)):
        raise ValueError(f"{name} has run, or is not made from stored scores; leave it out of --add")
    if lacking := [file for file in wanted if file not in stored]:
        raise ValueError(f"{name} needs {lacking[0]}, which is not stored; run it, and archive it with --add")
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder) / name / "made.json"
        experiment.make(Job(settings, new, {}, "cpu"))
        record = read_manifest(new) | {"inputs": {file: stored[file] for file in sorted(wanted)}}
        shutil.copytree(new.parent, out, ignore=lambda _, files: {f for f in files if f not in record["files"]})
        write_json(out / "made.json", record)
    print(f"{name}, added", flush=True)


def main(reference: Path, configuration: list[Path], added: Sequence[str] = ()) -> None:
    """Make the tables, the experiments and the page of all of them again, in place."""
    study, root = load_study(configuration), (reference / "results").resolve()
    with stored_scores(root):
        for name in added:
            add(root, name, experiment_settings.experiment(study, name))
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
                claims_again(made, settings)
                mark_again(made, settings)
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
    parser.add_argument("--add", action="append", default=[], metavar="NAME", help="an experiment that has not run")
    args = parser.parse_args()
    main(args.reference, args.study, args.add)
