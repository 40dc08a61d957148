"""What to write instead of an unknown name or key: the nearest that would be accepted in its place.

`fields` tells them; a dataclass with the method `keys_without_effect(values)` names the keys that it refuses beside
others that are written.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import Any

INTERNAL = {"internal": True}
"""Metadata of a field that is no key of the configuration."""


def did_you_mean(word: object, names: Iterable[str]) -> str:
    """The closest name as a question, with a space after it; empty without a similar one."""
    close = difflib.get_close_matches(str(word), sorted(map(str, names)), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""


def nearest(word: object, known: Iterable[str]) -> str:
    """The closest known word as a hint, followed by all of them."""
    names = sorted(str(k) for k in known)
    return f"{did_you_mean(word, names)}known: {', '.join(names) or 'none'}"


def nearest_key(kind: Any, location: Iterable[str | int], value: Any, also: Iterable[str] = ()) -> str:
    """The hint for an unknown key: the closest that is accepted there, followed by all.

    Args:
        kind: annotation of a value. location: of the unknown key in it, by keys and indices. also: keys that are
            accepted beside those of `kind` itself.
    """
    *above, key = location
    for step in above:
        kind, value = below(kind, step), value[step]
    return nearest(key, {*accepted(dataclass_in(kind), value), *(() if above else also)})


def accepted(kind: Any, values: Mapping[str, Any]) -> list[str]:
    """The fields of a dataclass that are keys of the configuration, and not refused beside those that are written."""
    refused = getattr(kind, "keys_without_effect", lambda values: ())(values)
    return [f.name for f in dataclasses.fields(kind) if f.metadata != INTERNAL and f.name not in refused]


def below(kind: Any, step: str | int) -> Any:
    """The annotation of an entry of an annotated value: of a field, a mapping's value, or an element of a list."""
    if dataclasses.is_dataclass(kind):
        return typing.get_type_hints(kind).get(str(step))
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is dict:
        return parts[1]
    if typing.get_origin(kind) in (list, tuple):
        return parts[0] if isinstance(step, int) else None
    return next(filter(None, (below(part, step) for part in parts)), None)


def dataclass_in(kind: Any) -> Any:
    """The dataclass that an annotation is, or is a union or container of; None without one."""
    if dataclasses.is_dataclass(kind):
        return kind
    return next(filter(None, map(dataclass_in, typing.get_args(kind))), None)
