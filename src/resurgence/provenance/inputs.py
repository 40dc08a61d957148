"""Checks of the inputs of a command before the work: files are as they were written, deltas follow their parents."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resurgence.files import files_below, known_sha256, sha256
from resurgence.provenance.manifest import MANIFEST, RUN, as_written, digest_of, files_of, read_manifest

log = logging.getLogger(__name__)
LOADED = (".parquet", ".safetensors")  # files that a command reads because they lie in a folder
PARENT = re.compile(r"delta (\d+)(?:: (.+))?")  # a parent among the inputs of a command's manifest
BASE_DELTAS = "base_deltas"  # parameter of a command's manifest: the deltas in an exported base
CHANGES = ("delta", "weights")  # last parts of the folders of parents among the inputs of a study's manifest


class Parent(NamedTuple):
    """A delta that another one was computed on, as its manifest has it."""

    label: str
    digest: str


def artefact_of(path: Path) -> Path | None:
    """The folder of the artefact that a file or folder is or belongs to; None without one.

    Raises:
        ValueError: its manifest is damaged.
    """
    path = Path(os.path.realpath(path))
    if contents(path):
        return path
    return next((folder for folder in path.parents if listed(folder, path)), None)


def listed(folder: Path, path: Path) -> dict[str, str]:
    """The files at or below a real path that the manifest of an artefact lists: path from its folder -> SHA-256."""
    place = path.relative_to(folder)
    files: dict[str, str] = contents(folder).get("files", {})
    return {name: digest for name, digest in files.items() if Path(name).is_relative_to(place)}


def contents(folder: Path) -> dict[str, Any]:
    """The manifest of an artefact; empty for another folder, also one with a manifest.json of another program.

    Raises:
        ValueError: it is damaged: the folder also holds the record of a run.
    """
    if not (folder / MANIFEST).is_file():
        return {}
    try:
        manifest = read_manifest(folder)
    except ValueError:
        if (folder / RUN).is_file():
            raise
        return {}
    return manifest if "kind" in manifest else {}


def check_whole(paths: Iterable[Path]) -> None:
    """Compare the files and folders that a command reads with the manifests of their artefacts.

    Raises:
        ValueError: one line for each file that has changed, is missing, or was added and would be read.
    """
    if errors := [error for path in paths for error in differences(path)]:
        raise ValueError("\n".join(errors))


def differences(path: Path) -> list[str]:
    """One sentence, with the remedy, for each file of an artefact at or below a path that is not as it was written."""
    if (folder := artefact_of(path)) is None:
        return []
    path = Path(os.path.realpath(path))
    files = listed(folder, path)
    loaded = [file for file in files_below(path) if file.suffix in LOADED]
    added = [file for file in loaded if file.relative_to(folder).as_posix() not in files]
    errors = as_written(folder, files, known_sha256)
    errors += [f"{file} was added to {folder} after that was written" for file in added]
    return [f"{error}; restore it, or run the command that writes {folder} again" for error in errors]


def label_of(folder: Path) -> str:
    """The name of a delta for manifests and messages: `uce`, or `lora/step-000300`."""
    place, artefact = Path(os.path.realpath(folder)), artefact_of(folder)
    return place.relative_to(artefact.parent).as_posix() if artefact else place.name


def parents(folder: Path) -> list[Parent] | None:
    """The deltas that a delta was computed on, or an exported base holds, in order; None where no manifest has them."""
    if (artefact := artefact_of(folder)) is None:
        return None
    manifest = contents(artefact)
    inputs = manifest.get("inputs", {}).items()
    deltas = [(match, digest) for name, digest in inputs if (match := PARENT.fullmatch(name))]
    deltas.sort(key=lambda pair: int(pair[0][1]))
    changes = [(Path(name).parent, digest) for name, digest in inputs if Path(name).name == MANIFEST]
    changes = [(folder, digest) for folder, digest in changes if folder.name in CHANGES]
    changes.sort(key=lambda pair: len(pair[0].parts))  # the path of a model contains those of the models before it
    return [
        *(Parent(*pair) for pair in manifest.get("parameters", {}).get(BASE_DELTAS, ())),
        *(Parent(match[2] or f"the delta with digest {digest[:12]}", digest) for match, digest in deltas),
        *(Parent(folder.as_posix(), digest) for folder, digest in changes),
    ]


def digests(folder: Path) -> set[str]:
    """The digests by which manifests refer to a delta: of the folder, and of the artefact if this is its last step."""
    artefact = artefact_of(folder)
    steps = sorted(artefact.glob("step-*")) if artefact else []
    is_last = bool(steps) and steps[-1].samefile(folder)
    return {digest_of(folder), *([sha256(steps[-1].parent / MANIFEST)] if is_last else [])}


def check_parents(folders: Sequence[Path], base: Path | None = None) -> None:
    """Compare the deltas before each delta with those that it was computed on.

    A delta of the base alone may follow others, with a warning; a delta without a manifest follows any.

    Args:
        folders: deltas in the order of application. base: the folder or file of the base, if it is local.

    Raises:
        ValueError: a delta that was computed on others, naming them.
    """
    before = [({parent.digest}, parent.label) for parent in (parents(base) if base else None) or []]
    for folder in folders:
        wanted, names = parents(folder), [name for _, name in before]
        if wanted is None:
            log.info("%s has no manifest, so the model that it was computed on is not known", folder)
        elif not wanted and before:
            log.warning("%s was computed on the base alone and follows %s: a delta of whole tensors replaces what the "
                        "earlier ones changed in them", folder, ", ".join(names))  # fmt: skip
        elif wanted and not follows(wanted, [known for known, _ in before]):
            labels = " ".join(parent.label for parent in wanted)
            present = f"follows {', '.join(names)}" if names else "is applied to the base alone"
            raise ValueError(f"{folder} was trained on the base with {labels}, but here it {present}; give --delta "
                             f"{labels} before it and no other delta")  # fmt: skip
        if wanted is not None and base is not None and not is_of_base(folder, base):
            log.warning("%s was computed on another base than %s, or its files have changed", folder, base)
        before.append((digests(folder), label_of(folder)))


def follows(wanted: Sequence[Parent], before: Sequence[set[str]]) -> bool:
    """Whether the deltas before a delta, by their digests, are its parents."""
    return len(wanted) == len(before) and all(p.digest in known for p, known in zip(wanted, before, strict=True))


def is_of_base(folder: Path, base: Path) -> bool:
    """Whether a delta was computed on a base with these files, as far as manifests have them.

    A base with deltas in it has other files than the base that they belong to.
    """
    artefact = artefact_of(folder)
    manifest = contents(artefact) if artefact else {}
    if parents(base) or BASE_DELTAS in manifest.get("parameters", {}):
        return True
    wanted = {
        digest for name, digest in manifest.get("inputs", {}).items() if name == "base" or name.endswith(".safetensors")
    }
    return wanted <= {digest_of(base), *(files_of(base).values() if base.is_dir() else ())}
