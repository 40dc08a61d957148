"""Published weights: where they are on this machine, whether they are complete, how to get them.

config/weights.yaml has the revision, licence, files and published SHA-256 of the weights that the studies read;
config/weights.lock, written by `resurgence weights lock`, the SHA-256 of the files that were first used on this
machine. A hub id is looked up in the hub's cache, where `hf download` puts it; anything else is a path. Which weights
a study needs: workflow/weights.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from resurgence.config.fields import build, read_yaml
from resurgence.files import known_sha256, resolve_path

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TABLE, LOCK = Path("config/weights.yaml"), Path("config/weights.lock")


@dataclass(frozen=True)
class Entry:
    """One entry of the table."""

    licence: str
    files: dict[str, str | None]  # name -> SHA-256, or its beginning; null: not published
    revision: str | None = None
    source: str | None = None  # of the checksums
    open_clip: str | None = None  # architecture:tag that open_clip reads from here
    get: str | None = None  # how to get weights that are not on the hub
    note: str | None = None


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def table(root: Path = Path()) -> dict[str, Entry]:
    """The table of a project, completed by the lock; empty in a folder without a table.

    Raises:
        ConfigError: an entry with a wrong field. ValueError: a lock that contradicts a published checksum.
    """
    file = root / resolve_path(TABLE, root)
    if not file.is_file():
        return {}
    entries = {name: build(Entry, values, f"{TABLE}: {name}") for name, values in read_yaml(file).items()}
    locked = read_yaml(root / LOCK) if (root / LOCK).is_file() else {}
    for name, values in locked.items():
        entry = entries.get(name, Entry(licence="not known", files={}))
        for file, checksum in values["files"].items():
            published = entry.files.get(file)
            if published and not checksum.startswith(published):
                raise ValueError(f"{LOCK}: {name}/{file} is {checksum}, published is {published}; delete that line")
        revision = entry.revision or values.get("revision")
        entries[name] = replace(entry, files={**entry.files, **values["files"]}, revision=revision)
    return entries


def locate(name: str, revision: str | None = None) -> Path | None:
    """The folder or file of this path, or the snapshot of a hub id in the hub's cache; None if there is neither."""
    from huggingface_hub import constants

    if Path(name).exists():
        return Path(name)
    repository = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    reference = repository / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = repository / "snapshots" / (commit or "")
    return snapshot if commit and snapshot.is_dir() else None


def file_of(path: Path, name: str) -> Path:
    """A file of an entry: in its folder, or the path itself where the weights are one file."""
    return path if path.is_file() else path / name


def verify(name: str, path: Path, entries: Mapping[str, Entry]) -> list[str]:
    """Compare the files of an entry with the table.

    Returns:
        The files for which no checksum is known.

    Raises:
        FileNotFoundError, ValueError: a file that is missing, truncated or unrelated, with both checksums and the
            remedy.
    """
    if name not in entries:
        return []
    entry = entries[name]
    for file_name, expected in entry.files.items():
        file = file_of(path, file_name)
        if not file.is_file():
            raise FileNotFoundError(f"{path} has no {file_name}; {remedy(name, entry)}")
        if expected and not (checksum := known_sha256(file)).startswith(expected):
            size = file.resolve().stat().st_size
            raise ValueError(
                f"{file} ({size} bytes) has the SHA-256 {checksum}, expected {expected}: it is truncated or another "
                f"file; delete it and {remedy(name, entry)}"
            )
    return [file for file, expected in entry.files.items() if expected is None]


def verify_loaded(name: str | Path, revision: str | None = None) -> None:
    """Compare weights that are about to be loaded with the table of the working folder, if they are listed there."""
    entries = table()
    if str(name) in entries and (path := locate(str(name), revision)) is not None:
        verify(str(name), path, entries)


def remedy(name: str, entry: Entry | None, revision: str | None = None) -> str:
    """The command that downloads the weights."""
    if entry is not None and entry.get:
        return f"get it: {entry.get}"
    commit = revision or (entry.revision if entry else None)
    files = " ".join(entry.files) if entry else ""
    command = f"hf download {name}" + (f" {files}" if files else "") + (f" --revision {commit}" if commit else "")
    note = f" ({entry.note})" if entry and entry.note else ""
    return f"fetch it with `{command}`{note}"


def missing_base(path: str | Path, revision: str | None, error: Exception) -> str:
    """The message for a base that cannot be loaded: where it was looked for, and how to get it."""
    from huggingface_hub import constants

    reason = " ".join(str(error).split())[:300]
    cause = f"cannot load the base {str(path)!r} ({type(error).__name__}: {reason})"
    if Path(path).is_file() and offline():
        beside = Path(path).absolute().with_suffix("")
        return (
            f"{cause}. HF_HUB_OFFLINE is set (in jobs unless you set it), so the file is configured by a folder beside "
            f"it: copy model_index.json and the folders of a diffusers base of the same kind to {beside}, or set "
            "HF_HUB_OFFLINE=0"
        )
    if Path(path).exists():
        return (
            f"{cause}. {Path(path).absolute()} is there but not complete: copy or fetch it again as a whole, with "
            "safetensors (diffusers' save_pretrained writes such a folder)."
        )
    if not HUB_ID.fullmatch(str(path)):
        looked = "" if Path(path).is_absolute() else f" in {Path.cwd()}"
        return f"base.path = {str(path)!r}: no such file or folder{looked}, and no hub id; correct the path"
    return (
        f"{cause}. Looked for the local folder or file "
        f"{Path(path).absolute()} and for the hub id {path}{f' at revision {revision}' if revision else ''} in "
        f"{constants.HF_HUB_CACHE}. While online, {remedy(str(path), table().get(str(path)), revision)} (a gated model "
        f"needs `hf auth login` and its licence accepted first), or give the path of a folder that diffusers' "
        f"save_pretrained wrote."
    )
