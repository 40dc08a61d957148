"""What a study reads from elsewhere, and whether all of it is there and whole: before any job, without torch.

resurgence weights check --overlay studies/sd14.yaml
resurgence weights lock --overlay studies/sd14.yaml
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from resurgence.config.fields import read_yaml
from resurgence.files import resolve_path
from resurgence.pretrained.checksums import LOCK, TABLE, Entry, digest, file_of, locate, offline, remedy, table, verify
from resurgence.workflow.job_settings import reads
from resurgence.workflow.rule_table import RULES

if TYPE_CHECKING:
    from resurgence.config.study import Study


@dataclass(frozen=True)
class Wanted:
    """Something that a study reads."""

    key: str  # of params.yaml
    place: str  # a path, or a hub id
    revision: str | None = None
    rules: Collection[str] = field(default=())  # whose jobs read it


def wanted(study: Study, entries: Mapping[str, Entry]) -> list[Wanted]:
    """What the study reads: base, segmenter, scorers."""
    loading = [rule.name for rule in RULES.values() if rule.loads_base]
    attention = ["masks"] if study.masks.segmenter == "cross-attention" else []
    found = [Wanted("base.path", study.base.path, study.base.revision, [*loading, *attention])]
    masked = any("masks" in reads(study, erasure) for erasure in study.erasures())
    if masked and study.masks.segmenter == "grounded-sam":
        for key in ("detector", "sam"):
            revision = getattr(study.masks, f"{key}_revision")
            found.append(Wanted(f"masks.{key}", getattr(study.masks, key), revision, ("masks",)))
    for name, settings in study.scorers.items():
        rules = ("score", "terciles") if name == "clip" else ("score",)
        if "path" in settings:
            found.append(Wanted(f"scorers.{name}.path", str(settings["path"]), None, rules))
        tag = f"{settings.get('name')}:{settings.get('pretrained')}"
        found += [Wanted(f"scorers.{name}", p, e.revision, rules) for p, e in entries.items() if e.open_clip == tag]
    return found


def files_in(place: Path) -> list[str]:
    """Weights and settings of a place that the table does not know."""
    if place.is_file():
        return [place.name]
    found = [path for path in place.rglob("*") if path.suffix in (".json", ".safetensors", ".txt")]
    return sorted(path.relative_to(place).as_posix() for path in found)


def missing(one: Wanted, entries: Mapping[str, Entry]) -> str:
    """Say that something is not there, where it was looked for, and what gets it."""
    from huggingface_hub import constants

    entry = entries.get(one.place)
    at = f" at revision {one.revision}" if one.revision else ""
    places = "" if entry and entry.get else f" and in {constants.HF_HUB_CACHE}{at}"
    network = " HF_HUB_OFFLINE is set." if offline() else ""
    gated = "" if entry and entry.get else "; a gated model needs `hf auth login` and its licence accepted first"
    told = remedy(one.place, entry, one.revision)
    return f"{one.key} = {one.place!r}: not in {Path(one.place).absolute()}{places}.{network} To have it, {told}{gated}"


def examine(study: Study, rules: Collection[str] | None = None) -> Iterator[tuple[Wanted, str, str]]:
    """What jobs of these rules (None: any) read: each with ok, unlocked, missing or damaged, and a sentence."""
    entries = table()
    for one in wanted(study, entries):
        if rules is not None and not set(one.rules) & set(rules):
            continue
        found = locate(one.place, one.revision)
        if found is None:
            yield one, "missing", missing(one, entries)
            continue
        try:
            unknown = verify(one.place, found, entries)
        except (FileNotFoundError, ValueError) as error:
            yield one, "damaged", f"{one.key}: {error}"
            continue
        if one.place not in entries:
            yield one, "ok", f"{one.key} = {one.place}: {found}, not in {TABLE}"
        elif unknown:
            yield one, "unlocked", f"{one.key} = {one.place}: {found}; no checksum yet of {', '.join(unknown)}"
        else:
            yield one, "ok", f"{one.key} = {one.place}: {found}"


def check_present(study: Study, rules: Collection[str]) -> None:
    """Before the first job: raise FileNotFoundError naming everything that the jobs of these rules cannot read."""
    bad = [told for _, state, told in examine(study, rules) if state in ("missing", "damaged")]
    if bad:
        raise FileNotFoundError("weights that this run needs:\n  " + "\n  ".join(bad))


def weights_arguments(parser: ArgumentParser) -> None:
    """Arguments of `resurgence weights`."""
    parser.add_argument("what", choices=("check", "lock"), help="check: what is there; lock: record its checksums")
    parser.add_argument("--overlay", type=Path, nargs="*", default=[], help="studies laid over params.yaml")


def run(args: Namespace) -> None:
    """Print what a study reads and whether it is there, or record the checksums of what is there.

    Raises:
        FileNotFoundError: something is missing or damaged.
    """
    from resurgence.config.load import load_study

    study = load_study([Path(resolve_path("params.yaml")), *args.overlay])
    seen = list(examine(study))
    for _, state, told in seen:
        print(f"{state:<9} {told}")
    if args.what == "lock":
        lock([one for one, state, _ in seen if state in ("ok", "unlocked")])
    elif bad := [one.key for one, state, _ in seen if state in ("missing", "damaged")]:
        raise FileNotFoundError(f"{len(bad)} of {len(seen)} are missing or damaged: {', '.join(bad)}")


def lock(found: list[Wanted]) -> None:
    """Write config/weights.lock: revision and checksums of what is there, beside those locked before."""
    entries = table()
    locked = read_yaml(LOCK) if LOCK.is_file() else {}
    for one in found:
        place = locate(one.place, one.revision)
        if place is None:
            continue
        commit = place.name if place.parent.name == "snapshots" else None
        names = entries[one.place].files if one.place in entries else files_in(place)
        locked[one.place] = {"revision": commit, "files": {name: digest(file_of(place, name)) for name in names}}
    LOCK.parent.mkdir(exist_ok=True)
    temporary = LOCK.with_suffix(".tmp")
    temporary.write_text(yaml.safe_dump(dict(sorted(locked.items()))))
    temporary.rename(LOCK)
    print(f"{LOCK}: {len(locked)} entries; commit it, so that everyone checks against the same")
