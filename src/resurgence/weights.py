"""Weights from elsewhere: what a study reads, where it lies, whether it is whole. No torch: it runs before any job.

config/weights.yaml names revision, licence, files and the published SHA-256 of what the studies read;
config/weights.lock, written by `resurgence weights lock`, those that this machine saw first. A hub id is looked for in
the hub's cache, where `hf download` puts it; anything else is a path.
"""

from __future__ import annotations

import json
import logging
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from resurgence.config import build, read_yaml
from resurgence.manifest import sha256

if TYPE_CHECKING:
    from resurgence.study import Study

log = logging.getLogger(__name__)

TABLE, LOCK = Path("config/weights.yaml"), Path("config/weights.lock")
SEEN = Path("scratch/weights.json")  # checksums by path, size and time of change, so that each file is read once
OFFLINE = ("1", "TRUE", "YES", "ON")
# what the jobs of a rule read besides their inputs
BASE_RULES = (
    "prior_moments", "domain_moments", "concept_images", "anchor_images", "retained_images", "finetune_set", "loras",
    "erase", "finetune", "sample",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    licence: str
    files: dict[str, str | None]  # name -> SHA-256, or its beginning; null: not published
    revision: str | None = None
    source: str | None = None  # of the checksums
    open_clip: str | None = None  # architecture:tag that open_clip reads from here
    get: str | None = None  # how to get what is no hub id
    note: str | None = None


@dataclass(frozen=True)
class Wanted:
    """Something that a study reads."""

    key: str  # of params.yaml
    place: str  # a path, or a hub id
    revision: str | None = None
    rules: Collection[str] = field(default=())  # whose jobs read it


def table(root: Path = Path()) -> dict[str, Entry]:
    """The table, completed by the lock; empty outside of a project.

    Raises:
        ConfigError: an entry that is no Entry. ValueError: a lock that contradicts a published checksum.
    """
    if not (root / TABLE).is_file():
        return {}
    entries = {place: build(Entry, values, f"{TABLE}: {place}") for place, values in read_yaml(root / TABLE).items()}
    locked = read_yaml(root / LOCK) if (root / LOCK).is_file() else {}
    for place, values in locked.items():
        entry = entries.get(place, Entry(licence="not known", files={}))
        files = dict(entry.files)
        for name, seen in values["files"].items():
            if files.get(name) and not seen.startswith(files[name]):
                raise ValueError(f"{LOCK}: {place}/{name} is {seen}, published is {files[name]}; delete that line")
            files[name] = seen
        revision = entry.revision or values.get("revision")
        entries[place] = Entry(**{**vars(entry), "files": files, "revision": revision})
    return entries


def wanted(study: Study, entries: Mapping[str, Entry]) -> list[Wanted]:
    """What the study reads: base, segmenter, scorers."""
    from resurgence.declared import needs

    attention = ("masks",) if study.masks.segmenter == "cross-attention" else ()
    found = [Wanted("base.path", study.base.path, study.base.revision, (*BASE_RULES, *attention))]
    masked = any("masks" in needs(method.module) for method in study.erasers.values())
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


def locate(place: str, revision: str | None = None, root: Path = Path()) -> Path | None:
    """Where it lies: a folder or file, or the snapshot of a hub id in the hub's cache; None if it is not there."""
    from huggingface_hub import constants

    if (root / place).exists():
        return root / place
    repository = Path(constants.HF_HUB_CACHE) / f"models--{place.replace('/', '--')}"
    reference = repository / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = repository / "snapshots" / (commit or "")
    return snapshot if commit and snapshot.is_dir() else None


def digest(path: Path) -> str:
    """SHA-256 of a file, from the scratch folder where it is known and the file has not changed since."""
    real = path.resolve()
    now = [real.stat().st_size, real.stat().st_mtime_ns]
    known = json.loads(SEEN.read_text()) if SEEN.is_file() else {}
    if known.get(str(real), [])[:2] != now:
        known[str(real)] = [*now, sha256(real)]
        SEEN.parent.mkdir(exist_ok=True)
        temporary = SEEN.with_name(f"{SEEN.name}.{os.getpid()}")
        temporary.write_text(json.dumps(known, indent=1))
        temporary.rename(SEEN)
    return known[str(real)][2]


def files_in(place: Path) -> list[str]:
    """Weights and settings of a place that the table does not know."""
    if place.is_file():
        return [place.name]
    found = [path for path in place.rglob("*") if path.suffix in (".json", ".safetensors", ".txt")]
    return sorted(path.relative_to(place).as_posix() for path in found)


def file_of(place: Path, name: str) -> Path:
    """A file of an entry: in the folder, or the place itself where that is one file."""
    return place if place.is_file() else place / name


def verify(place: str, found: Path, entries: Mapping[str, Entry]) -> list[str]:
    """Compare what lies there with the table.

    Returns:
        The files that no checksum is known of.

    Raises:
        FileNotFoundError, ValueError: a file that is missing, cut or another one, with both checksums and the remedy.
    """
    unknown, entry = [], entries.get(place)
    for name, expected in entry.files.items() if entry else ():
        file = file_of(found, name)
        if not file.is_file():
            raise FileNotFoundError(f"{found} has no {name}; {remedy(place, entry)}")
        if expected is None:
            unknown.append(name)
        elif not (seen := digest(file)).startswith(expected):
            size = file.resolve().stat().st_size
            raise ValueError(
                f"{file} ({size} bytes) has the SHA-256 {seen}, expected {expected}: it is cut or another file; "
                f"delete it and {remedy(place, entry)}"
            )
    return unknown


def verify_loaded(path: str | Path, revision: str | None = None) -> None:
    """Check a base that is about to be loaded against the table of the folder one works in; strangers pass."""
    entries = table()
    if str(path) in entries and (found := locate(str(path), revision)) is not None:
        verify(str(path), found, entries)


def remedy(place: str, entry: Entry | None, revision: str | None = None) -> str:
    """The command that gets it."""
    if entry is not None and entry.get:
        return f"get it: {entry.get}"
    commit = revision or (entry.revision if entry else None)
    files = " ".join(entry.files) if entry else ""
    command = f"hf download {place}" + (f" {files}" if files else "") + (f" --revision {commit}" if commit else "")
    note = f" ({entry.note})" if entry and entry.note else ""
    return f"fetch it with `{command}`{note}"


def where_to_find(path: str | Path, revision: str | None, error: Exception) -> str:
    """Say where a base was looked for and how to get it."""
    from huggingface_hub import constants

    reason = " ".join(str(error).split())[:300]
    return (
        f"cannot load the base {str(path)!r} ({type(error).__name__}: {reason}). Looked for the local folder or file "
        f"{Path(path).absolute()} and for the hub id {path}{f' at revision {revision}' if revision else ''} in "
        f"{constants.HF_HUB_CACHE}. While online, {remedy(str(path), table().get(str(path)), revision)} (a gated model "
        f"needs `hf auth login` and its licence accepted first), or give the path of a folder that diffusers' "
        f"save_pretrained wrote."
    )


def missing(one: Wanted, entries: Mapping[str, Entry]) -> str:
    """Say that something is not there, where it was looked for, and what gets it."""
    from huggingface_hub import constants

    entry = entries.get(one.place)
    at = f" at revision {one.revision}" if one.revision else ""
    places = "" if entry and entry.get else f" and in {constants.HF_HUB_CACHE}{at}"
    network = " HF_HUB_OFFLINE is set." if os.environ.get("HF_HUB_OFFLINE", "").upper() in OFFLINE else ""
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
    from resurgence.study import load_study

    study = load_study([Path("params.yaml"), *args.overlay])
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
