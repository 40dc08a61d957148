"""The words of the file of the base's world: concepts, scenes, hypernyms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from resurgence.config.fields import build, parse


@dataclasses.dataclass(frozen=True)
class WorldEntry:
    """A concept or scene of the file of the base's world; its other keys are for the drawings."""

    name: str
    hypernyms: tuple[str, ...] = ()


def world_entries(world: Mapping[str, Any], key: str, path: str) -> list[WorldEntry]:
    """The entries of a list in the file of the base's world; raises ConfigError as `build` does."""
    entries = parse(list[dict[str, Any]], world.get(key, []), f"{path}: {key}")
    fields = [field.name for field in dataclasses.fields(WorldEntry)]
    return [
        build(WorldEntry, {name: entry[name] for name in fields if name in entry}, f"{path}: {key}[{number}]")
        for number, entry in enumerate(entries)
    ]
