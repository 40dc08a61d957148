"""Check the weights that a study reads from elsewhere, and the packages that its scorers import, before any job.

resurgence weights check --overlay studies/sd14.yaml
resurgence weights lock --overlay studies/sd14.yaml
"""

from __future__ import annotations

import importlib.util
from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import yaml

from resurgence.config.counting import counted
from resurgence.config.fields import read_yaml
from resurgence.config.finetune_sets import OtherBase
from resurgence.config.model_path import ModelPath
from resurgence.config.scorers import PACKAGES
from resurgence.files import GET_PACKAGES, GET_SHIPPED, atomic_file, known_sha256, resolve_path
from resurgence.pretrained.checksums import HUB_ID, LOCK, TABLE, Entry, file_of, locate, offline, remedy, table, verify
from resurgence.workflow.graph import files_of
from resurgence.workflow.job_settings import reads
from resurgence.workflow.rule_table import RULES

if TYPE_CHECKING:
    from resurgence.config.study import Study

State = Literal["verified", "unverified", "installed", "missing", "damaged"]
"""Of weights: present with the known checksums, or without; of a package: installed; of both: missing."""
SHIPPED = "data/miniature"  # of paths that DVC has
LACKING: tuple[State, ...] = ("missing", "damaged")


@dataclass(frozen=True)
class Weights:
    """Weights that a study reads."""

    key: str  # of params.yaml
    place: str  # a path, or a hub id
    revision: str | None = None
    rules: Collection[str] = field(default=())  # whose jobs read it
    kinds: Collection[str] | None = None  # of the tasks whose images it scores; None: all, or no scorer


@dataclass(frozen=True)
class Package:
    """A package of Python that a scorer of a study imports."""

    key: str  # of params.yaml
    name: str  # for pip; its module has _ for -
    rules: Collection[str] = field(default=())  # whose jobs import it
    kinds: Collection[str] | None = None  # of the tasks whose images the scorer scores; None: all


class Found(NamedTuple):
    """Weights or a package, with their state in one sentence: key, place, state, remedy."""

    need: Weights | Package
    state: State
    message: str


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
    for name, rules, of in loaded_scorers(study):
        settings = study.scorers[name]
        if "path" in settings:
            weights.append(Weights(f"scorers.{name}.path", str(settings["path"]), None, rules, of))
        tag = f"{settings.get('name')}:{settings.get('pretrained')}"
        places = {place: entry for place, entry in entries.items() if entry.open_clip == tag}
        weights += [Weights(f"scorers.{name}", p, e.revision, rules, of) for p, e in places.items()]
    return weights


def loaded_scorers(study: Study) -> Iterator[tuple[str, list[str], Collection[str] | None]]:
    """The scorers that jobs load: name, rules of the jobs, and kinds of the tasks whose images it scores; None: all."""
    kinds = {task.kind for task in study.loaded.values()}
    compares = ["similarity"] if any(shown.kind == "similarity" for shown in study.experiments.values()) else []
    for name, settings in study.scorers.items():
        features = ["features"] if name == study.scorers.get("frechet", {}).get("features") else []
        of = settings.get("kinds")
        if of is None or kinds & set(of) or name == "clip":
            yield name, loading("scorers", *(["clip", *compares] if name == "clip" else []), *features), of


def packages_of(study: Study) -> list[Package]:
    """The packages that the scorers of the study import, of the kinds of task that it has."""
    return [
        Package(f"scorers.{scorer}", name, rules, kinds)
        for scorer, rules, kinds in loaded_scorers(study)
        for name in PACKAGES.get(scorer, ())
    ]


def missing(weights: Weights, entries: Mapping[str, Entry]) -> str:
    """The sentence that weights are missing: the places that were searched, and the remedy."""
    from huggingface_hub import constants

    place, entry = weights.place, entries.get(weights.place)
    lacking = f"{weights.key} = {place!r}: missing, not at {Path(place).absolute()}"
    if entry is None and not HUB_ID.fullmatch(place):
        return f"{lacking}; {GET_SHIPPED if place.startswith(SHIPPED) else 'correct the path'}"
    get = remedy(place, entry, weights.revision)
    if entry is not None and entry.get:
        return f"{lacking}; {get}"
    at = f" at revision {weights.revision}" if weights.revision else ""
    network = ", and HF_HUB_OFFLINE is set" if offline() else ""
    gated = ", a gated model after `hf auth login` and once its licence is accepted"
    return f"{lacking} nor in {constants.HF_HUB_CACHE}{at}{network}; {get}{gated}"


def examine(
    study: Study, rules: Collection[str] | None = None, scored: Collection[str] | None = None, packages: bool = True
) -> Iterator[Found]:
    """The weights that jobs of some rules (None: all) read and the packages that they import, each with its state.

    Args:
        scored: kinds of the tasks whose images the jobs score; None: all.
        packages: whether packages are looked for; not where jobs run in another environment, such as a container.
    """
    entries = table()
    for need in (*weights_of(study, entries), *(packages_of(study) if packages else ())):
        wanted = set(need.rules) if rules is None else set(need.rules) & set(rules)
        others = scored is not None and need.kinds is not None and not set(need.kinds) & set(scored)
        if wanted - (set(loading("scorers")) if others else set()):
            yield package_state(need) if isinstance(need, Package) else state_of(need, entries)


def package_state(package: Package) -> Found:
    """Whether a package is installed; it is not imported."""
    if importlib.util.find_spec(package.name.replace("-", "_")) is not None:
        return Found(package, "installed", f"{package.key}: the package {package.name} is installed")
    return Found(package, "missing", f"{package.key} needs {package.name}, which is not installed; {GET_PACKAGES}")


def state_of(weights: Weights, entries: Mapping[str, Entry]) -> Found:
    """The state of weights."""
    path = locate(weights.place, weights.revision)
    if path is None:
        return Found(weights, "missing", missing(weights, entries))
    name, at = f"{weights.key} = {weights.place!r}", "" if path == Path(weights.place) else f" at {path}"
    try:
        without = verify(weights.place, path, entries)
    except (FileNotFoundError, ValueError) as error:
        return Found(weights, "damaged", f"{name}: present, but damaged or incomplete: {error}")
    is_listed = weights.place in entries
    if is_listed and not without:
        return Found(weights, "verified", f"{name}: present and verified{at}")
    others = f" and {counted(len(without) - 1, 'other')}" if len(without) > 1 else ""
    files = f"{without[0]}{others}" if is_listed else "its files"
    reason = f"{TABLE} and {LOCK.name} have no checksum of {files}; record them with `resurgence weights lock`"
    return Found(weights, "unverified", f"{name}: present, not verified{at}, as {reason}")


def kinds_scored(study: Study, jobs: Iterable[Any]) -> set[str]:
    """The kinds of the tasks whose images some of these jobs of Snakemake score."""
    scoring = loading("scorers")
    models = [job.wildcards.model for job in jobs if job.rule.name in scoring]
    return {study.task(ModelPath.parse(model).task).kind for model in models}


def rules_loading(study: Study, jobs: Iterable[Any]) -> set[str]:
    """The rules of these jobs of Snakemake, of experiments only where one compares words and so loads CLIP."""
    comparing = {name for name, shown in study.experiments.items() if shown.kind == "similarity"}
    return {
        job.rule.name
        for job in jobs
        if job.rule.name not in loading("similarity") or job.wildcards.experiment in comparing
    }


def check_present(
    study: Study, rules: Collection[str], scored: Collection[str] | None = None, packages: bool = True
) -> None:
    """Before the first job: raise FileNotFoundError with all weights and packages that jobs of these rules lack.

    Args:
        scored, packages: see `examine`.
    """
    if bad := [needed.message for needed in examine(study, rules, scored, packages) if needed.state in LACKING]:
        raise FileNotFoundError("this run needs what is missing or damaged:\n  " + "\n  ".join(bad))


def weights_arguments(parser: ArgumentParser) -> None:
    """Arguments of `resurgence weights`."""
    parser.add_argument(
        "what", choices=("check", "lock"),
        help="check: the weights and packages that the study needs, each with its state and remedy; lock: record the "
        "checksums of the weights that are there",
    )  # fmt: skip
    parser.add_argument("--overlay", type=Path, nargs="*", default=[], help="studies laid over params.yaml")


def run(args: Namespace) -> None:
    """Print what a study needs, a line each with its state and remedy, or record the checksums of weights that are
    there.

    Raises:
        FileNotFoundError: something is missing or damaged.
    """
    from resurgence.config.load import load_study

    study = load_study([Path(resolve_path("params.yaml")), *args.overlay])
    states = list(examine(study))
    lacking = [needed for needed in states if needed.state in LACKING]
    for needed in lacking if args.what == "lock" else states:
        print(needed.message)
    if args.what == "lock":
        lock([need for need, state, _ in states if isinstance(need, Weights) and state not in LACKING])
    elif bad := [needed.need.key for needed in lacking]:
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
    print(f"{LOCK}: {counted(len(locked), 'entry', 'entries')}; commit it, so that everyone checks against the same")
