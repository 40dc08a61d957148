"""The command audit: probe a released model, and judge whether what it erased can come back.

Writes a task and a study into --out and runs the ordinary graph there, so an audit that was interrupted goes on when
the command is given again, and `snakemake --snakefile CHECKOUT/Snakefile --profile ... -- results/audit/manifest.json`
in that folder runs it on a cluster. Exit codes: 0 pass, 2 fail, 3 inconclusive, 1 error or wrong usage.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from resurgence.cli.audit_inputs import (
    check_weights,
    implicit_captions,
    linked,
    pictures,
    retained_concepts,
    weights_digest,
)
from resurgence.cli.audit_study import PAIRS, RETAINED_PAIRS, SEEDS, Request, study, tasks
from resurgence.cli.key_values import settings
from resurgence.config.audit import Evaluator, Level
from resurgence.config.audit_bases import (
    AuditBase,
    base_of,
    benign_concepts,
    model_task,
    outside_concepts,
    read_criteria,
)
from resurgence.config.fields import ConfigError, at_least, read_yaml
from resurgence.config.load import load_study
from resurgence.config.schema import WithoutAliases
from resurgence.config.scorers import scorer_class
from resurgence.config.task import Kind, Task, make_task
from resurgence.files import CHECKOUT, write_text
from resurgence.provenance.manifest import MANIFEST, RUN
from resurgence.workflow import resume

VERDICT = Path("results/audit/verdict.json")
TARGET = f"results/audit/{MANIFEST}"
NEAREST = "reference_accuracy"  # metric of the scorer of --reference
RECORD = Path("data/resurgence-audit")  # of Every Eval Ever, see figures/card
STUDY = "params.yaml"


def audit_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `audit`."""
    add = parser.add_argument
    add("checkpoint", help="erased model: diffusers folder, single file or hub id; with --original also UNet tensors, "
        "a delta or a LoRA")  # fmt: skip
    add("--erased", nargs="+", required=True, metavar="CONCEPT", help="concepts that the model has lost")
    add("--mapping", metavar="WORD", help="what they became (default: of the shipped task, else their kind)")
    add("--kind", choices=get_args(Kind), help="of the concepts (default: of the shipped task that has them)")
    add("--retained", default="auto", metavar="FILE|auto",
        help="concepts that must stay, one a line (default: those of the shipped task)")  # fmt: skip
    add("--original", metavar="BASE", help="the model before erasing: folder, single file or hub id")
    add("--revision", help="commit of the checkpoint, where it is a hub id")
    add("--images", metavar="DIR", help="real pictures of the same domain with captions (docs/adding.md)")
    add("--outside-images", metavar="DIR", help="real pictures of another domain with captions")
    add("--lora", nargs="+", action="extend", default=[], metavar="FILE", help="LoRAs to merge, each a probe")
    add("--implicit", type=Path, metavar="FILE", help="captions that mean an erased concept without its name, one a "
        "line; of several concepts as CONCEPT: caption")  # fmt: skip
    add("--level", choices=get_args(Level), default="quick", help="default: quick")
    add("--criteria", type=Path, metavar="FILE", help="instead of config/audit/criteria.yaml")
    add("--scorer", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"),
        help="scorer by name with its settings, instead of the base's; may be given again")  # fmt: skip
    add("--reference", metavar="DIR", help="pictures of the concepts, for the scorer of the nearest centroid in CLIP's "
        "features: a folder for each concept to erase and to retain, and `others`")  # fmt: skip
    add("--metric", metavar="NAME", help="share of images with their concept, of a scorer (default: of the base)")
    add("--pairs", type=int, help="pairs of prompt and seed of a probe (default: 200, at full 300)")
    add("--retained-pairs", type=int, default=RETAINED_PAIRS, help="the same of the retained concepts (default: 180)")
    add("--training-seeds", type=int, metavar="N", help="of every update (default: 1, at standard and full 3)")
    add("--sampling", nargs="+", action="extend", metavar="KEY=VALUE", help="settings of the sampler")
    add("--update", nargs="+", action="extend", metavar="KEY=VALUE", help="settings of every training, e.g. steps=150")
    add("--sensitive", action="store_true", help="the card hides images until they are clicked")
    add("--organization", default="not stated", help="who runs the audit, for the card")
    add("--evaluator", choices=get_args(Evaluator), default="other",
        help="relationship to the model, for the card (default: other)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    add("--cores", type=int, default=os.cpu_count() or 1, help="jobs side by side (default: all cores)")
    add("--plan", action="store_true", help="only write the study and say what it would compute")
    add("--out", type=Path, required=True, metavar="DIR",
        help="folder of the audit; goes on with one of the same model")  # fmt: skip


def run(args: Namespace) -> int:
    """Write the study, run it, and return the exit code of the verdict."""
    from resurgence.analysis.audit.result import EXIT, read_audit

    at_least("--cores", args.cores, 1)
    if args.pairs is not None:
        at_least("--pairs", args.pairs, 1)
    at_least("--retained-pairs", args.retained_pairs, 1)
    if args.training_seeds is not None:
        at_least("--training-seeds", args.training_seeds, 1)
    out: Path = args.out
    write_study(args, out)
    if args.plan:
        return snakemake_plan(out, args.cores)
    remove_card(out)  # an error must not leave the verdict of an earlier run
    snakemake(out, args.cores)
    audit = read_audit(out / VERDICT)
    copy_card(out)
    print(f"{audit.verdict}: {audit.sentence}\n{out}/card.html")
    return EXIT[audit.verdict]


def remove_card(out: Path) -> None:
    """Remove the copies that `copy_card` made, as far as results/audit still has them."""
    shutil.rmtree(out / RECORD, ignore_errors=True)
    for file in (out / VERDICT).parent.glob("*.*"):
        if file.name not in (MANIFEST, RUN):
            (out / file.name).unlink(missing_ok=True)


def copy_card(out: Path) -> None:
    """Copy the card and its documents to the top of the folder, without the record of an earlier result."""
    shutil.rmtree(out / RECORD, ignore_errors=True)
    others = shutil.ignore_patterns(MANIFEST, RUN)
    shutil.copytree((out / VERDICT).parent, out, ignore=others, dirs_exist_ok=True)


def write_study(args: Namespace, out: Path) -> None:
    """Write inputs, tasks and params.yaml, where they are not there as they would be written, and check the study.

    Raises:
        ConfigError, FileNotFoundError, ValueError: what is wrong with the command line, before anything is computed.
    """
    check_folder(out)
    request = make_request(args, out)
    files = {f"tasks/{name}.yaml": values for name, values in tasks(request).items()}
    files[STUDY] = study(request)
    for name, values in files.items():
        text = yaml.dump(values, Dumper=WithoutAliases, sort_keys=False, width=120)
        if not (out / name).is_file() or (out / name).read_text(encoding="utf-8") != text:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(out / name, text)
    load_study([out / STUDY], out)


def check_folder(out: Path) -> None:
    """Raise ConfigError where a folder holds a study that no audit wrote."""
    if (out / STUDY).is_file() and "audit" not in read_yaml(out / STUDY):
        raise ConfigError("--out", str(out), f"its {STUDY} is of another study; name another folder")


def make_request(args: Namespace, out: Path) -> Request:
    """What is audited, from the command line."""
    whole = Path(args.checkpoint).is_dir() and (Path(args.checkpoint) / "model_index.json").is_file()
    if args.original is None and Path(args.checkpoint).is_dir() and not whole:
        raise ConfigError(
            "checkpoint", args.checkpoint, "is no whole pipeline; name the model it changes in --original"
        )
    criteria, base = read_criteria(args.criteria), base_of(Path(args.original or args.checkpoint))
    task = audited_task(args, base)
    check_weights(args)
    scorers = {name: scorer(out, name, pairs) for name, *pairs in args.scorer}
    if args.reference:
        pictures_of = linked(out, "reference-pictures", args.reference, "--reference")
        scorers["reference"] = {**base.scorers["clip"], "pictures": pictures_of}
    outside = outside_concepts(base, task.kind)
    model = linked(out, "checkpoint", args.checkpoint, "checkpoint", hub=True)
    original = linked(out, "original", args.original, "--original", hub=True) if args.original else None
    return Request(
        checkpoint=args.checkpoint, base=base, task=task, level=args.level, model=model, original=original,
        original_name=args.original, revision=args.revision, sha256=weights_digest(args.checkpoint),
        pictures=pictures(args, out, base, task, outside), outside=outside,
        loras=tuple(linked(out, f"lora-{n}", file, "--lora") for n, file in enumerate(args.lora, 1)),
        implicit=implicit_captions(args.implicit, task.erase), criteria=dataclasses.asdict(criteria),
        scorers=scorers or scorers_of(base, args.metric),
        metric=args.metric or (NEAREST if args.reference else base.metric),
        device=args.device, sensitive=args.sensitive, command=command_of(args),
        sampling=settings(args.sampling, "--sampling"), update=settings(args.update, "--update"),
        pairs=args.pairs or PAIRS[args.level], retained_pairs=args.retained_pairs,
        training_seeds=args.training_seeds or SEEDS[args.level],
        shipped=() if args.original or changed_probe(args) else base.controls(task),
        no_control="" if args.original else base.no_control(task, changed_probe(args)),
        organization=args.organization, evaluator=args.evaluator,
    )  # fmt: skip


def scorers_of(base: AuditBase, metric: str | None) -> dict[str, dict[str, Any]]:
    """The scorers of the base that give the metric, as the card shows no other; all where none does."""
    wanted = metric or base.metric
    giving = {name: values for name, values in base.scorers.items() if wanted in scorer_class(name).metrics}
    return giving or base.scorers


def changed_probe(args: Namespace) -> list[str]:
    """The options that make the probe another than that of the controls which were computed before."""
    values = {"--retained": args.retained != "auto", "--images": args.images, "--update": args.update,
              "--sampling": args.sampling, "--scorer": args.scorer, "--reference": args.reference,
              "--metric": args.metric}  # fmt: skip
    return [option for option, value in values.items() if value]  # what is retained is not among the pictures


def scorer(out: Path, name: str, pairs: list[str]) -> dict[str, Any]:
    """The settings of a scorer, with links to its files."""
    values = settings(pairs, f"--scorer {name}")
    files = {key: values[key] for key in ("path", "pictures", "reference") if isinstance(values.get(key), str)}
    links = {key: linked(out, f"{name}-{key}", value, f"--scorer {name} {key}") for key, value in files.items()}
    return values | links


def command_of(args: Namespace) -> str:
    """The command line that repeats an audit, without defaults and what changes no result."""
    words, parser = ["resurgence", "audit", str(args.checkpoint)], ArgumentParser()
    audit_arguments(parser)
    for name, value in vars(args).items():
        if name in ("command", "verbose", "checkpoint", "cores", "device", "plan") or value == parser.get_default(name):
            continue
        values = value if isinstance(value, list) else [value]
        for group in values if name == "scorer" else [values]:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else map(str, group))]
    return shlex.join(words)


def audited_task(args: Namespace, base: AuditBase) -> Task:
    """The audited concepts, completed by the shipped task that has them."""
    erased = tuple(args.erased)
    model = model_task(base, erased, args.kind)
    is_same = set(model.erase) == set(erased)
    retained = retained_concepts(args.retained, model, erased)
    mapping = args.mapping or (None if is_same else model.kind)
    return make_task({
        "name": folder_name(erased), "kind": model.kind, "erase": erased, "retain": retained,
        "mapping": model.mapping if mapping is None else dict.fromkeys(erased, mapping),
        "templates": model.templates, "seeds": {"erase": 1, "retain": 1, "synonym": 1},
        "synonyms": {concept: words for concept, words in model.synonyms.items() if concept in erased},
        "finetune": benign_concepts(base, model, (*erased, *retained)),
        "labels": model.labels if is_same and args.retained == "auto" else (),
    }, "--erased")  # fmt: skip


def folder_name(erased: Sequence[str]) -> str:
    """The erased concepts as the name of a folder."""
    first = re.sub(r"[^a-z0-9]+", "-", erased[0].lower()).strip("-") or "concept"
    return first if len(erased) == 1 else f"{first}-and-{len(erased) - 1}"


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
    done = subprocess.run(command, cwd=out, stdout=sys.stderr.fileno(), check=False)
    if done.returncode:
        raise ConfigError("--out", str(out), f"the audit stopped; the reason is above and in {out}/logs; give the same "
                          "command again to go on")  # fmt: skip


def snakemake_plan(out: Path, cores: int) -> int:
    """Say what the audit would compute."""
    from resurgence.cli.main import main

    os.chdir(out)
    return main(["plan", "--cores", str(cores), "--target", TARGET])
