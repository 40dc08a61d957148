"""Models of an audit on the Hugging Face hub: ID or ID@REVISION, fixed to a commit.

The study and the card record the commit, and a rerun in the same folder takes it again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from resurgence.config.fields import ConfigError
from resurgence.pretrained.checksums import HUB_ID, locate, remedy, table

COMMIT = re.compile(r"[0-9a-f]{40}")
SECONDS = 10.0
"""To wait for the hub."""


class OtherAudit(ConfigError):
    """The folder is that of another audit, which is left as it is."""


class Model(NamedTuple):
    """A model as the command line names it, fixed."""

    name: str  # with the commit, for the card and the command that repeats the audit
    path: Path  # where it lies
    hub: str | None = None  # its id
    commit: str | None = None


def hub_model(source: str) -> tuple[str, str] | None:
    """Id and revision of a hub model, "" for none; None for a path."""
    name, _, revision = source.partition("@")
    is_id = HUB_ID.fullmatch(name) and not Path(source).exists() and not Path(name).parent.exists()
    return (name, revision) if is_id else None


def fixed(source: str, option: str, recorded: Mapping[str, str]) -> Model:
    """A model of the command line: a path as it is, a hub id at the commit of its revision.

    Args:
        option: for messages. recorded: hub id -> commit, of an earlier run in the same folder.

    Raises:
        ConfigError: no such path, a revision that the hub does not know or cannot be asked for, or one that another run
            in this folder has not.
        FileNotFoundError: the model is not in the hub's cache.
    """
    parts = hub_model(source)
    if parts is None:
        if not Path(source).exists():
            raise ConfigError(option, source, "no such file or folder; correct the path")
        return Model(source, Path(source))
    name, revision = parts
    commit = recorded[name] if name in recorded and not revision else resolved(name, revision, option, source)
    if recorded.get(name, commit) != commit:
        remedy_text = f"the audit in this folder is of {name}@{recorded[name]}; name another --out"
        raise OtherAudit(option, source, remedy_text)
    place = locate(name, commit)
    if place is None:
        get = remedy(name, table().get(name), commit)
        raise FileNotFoundError(f"{option} = {f'{name}@{commit}'!r}: not in the hub's cache; {get}")
    return Model(f"{name}@{commit}", place, name, commit)


def resolved(name: str, revision: str, option: str, source: str) -> str:
    """The commit of a branch, tag or commit; "" is the newest.

    Raises:
        ConfigError: the hub does not know it, or cannot be asked.
    """
    if COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    of_network = HfHubHTTPError.__bases__  # of the library that asks, which the hub's own errors derive from
    try:
        commit = HfApi().model_info(name, revision=revision or None, timeout=SECONDS).sha
    except (HFValidationError, OSError, *of_network) as error:
        reason, place = (str(error).strip().splitlines() or [type(error).__name__])[0], locate(name, revision or None)
        there = f", such as {place.name}, which is in the hub's cache" if place is not None else ""
        remedy_text = f"the hub does not say its commit ({reason}); write {name}@REVISION with the commit{there}"
        raise ConfigError(option, source, remedy_text) from error
    if commit is None:
        raise ConfigError(option, source, f"the hub names no commit; write {name}@REVISION with one")
    return commit
