"""The command audit: probe a released model, and judge whether what it erased can come back.

Writes a task and a study into --out and runs the ordinary graph there, so an audit that was interrupted goes on when
the command is given again, and `snakemake --snakefile CHECKOUT/Snakefile --profile ... -- results/audit/manifest.json`
in that folder runs it on a cluster. Exit codes: 0 pass, 2 fail, 3 inconclusive, 1 error or wrong usage.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from resurgence.cli.audit_hub import OtherAudit
from resurgence.cli.audit_pairs import too_few_pairs
from resurgence.cli.audit_request import check_numbers, checked, make_request
from resurgence.cli.audit_study import study, tasks
from resurgence.config.fields import ConfigError, read_yaml
from resurgence.config.load import load_study
from resurgence.config.schema import WithoutAliases
from resurgence.config.scorers import scorer_class
from resurgence.config.study import Study
from resurgence.files import CHECKOUT, write_text
from resurgence.provenance.manifest import MANIFEST, RUN
from resurgence.workflow import resume
from resurgence.workflow.plan import plan, plan_arguments
from resurgence.workflow.weights import LACKING, Weights, examine

VERDICT = Path("results/audit/verdict.json")
TARGET = f"results/audit/{MANIFEST}"
CARD = "card.html"
RECORD = Path("data/resurgence-audit")  # of Every Eval Ever, see figures/card
STUDY = "params.yaml"
SCORER_FILES = {
    "clip": ("open_clip_config.json", "open_clip_model.safetensors"),
    "recogniser": ("config.json", "model.safetensors"),
    "celebrity": ("config.json", "labels.txt", "model.safetensors"),
}
"""Files in the folder of a scorer."""


def run(args: Namespace) -> int:
    """Write the study, run it, and return the exit code of the verdict."""
    from resurgence.analysis.audit.result import EXIT, read_audit

    out: Path = args.out
    with no_earlier_card(out, args.plan):
        study = write_study(args, out)
        check_scorers(study, out)
    for line in too_few_pairs(study, args.criteria):
        print(f"resurgence audit: {line}", file=sys.stdout if args.plan else sys.stderr)
    if args.plan:
        return snakemake_plan(out, args.cores)
    remove_card(out)  # an error must not leave the verdict of an earlier run
    snakemake(out, args.cores)
    audit = read_audit(out / VERDICT)
    copy_card(out)
    print(f"{audit.verdict}: {audit.sentence}\n{out}/card.html")
    return EXIT[audit.verdict]


@contextlib.contextmanager
def no_earlier_card(out: Path, plan: bool) -> Iterator[None]:
    """Remove the card of an earlier run where the block raises an exception: it must not stand for a run that failed.
    It stays where nothing was to be run, and where the folder is of another audit, which is refused."""
    there, kept = out / CARD, (out / VERDICT).parent
    had_card = there.is_file()
    try:
        yield
    except OtherAudit:
        raise
    except BaseException:
        if not plan and (kept / CARD).is_file() and is_audit(out):
            remove_card(out)
        raise
    finally:
        if had_card and not there.is_file():
            print(
                f"resurgence audit: removed the card of an earlier run from {out}; {kept} has it still", file=sys.stderr
            )


def is_audit(out: Path) -> bool:
    """Whether a folder holds an audit."""
    try:
        return bool(earlier(out))
    except (OSError, ValueError):
        return False


def remove_card(out: Path) -> None:
    """Remove the copies that `copy_card` made, as far as results/audit still has them."""
    if ((out / VERDICT).parent / RECORD).is_dir():
        shutil.rmtree(out / RECORD, ignore_errors=True)
    for file in (out / VERDICT).parent.glob("*.*"):
        if file.name not in (MANIFEST, RUN):
            (out / file.name).unlink(missing_ok=True)


def remove_other_card(out: Path) -> None:
    """Remove the card of other settings.

    Raises:
        ConfigError: results/audit has it no longer, so that it would be lost.
    """
    if not (out / CARD).is_file():
        return
    if not ((out / VERDICT).parent / CARD).is_file():
        remedy = (
            "is the card of an audit with other settings, whose results are gone; move it away, or name another --out"
        )
        raise ConfigError("--out", str(out / CARD), remedy)
    remove_card(out)


def copy_card(out: Path) -> None:
    """Copy the card and its documents to the top of the folder, without the record of an earlier result."""
    shutil.rmtree(out / RECORD, ignore_errors=True)
    others = shutil.ignore_patterns(MANIFEST, RUN)
    shutil.copytree((out / VERDICT).parent, out, ignore=others, dirs_exist_ok=True)


def write_study(args: Namespace, out: Path) -> Study:
    """Write inputs, tasks and params.yaml, where they are not there as they would be written, and check the study. The
    copy of a card of other settings is removed.

    Raises:
        ConfigError, FileNotFoundError, ValueError: what is wrong with the command line, before anything is computed, or
            a card of other settings would be lost; the folder then is as it was.
    """
    check_numbers(args)
    before = earlier(out)
    asked = checked(args, before.get("revisions") or {})
    check_same(before, asked.checkpoint.hub or asked.checkpoint.name, asked.checkpoint.commit, out)
    with unchanged_on_error(out):
        request = make_request(args, asked, out)
        files = {f"tasks/{name}.yaml": values for name, values in tasks(request).items()}
        files[STUDY] = study(request)
        texts = {name: yaml.dump(values, Dumper=WithoutAliases, sort_keys=False, width=120)
                 for name, values in files.items()}  # fmt: skip
        changed = {name: text for name, text in texts.items()
                   if not (out / name).is_file() or (out / name).read_text(encoding="utf-8") != text}  # fmt: skip
        if changed:
            remove_other_card(out)  # first, so that after a kill no card is of other settings than the study
        for name, text in changed.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(out / name, text)
        return load_study([out / STUDY], out)


def earlier(out: Path) -> dict[str, Any]:
    """The block `audit` of the study in a folder; empty without one.

    Raises:
        ConfigError: it is no folder, or holds a study that no audit wrote, or other files than an audit's.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError("--out", str(out), "is a file; name a folder")
    if not (out / STUDY).is_file():
        written = ("inputs", "tasks")  # by an audit that was killed before it wrote its study
        there = sorted(path.name for path in out.glob("*") if path.name not in written and path.name[0] != ".")
        if there:
            raise ConfigError("--out", str(out), f"holds {there[0]}, and no audit; name a new folder")
        return {}
    if not isinstance(audit := read_yaml(out / STUDY).get("audit"), dict):
        raise ConfigError("--out", str(out), f"its {STUDY} is of another study; name another folder")
    return audit


def check_same(before: dict[str, Any], checkpoint: str, commit: str | None, out: Path) -> None:
    """Raise OtherAudit where a folder holds the audit of another model of the hub; links say it of files."""
    of_hub = commit is not None or before.get("revision") is not None
    if before and of_hub and (before.get("checkpoint"), before.get("revision")) != (checkpoint, commit):
        raise OtherAudit("checkpoint", checkpoint, f"{out} is of another audit, of {before.get('checkpoint')}; name "
                         "another --out")  # fmt: skip


@contextlib.contextmanager
def unchanged_on_error(out: Path) -> Iterator[None]:
    """Take back what was written into a folder where the block raises an exception."""

    def written() -> list[Path]:
        return [file for place in (STUDY, "inputs/*", "tasks/*") for file in out.glob(place)]

    existed, had_card = out.exists(), (out / CARD).is_file()
    before = {file: file.read_bytes() if file.suffix == ".yaml" else b"" for file in written()}
    try:
        yield
    except BaseException:
        for file in written():
            if file not in before:
                file.unlink()
            elif file.suffix == ".yaml":
                file.write_bytes(before[file])
        if not existed:
            shutil.rmtree(out, ignore_errors=True)
        elif had_card and not (out / CARD).is_file():
            copy_card(out)
        raise


def check_scorers(study: Study, out: Path) -> None:
    """Raise FileNotFoundError for weights that are not there, of a scorer with the option that names others, and for
    a package that a scorer imports and that is not installed."""
    with contextlib.chdir(out):
        for need, state, message in examine(study):
            if state in LACKING:
                name = need.key.split(".")[1]
                if isinstance(need, Weights) and name in study.scorers:
                    raise FileNotFoundError(f"{message}; or name others by --scorer {name} path=...")
                raise FileNotFoundError(message)
    for name, settings in study.scorers.items():
        for file in SCORER_FILES.get(name, ()) if "path" in settings else ():
            if not (place := out / settings["path"] / file).is_file():
                remedy = f"holds no {file}; {scorer_class(name).fetch}"
                raise ConfigError(f"--scorer {name} path", str(place.parent.resolve()), remedy)


def snakemake(out: Path, cores: int, targets: Sequence[str] = (TARGET,)) -> None:
    """Run the graph in the folder of a study, also after a run that was killed; its progress goes to stderr.

    Raises:
        ConfigError: a job fails; names the folder of the logs.
        OSError: another run goes on in the folder, or something of an earlier one does not end.
    """
    options = ["--snakefile", str(CHECKOUT / "Snakefile"), "--cores", str(cores)]
    resume.claim(out)
    try:
        resume.end_all(out)
        resume.unlock(options, out)
    finally:
        resume.release()
    command = [sys.executable, "-m", "snakemake", *options, "--rerun-incomplete", "--quiet", "progress", "--", *targets]
    ending = resume.end_with_parent
    done = subprocess.run(command, cwd=out, stdout=sys.stderr.fileno(), check=False, preexec_fn=ending)
    if done.returncode:
        raise ConfigError("--out", str(out), f"the audit stopped; the reason is above and in {out}/logs; give the same "
                          "command again to go on")  # fmt: skip


def snakemake_plan(out: Path, cores: int) -> int:
    """Say what the audit would compute."""
    parser = ArgumentParser()
    plan_arguments(parser)
    os.chdir(out)
    plan(parser.parse_args(["--cores", str(cores), "--target", TARGET]))
    return 0
