"""Check the weights that a study reads from elsewhere for presence and checksums, before any job, without torch.

resurgence weights check --overlay studies/sd14.yaml
resurgence weights lock --overlay studies/sd14.yaml
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from resurgence.config.fields import read_yaml
from resurgence.config.finetune_sets import OtherBase
from resurgence.config.model_path import ModelPath
from resurgence.files import atomic_file, known_sha256, resolve_path
from resurgence.pretrained.checksums import LOCK, TABLE, Entry, file_of, locate, offline, remedy, table, verify
from resurgence.workflow.graph import files_of
from resurgence.workflow.job_settings import reads
from resurgence.workflow.rule_table import RULES

if TYPE_CHECKING:
    from resurgence.config.study import Study


@dataclass(frozen=True)
class Weights:
    """Weights that a study reads."""

    key: str  # of params.yaml
    place: str  # a path, or a hub id
    revision: str | None = None
    rules: Collection[str] = field(default=())  # whose jobs read it
    kinds: Collection[str] | None = None  # of the tasks whose images it scores; None: all, or no scorer


def loading(*weights: str) -> list[str]:
    """The rules whose jobs read some of these weights, by the names in the records of the rules."""
    return [rule.name for rule in RULES.values() if set(weights) & set(rule.loads)]


def weights_of(study: Study, entries: Mapping[str, Entry]) -> list[Weights]:
    """The weights of base and segmenter, and of the scorers of the kinds of task that the study has."""
    attention = ["attention"] if study.masks.segmenter == "cross-attention" else []
    weights = [Weights("base.path", study.base.path, study.base.revision, loading("base", *attention))]
    for name, images in study.finetune_sets.items():
        if isinstance(other := images.made_by, OtherBase):
            weights.append(
                Weights(f"finetune_sets.{name}.made_by.base", other.base, other.revision, loading("other base"))
            )
    masked = any("masks" in reads(study, erasure) for erasure in study.erasures())
    if masked and study.masks.segmenter == "grounded-sam":
        for key in ("detector", "sam"):
            revision = getattr(study.masks, f"{key}_revision")
            weights.append(Weights(f"masks.{key}", getattr(study.masks, key), revision, loading("segmenter")))
    kinds = {task.kind for task in study.loaded.values()}
    for name, settings in study.scorers.items():
        features = ["features"] if name == study.scorers.get("frechet", {}).get("features") else []
        rules, of = loading("scorers", *(["clip"] if name == "clip" else []), *features), settings.get("kinds")
        if of is not None and not kinds & set(of) and name != "clip":
            continue
        if "path" in settings:
            weights.append(Weights(f"scorers.{name}.path", str(settings["path"]), None, rules, of))
        tag = f"{settings.get('name')}:{settings.get('pretrained')}"
        places = {place: entry for place, entry in entries.items() if entry.open_clip == tag}
        weights += [Weights(f"scorers.{name}", p, e.revision, rules, of) for p, e in places.items()]
    return weights


def missing(weights: Weights, entries: Mapping[str, Entry]) -> str:
    """The message that weights are missing, with the places that were searched and the remedy."""
    from huggingface_hub import constants

    place, entry = weights.place, entries.get(weights.place)
    at = f" at revision {weights.revision}" if weights.revision else ""
    places = "" if entry and entry.get else f" and in {constants.HF_HUB_CACHE}{at}"
    network = " HF_HUB_OFFLINE is set." if offline() else ""
    gated = "" if entry and entry.get else "; a gated model needs `hf auth login` and its licence accepted first"
    get = remedy(place, entry, weights.revision)
    return f"{weights.key} = {place!r}: not in {Path(place).absolute()}{places}.{network} To have it, {get}{gated}"


def examine(
    study: Study, rules: Collection[str] | None = None, scored: Collection[str] | None = None
) -> Iterator[tuple[Weights, str, str]]:
    """The weights that jobs of some rules (None: all) read, each with its state and a message.

    States: ok, unlocked (no checksum), missing, damaged.

    Args:
        scored: kinds of the tasks whose images the jobs score; None: all.
    """
    entries = table()
    for weights in weights_of(study, entries):
        wanted = set(weights.rules) if rules is None else set(weights.rules) & set(rules)
        others = scored is not None and weights.kinds is not None and not set(weights.kinds) & set(scored)
        if wanted - (set(loading("scorers")) if others else set()):
            yield weights, *state_of(weights, entries)


def state_of(weights: Weights, entries: Mapping[str, Entry]) -> tuple[str, str]:
    """State of weights, and a message."""
    path = locate(weights.place, weights.revision)
    if path is None:
        return "missing", missing(weights, entries)
    try:
        unlocked = verify(weights.place, path, entries)
    except (FileNotFoundError, ValueError) as error:
        return "damaged", f"{weights.key}: {error}"
    message = f"{weights.key} = {weights.place}: {path}"
    if weights.place not in entries:
        return "ok", f"{message}, not in {TABLE}"
    return ("unlocked", f"{message}; no checksum yet of {', '.join(unlocked)}") if unlocked else ("ok", message)


def kinds_scored(study: Study, jobs: Iterable[Any]) -> set[str]:
    """The kinds of the tasks whose images some of these jobs of Snakemake score."""
    scoring = loading("scorers")
    models = [job.wildcards.model for job in jobs if job.rule.name in scoring]
    return {study.task(ModelPath.parse(model).task).kind for model in models}


def check_present(study: Study, rules: Collection[str], scored: Collection[str] | None = None) -> None:
    """Before the first job: raise FileNotFoundError with all weights that the jobs of these rules cannot read.

    Args:
        scored: see `examine`.
    """
    if bad := [message for _, state, message in examine(study, rules, scored) if state in ("missing", "damaged")]:
        raise FileNotFoundError("weights that this run needs:\n  " + "\n  ".join(bad))


def weights_arguments(parser: ArgumentParser) -> None:
    """Arguments of `resurgence weights`."""
    parser.add_argument("what", choices=("check", "lock"), help="check: what is there; lock: record its checksums")
    parser.add_argument("--overlay", type=Path, nargs="*", default=[], help="studies laid over params.yaml")


def run(args: Namespace) -> None:
    """Print the weights of a study with their state, or record the checksums of those that are present.

    Raises:
        FileNotFoundError: something is missing or damaged.
    """
    from resurgence.config.load import load_study

    study = load_study([Path(resolve_path("params.yaml")), *args.overlay])
    states = list(examine(study))
    for _, state, message in states:
        print(f"{state:<9} {message}")
    if args.what == "lock":
        lock([weights for weights, state, _ in states if state in ("ok", "unlocked")])
    elif bad := [weights.key for weights, state, _ in states if state in ("missing", "damaged")]:
        raise FileNotFoundError(f"{len(bad)} of {len(states)} are missing or damaged: {', '.join(bad)}")


def lock(present: list[Weights]) -> None:
    """Write config/weights.lock: revision and checksums of present weights, beside those locked before."""
    entries = table()
    locked = read_yaml(LOCK) if LOCK.is_file() else {}
    for weights in present:
        path = locate(weights.place, weights.revision)
        if path is None:
            continue
        commit = path.name if path.parent.name == "snapshots" else None
        folder = path.parent if path.is_file() else path
        unlisted = [Path(file).relative_to(folder).as_posix() for file in files_of(path)]
        names = entries[weights.place].files if weights.place in entries else unlisted
        locked[weights.place] = {
            "revision": commit,
            "files": {name: known_sha256(file_of(path, name)) for name in names},
        }
    LOCK.parent.mkdir(exist_ok=True)
    with atomic_file(LOCK) as temporary:
        temporary.write_text(yaml.safe_dump(dict(sorted(locked.items()))))
    print(f"{LOCK}: {len(locked)} entries; commit it, so that everyone checks against the same")
