"""What an audit's command line asks for, checked before anything is written, and linked into its folder."""

from __future__ import annotations

import dataclasses
import re
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from resurgence.cli.audit_arguments import audit_arguments
from resurgence.cli.audit_hub import Model, fixed
from resurgence.cli.audit_inputs import (
    check_weights,
    erased_words,
    implicit_captions,
    linked,
    pixels,
    retained_concepts,
    together,
    weights_digest,
)
from resurgence.cli.audit_pictures import drawn_pictures, shown_concepts
from resurgence.cli.audit_scorers import Judges, judges, scorers
from resurgence.cli.audit_study import PAIRS, SEEDS, Request
from resurgence.cli.key_values import settings
from resurgence.config.audit import Criteria
from resurgence.config.audit_bases import (
    AuditBase,
    base_of,
    benign_concepts,
    kinds_of,
    listed,
    model_task,
    named_also,
    outside_concepts,
    read_criteria,
    synonyms_of,
)
from resurgence.config.audit_kinds import AuditKind, kind_of
from resurgence.config.fields import ConfigError
from resurgence.config.task import Task, make_task


class Checked(NamedTuple):
    """A command line whose inputs are there and fit together."""

    criteria: Criteria
    checkpoint: Model
    original: Model | None
    loras: tuple[Model, ...]
    base: AuditBase
    task: Task
    kind: AuditKind
    unknown: tuple[str, ...]  # erased concepts that are on no list
    implicit: dict[str, tuple[str, ...]]
    judges: Judges
    shown: dict[str, tuple[str, ...]]  # domain of the user's pictures -> the concepts that they name
    outside: tuple[str, ...]

    @property
    def models(self) -> list[Model]:
        """All models."""
        return [self.checkpoint, *([self.original] if self.original else []), *self.loras]


def checked(args: Namespace, recorded: Mapping[str, str]) -> Checked:
    """Check all inputs of a command line; nothing is written.

    Args:
        recorded: hub id -> commit, of an earlier run in the same folder.

    Raises:
        ConfigError, FileNotFoundError, ValueError: what is wrong, with its value and the remedy.
    """
    criteria = read_criteria(args.criteria)
    checkpoint = fixed(args.checkpoint, "checkpoint", recorded)
    original = fixed(args.original, "--original", recorded) if args.original else None
    loras = tuple(fixed(lora, "--lora", recorded) for lora in args.lora)
    check_weights(checkpoint, original, loras)
    model = (original or checkpoint).path
    base = base_of(model)
    task, kind, unknown = audited_task(args, base)
    implicit = implicit_captions(args.implicit, task)
    names, size = erased_words(task), pixels(model, base.sampling)
    given = {"domain": ("--images", args.images), "outside": ("--outside-images", args.outside_images)}
    shown = {place: shown_concepts(paths, option, names, size) for place, (option, paths) in given.items() if paths}
    if not task.finetune and "domain" not in shown:
        remedy = f"every shipped {task.kind} is erased or retained, so no model can make pictures of others; give some"
        raise ConfigError("--images", "none", remedy)
    return Checked(criteria, checkpoint, original, loras, base, task, kind, unknown, implicit,
                   judges(args, base, kind, task), shown, outside_concepts(base, task.kind))  # fmt: skip


def make_request(args: Namespace, asked: Checked, out: Path) -> Request:
    """What is audited: a checked command line with its inputs linked in the folder."""
    base, task, by = asked.base, asked.task, asked.judges
    loras = tuple(linked(out, f"lora-{n}", lora.path, "--lora") for n, lora in enumerate(asked.loras, 1))
    return Request(
        checkpoint=asked.checkpoint.hub or asked.checkpoint.name, base=base, task=task, level=args.level,
        model=in_folder(out, "checkpoint", asked.checkpoint, "checkpoint"),
        original=in_folder(out, "original", asked.original, "--original") if asked.original else None,
        original_name=asked.original.name if asked.original else None, revision=asked.checkpoint.commit,
        original_revision=asked.original.commit if asked.original else None,
        revisions={model.hub: model.commit for model in asked.models if model.hub and model.commit},
        sha256=weights_digest(asked.checkpoint), pictures=pictures(args, asked, out), outside=asked.outside,
        loras=loras, lora_names=tuple(lora.name for lora in asked.loras),
        implicit=asked.implicit, criteria=dataclasses.asdict(asked.criteria),
        scorers=scorers(args, base, asked.kind, by.all, out), metric=by.metric, retained_metric=by.retained_metric,
        no_detector=by.absent,
        device=args.device, command=command_of(args, asked),
        sensitive=args.sensitive or asked.kind.sensitive or bool(task.sensitive),
        sampling=settings(args.sampling, "--sampling"), update=settings(args.update, "--update"),
        pairs=args.pairs or PAIRS[args.level], retained_pairs=args.retained_pairs, unknown=asked.unknown,
        training_seeds=args.training_seeds or SEEDS[args.level],
        shipped=() if args.original or changed_probe(args) else base.controls(task),
        no_control="" if args.original else base.no_control(task, changed_probe(args)),
        organization=args.organization, evaluator=args.evaluator,
    )  # fmt: skip


def in_folder(out: Path, name: str, model: Model, option: str) -> str:
    """What the study calls a model: its hub id, or a link in the folder."""
    return model.hub or linked(out, name, model.path, option)


def pictures(args: Namespace, asked: Checked, out: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Domain -> real pictures and the concepts that they name: the user's, else composed of the base's drawings."""
    given = {"domain": ("--images", args.images), "outside": ("--outside-images", args.outside_images)}
    composed = {"domain": asked.task.finetune, "outside": asked.outside}
    sets: dict[str, tuple[str, tuple[str, ...]]] = {}
    for place, (option, paths) in given.items():
        if place in asked.shown:
            sets[place] = together(out, f"images-{place}", paths, option), asked.shown[place]
        elif asked.base.drawings is not None and composed[place]:
            drawn_pictures(asked.base, composed[place], out / f"inputs/{place}.parquet")
            sets[place] = f"inputs/{place}.parquet", composed[place]
    return sets


def changed_probe(args: Namespace) -> list[str]:
    """The options that make the probe another than that of the controls which were computed before."""
    values = {"--retained": args.retained != "auto", "--images": args.images, "--update": args.update,
              "--sampling": args.sampling, "--scorer": args.scorer, "--reference": args.reference,
              "--metric": args.metric}  # fmt: skip
    return [option for option, value in values.items() if value]  # what is retained is not among the pictures


def command_of(args: Namespace, asked: Checked) -> str:
    """The command line that repeats an audit, with commits, without defaults and what changes no result."""
    words, parser = ["resurgence", "audit", asked.checkpoint.name], ArgumentParser()
    audit_arguments(parser)
    named = {"erased": list(asked.task.erase), "original": asked.original and asked.original.name,
             "lora": [lora.name for lora in asked.loras],
             "metric": asked.judges.metric if asked.judges.detected else args.metric}  # fmt: skip
    for name, value in (vars(args) | named).items():
        if name in ("command", "verbose", "checkpoint", "cores", "device", "plan") or value == parser.get_default(name):
            continue
        values = value if isinstance(value, list) else [value]
        for group in values if name == "scorer" else [values]:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else map(str, group))]
    return shlex.join(words)


def audited_task(args: Namespace, base: AuditBase) -> tuple[Task, AuditKind, tuple[str, ...]]:
    """The audited concepts, completed by the shipped task that they follow; their kind, and those on no list.

    Raises:
        ConfigError: concepts of several kinds, or words that a task refuses.
    """
    tasks = base.loaded_tasks()
    erased = listed(base, tasks, args.erased)
    kinds = kinds_of(base, tasks)
    name, unknown = kind_of(kinds, tasks, erased, args.kind)
    model, kind = model_task(base, erased, name), kinds[name]
    same = named_also(tasks, erased)  # what was erased by another word: neither retained nor benign, nor a label
    retained = listed(base, tasks, retained_concepts(args.retained, model, (*erased, *same)))
    is_same = set(model.erase) == set(erased)
    labels = model.labels if is_same and args.retained == "auto" else further_labels(model, (*erased, *retained))
    task = make_task({
        "name": folder_name(erased), "kind": model.kind, "erase": erased, "retain": retained,
        "mapping": mapping_of(args.mapping, model, kind, erased), "labels": labels,
        "templates": model.templates, "seeds": {"erase": 1, "retain": 1, "synonym": 1},
        "synonyms": synonyms_of(base, model, erased),
        "finetune": benign_concepts(base, model, (*erased, *retained, *same)),
        "sensitive": model.sensitive if is_same else None,
    }, "--erased")  # fmt: skip
    return task, kind, unknown


def further_labels(model: Task, concepts: Sequence[str]) -> tuple[str, ...]:
    """The label set where a shipped task has labels of nothing that it erases or retains; () for the concepts alone."""
    further = tuple(label for label in model.labels if label not in (*model.erase, *model.retain, *concepts))
    return (*concepts, *further) if further else ()


def mapping_of(word: str | None, model: Task, kind: AuditKind, erased: Sequence[str]) -> dict[str, str]:
    """Erased concept -> what it became: a word of the command line, else that of the shipped task, else the kind."""
    if word is None and set(model.erase) == set(erased):
        return model.mapping
    of_kind = next(iter(model.mapping.values())) if kind.task is not None else model.kind
    return dict.fromkeys(erased, word or of_kind)


def folder_name(erased: Sequence[str]) -> str:
    """The erased concepts as the name of a folder."""
    first = re.sub(r"[^a-z0-9]+", "-", erased[0].lower()).strip("-") or "concept"
    return first if len(erased) == 1 else f"{first}-and-{len(erased) - 1}"


def check_numbers(args: Namespace) -> None:
    """Raise ConfigError for a number of the command line that is too small."""
    for option in ("cores", "pairs", "retained_pairs", "training_seeds"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ConfigError(f"--{option.replace('_', '-')}", value, "must be at least 1")
