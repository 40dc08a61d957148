"""Reference pictures of the scorers `reference` and `celebrity_stand_in`: which file shows what. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from resurgence.config.fields import ConfigError
from resurgence.diffusion.pictures import picture_files

if TYPE_CHECKING:
    from resurgence.config.study import Study
    from resurgence.config.task import Kind

KEY = "scorers.reference.pictures"
LEAST = 2  # pictures of a group: one is left out to measure errors


def reference_pictures(folder: Path, others: str, key: str = KEY) -> dict[str, list[Path]]:
    """Name of each group -> its pictures: concepts, then others.

    A folder is a concept with all pictures below it. The pictures of `others` are a group, and those of each folder
    in it another one, `others/NAME`: the mean of many different things would be near to none of them.

    Args:
        key: the setting that names the folder, for messages.

    Raises:
        ConfigError: no such folder, no concept, no folder of others, or a group of fewer than 2 pictures.
    """
    if not folder.is_dir():
        raise ConfigError(key, str(folder), "no such folder; name one with a folder of pictures for each concept")
    groups: dict[str, list[Path]] = {}
    for place in sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith(".")):
        for file in picture_files(place).pictures:
            groups.setdefault(group_of(file.relative_to(folder), others), []).append(file)
    concepts = [name for name in groups if not is_other(name, others)]
    if not concepts or len(concepts) == len(groups):
        missing = "a concept" if not concepts else f"others ({others})"
        raise ConfigError(key, str(folder), f"has no folder with pictures of {missing}; add one")
    for name, files in groups.items():
        if len(files) < LEAST:
            raise ConfigError(key, str(folder), f"has {len(files)} picture of {name}; give at least {LEAST}")
    return {name: groups[name] for name in [*concepts, *(name for name in groups if is_other(name, others))]}


def check_concepts(study: Study, groups: Iterable[str], pictures: str, kinds: Iterable[Kind] | None) -> None:
    """Raise ConfigError unless every concept of the tasks of these kinds (None: of all) is a group of the pictures."""
    for name, task in study.loaded.items():
        needed = (*task.erase, *task.retain) if kinds is None or task.kind in kinds else ()
        if lacking := [concept for concept in needed if concept not in groups]:
            remedy = f"has no folder of reference pictures in {pictures}; add one, or take the concept out"
            raise ConfigError(f"{study.tasks.folder}/{name}.yaml", lacking[0], remedy)


def group_of(file: Path, others: str) -> str:
    """The group of a picture, by its path below the folder of reference pictures."""
    first, *below = file.parts[:-1]
    return f"{first}/{below[0]}" if first == others and below else first


def is_other(name: str, others: str) -> bool:
    """Whether a group shows none of the concepts."""
    return name == others or name.startswith(f"{others}/")
