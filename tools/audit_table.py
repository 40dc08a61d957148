"""Audit models whose answer is known, and count how often the verdict agrees with it.

    python tools/audit_table.py --out DIR --controls       first: the models that must be found, with their entries
    python tools/audit_table.py --out DIR --check          another scorer looks at 40 other images of each model
    python tools/audit_table.py --out DIR                  makes and audits all models that have no row yet
    python tools/audit_table.py --out DIR --only ship-uce  some of them
    python tools/audit_table.py --page | python docs/parts.py docs/audit.md "known models"       the rows as a page

Models are made and audited one after the other, in DIR. What has been found is kept in --rows, a file for each model
and level, with the digest of what decides it and the commit; `answers` beside it has the checks. A model with a row of
this digest is skipped, even without DIR, so another clone goes on with the rows alone. What is interrupted goes on
with the same command. A model that fails is named, and the others go on. The list, and what else decides, must be
committed, and stay as it is until this tool ends.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from audit_models import (
    MODELS,
    KnownModel,
    KnownModels,
    Place,
    erased_delta,
    make_model,
    models_of,
    read_models,
    resurgence,
    weights_digest,
)
from audit_rows import Check, Row, control_lines, file_name, finished, page, row_of

from resurgence.analysis.audit.result import EXIT, read_audit
from resurgence.cli.audit import VERDICT, snakemake, write_study
from resurgence.cli.audit_arguments import audit_arguments
from resurgence.config.audit import TRAINED, Level
from resurgence.config.fields import ConfigError, read_yaml
from resurgence.config.schema import WithoutAliases
from resurgence.files import CHECKOUT, write_json, write_text
from resurgence.workflow.snakemake import check_package

ROWS = CHECKOUT / "reference/audits/rows"
DECIDES = ("config", "src", "tools")  # folders of the checkout on which a row depends
NOT_FINITE = re.compile(r"\S+ has \d+ of \d+ values that are NaN or infinite")
METRIC, IMAGES, FIRST_SEED, TRAINING_SEED = "clip_accuracy", 40, 1_000_000, 1  # of a check


def commit_of(models: Path) -> str:
    """The last commit of the list and of all that decides a row, which are here as they are in it.

    Raises:
        ConfigError: one of them is not committed, or there is no git.
    """
    paths = ("--", str(models.resolve()), *DECIDES)
    if (changed := git("status", "--porcelain", *paths)) is None:
        raise ConfigError("--models", str(models), "is in no git checkout of this package; use one, so that a row has "
                          "a commit")  # fmt: skip
    if changed:
        files = ", ".join(line.split()[-1] for line in changed.splitlines())
        raise ConfigError("--models", str(models), f"{files} differs from the commit; commit it before the audits, so "
                          "that a row says what made it")  # fmt: skip
    return git("log", "-1", "--format=%H", *paths) or ""


def check_unchanged(models: Path, commit: str) -> None:
    """Raise ConfigError where what decides a row is no longer as it is in this commit: modules of it are loaded."""
    if (now := commit_of(models)) != commit:
        raise ConfigError("--models", str(models), f"the checkout went from {commit[:7]} to {now[:7]} while this tool "
                          "was at work; run it again, and leave the checkout as it is meanwhile")  # fmt: skip


def git(*words: str) -> str | None:
    """What git prints in the checkout of this package; None where it fails."""
    done = subprocess.run(["git", "-C", str(CHECKOUT), *words], capture_output=True, text=True, check=False)
    return None if done.returncode else done.stdout.strip()


def audit(place: Place, name: str, model: KnownModel, checkpoint: Path, level: Level, cores: int) -> int:
    """Run the audit of a model without its base, and return its exit code; 1 only where that is the answer."""
    codes = (*EXIT.values(), *((1,) if model.answer == "not a number" else ()))
    return resurgence("audit", checkpoint, "--erased", *model.erased, "--level", level, "--cores", cores, "--out",
                      place.folder(f"audits/{level}", name), codes=codes)  # fmt: skip


def finish(place: Place, name: str, model: KnownModel, level: Level, cores: int, commit: str) -> Row:
    """Make and audit a model; its row.

    Raises:
        ConfigError: a step fails.
    """
    checkpoint = make_model(place, name, model, erased_delta(place, name, model, cores))
    folder, digest = place.folder(f"audits/{level}", name), place.known.digest(model, level)
    weights = weights_digest(checkpoint)
    if audit(place, name, model, checkpoint, level, cores) in EXIT.values():
        return row_of(read_audit(folder / VERDICT), digest, commit, weights)
    logs = "".join(file.read_text(encoding="utf-8") for file in sorted((folder / "logs").rglob("*.log")))
    if (reason := NOT_FINITE.search(logs)) is None:
        raise ConfigError("resurgence", "audit", f"failed for another reason than NaN; see {folder}/logs")
    return Row(digest, commit, level, weights, None, "error", (reason[0],), False, None, "", ())


def check(place: Place, name: str, model: KnownModel, cores: int) -> Check:
    """Make a model and judge other images of it by another scorer, by the study of a short audit.

    Raises:
        ConfigError: a step fails.
    """
    checkpoint = make_model(place, name, model, erased_delta(place, name, model, cores))
    folder = place.folder("checks", name)
    check_study(folder, checkpoint, model)
    snakemake(folder, cores)
    probes = read_audit(folder / VERDICT).probes
    released = max((probe.erased for probe in probes if probe.kind == "released"), key=lambda shown: shown.value)
    updated = next(probe.erased for probe in probes if probe.kind in TRAINED)
    return Check(place.known.made(model), METRIC, released, updated)


def check_study(folder: Path, checkpoint: Path, model: KnownModel) -> None:
    """Write the study of a check: that of an audit by another scorer, with other seeds of images and training.

    Rounded weights are left out, as `check` reads the released model and the trained updates alone.
    """
    params, seeds = folder / "params.yaml", {"erase": [0], "finetune": [TRAINING_SEED]}
    if params.is_file() and read_yaml(params)["seeds"] == seeds:  # written last, so all of it is there
        return
    parser = argparse.ArgumentParser()
    audit_arguments(parser)
    words = [str(checkpoint), "--erased", *model.erased, "--metric", METRIC, "--pairs", str(IMAGES), "--retained-pairs",
             "1", "--out", str(folder)]  # fmt: skip
    write_study(parser.parse_args(words), folder)
    for file in folder.glob("tasks/*.yaml"):
        write_yaml(file, read_yaml(file) | {"first_seed": FIRST_SEED})
    study = read_yaml(params)
    probes = [probe for probe in study["audit"]["probes"] if probe["kind"] in ("released", *TRAINED)]
    erasers = {name: study["erasers"][name] for name in dict.fromkeys(probe["eraser"] for probe in probes)}
    write_yaml(params, study | {"seeds": seeds, "erasers": erasers, "audit": study["audit"] | {"probes": probes}})


def write_yaml(file: Path, values: Mapping[str, Any]) -> None:
    """Write a file of a study."""
    write_text(file, yaml.dump(dict(values), Dumper=WithoutAliases, sort_keys=False, width=120))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the models and audits")
    parser.add_argument("--rows", type=Path, default=ROWS, help="folder of the rows (default: %(default)s)")
    parser.add_argument("--models", type=Path, default=MODELS, help="default: %(default)s")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="models (default: all)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--controls", action="store_true", help="audit the controls, and print their entries")
    action.add_argument("--check", action="store_true", help="check the answers instead")
    action.add_argument("--page", action="store_true", help="print the list, the rows and the shares; nothing is run")
    parser.add_argument("--level", choices=("quick", "standard", "full"), default="quick")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    if args.out is None and not args.page:
        parser.error("--out is missing; name a folder for the models and audits")
    return args


def known_rows(args: argparse.Namespace, known: KnownModels, models: Mapping[str, KnownModel]) -> dict[str, Row]:
    """The rows of the models."""
    wanted = {name: known.digest(model, args.level) for name, model in models.items()}
    return finished(args.rows, Row, wanted, lambda row: row.digest, args.level)


def known_checks(args: argparse.Namespace, known: KnownModels) -> dict[str, Check]:
    """The checks of the answers."""
    wanted = {name: known.made(model) for name, model in known.models.items()}
    return finished(args.rows.with_name("answers"), Check, wanted, lambda each: each.made)


def run(args: argparse.Namespace, place: Place, todo: Mapping[str, KnownModel]) -> list[str]:
    """Audit or check models and write what was found; the names of those that failed.

    Raises:
        ConfigError: what decides a row is not committed, or changed before an audit.
    """
    commit, failed = commit_of(args.models), []
    folder = args.rows.with_name("answers") if args.check else args.rows
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, model) in enumerate(todo.items(), 1):
        check_unchanged(args.models, commit)
        print(f"{number} of {len(todo)}: {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            found: Row | Check = (check(place, name, model, args.cores) if args.check
                                  else finish(place, name, model, args.level, args.cores, commit))  # fmt: skip
            check_unchanged(args.models, commit)
            write_json(folder / file_name(name, None if args.check else args.level), asdict(found))
        except Exception as error:  # also of torch and safetensors: the others go on
            print(f"{name}: {told(error)}", file=sys.stderr, flush=True)
            failed.append(name)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return failed


def told(error: Exception) -> str:
    """Why a model failed: a message of this package, else what was raised and where."""
    if isinstance(error, (ConfigError, OSError)):
        return str(error)
    return "".join(traceback.format_exception(error)).rstrip()


def main() -> None:
    """Make, audit or check what has not been, or print what has.

    Raises:
        ConfigError: names the models that failed, after all others; or the package is that of another checkout, whose
            commit a row would have.
    """
    check_package(Path(__file__).parents[1])
    args = arguments()
    known, failed = read_models(args.models), list[str]()
    models = models_of(known, args.controls, args.only)
    if not args.page:
        done = known_checks(args, known) if args.check else known_rows(args, known, models)
        todo = {name: model for name, model in models.items() if name not in done and (model.counts or not args.check)}
        failed = run(args, Place(args.out.absolute(), known), todo)
    rows = known_rows(args, known, models)
    print(control_lines(rows, models) if args.controls else page(args.models, known, rows, known_checks(args, known)))
    if failed:
        raise ConfigError("models", ", ".join(failed), "failed; the reasons are above; run this tool again")


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"Error: {error}")
