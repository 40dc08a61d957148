"""The words of the file of the base's world: concepts, characters, styles, scenes, synonyms, hypernyms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from resurgence.config.fields import build, parse


@dataclasses.dataclass(frozen=True)
class WorldEntry:
    """A concept, character, style or scene of the file of the base's world; its other keys are for the drawings."""

    name: str
    synonyms: tuple[str, ...] = ()
    hypernyms: tuple[str, ...] = ()
    twin: str | None = None  # the concept that differs by gender alone


def world_entries(world: Mapping[str, Any], key: str, path: str) -> list[WorldEntry]:
    """The entries of a list in the file of the base's world; raises ConfigError as `build` does."""
    entries = parse(list[dict[str, Any]], world.get(key, []), f"{path}: {key}")
    fields = [field.name for field in dataclasses.fields(WorldEntry)]
    return [
        build(WorldEntry, {name: entry[name] for name in fields if name in entry}, f"{path}: {key}[{number}]")
        for number, entry in enumerate(entries)
    ]


def all_entries(world: Mapping[str, Any], path: str) -> list[WorldEntry]:
    """All that a task may erase: concepts, characters and styles; raises ConfigError as `build` does."""
    return [entry for key in ("concepts", "characters", "styles") for entry in world_entries(world, key, path)]
