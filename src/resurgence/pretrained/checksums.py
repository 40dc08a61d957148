"""Weights from elsewhere: where they lie, whether they are whole, how to get them.

config/weights.yaml names revision, licence, files and the published SHA-256 of what the studies read;
config/weights.lock, written by `resurgence weights lock`, those that this machine saw first. A hub id is looked for in
the hub's cache, where `hf download` puts it; anything else is a path. What a study needs of it: needed_weights.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from resurgence.config.fields import build, read_yaml
from resurgence.files import sha256

TABLE, LOCK = Path("config/weights.yaml"), Path("config/weights.lock")
SEEN = Path("scratch/weights.json")  # checksums by path, size and time of change, so that each file is read once
OFFLINE = ("1", "TRUE", "YES", "ON")


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
    """Check what is about to be loaded against the table of the folder one works in; strangers pass."""
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
