"""Configuration classes by name: those of this package, and entry points of other packages."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from resurgence.config.fields import ConfigError

T = TypeVar("T")


def registered(group: str, shipped: Mapping[str, str]) -> dict[str, str]:
    """Name -> module:Class of the shipped classes, then of the entry points of a group in alphabetic order.

    Raises:
        ConfigError: an entry point with the name of another class.
    """
    places = dict(shipped)
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        if (other := places.setdefault(entry.name, entry.value)) != entry.value:
            raise ConfigError(f"entry point {group}", entry.name, f"is {other} already; choose another name")
    return places


def registered_class(group: str, name: str, place: str, base: type[T]) -> type[T]:
    """The class at a place, module:Class.

    Raises:
        ConfigError: it cannot be imported, or is no subclass of `base`.
    """
    key = f"entry point {group}: {name}"
    try:
        declared = EntryPoint(name, place, group).load()
    except (ImportError, AttributeError) as error:
        remedy = f"cannot be imported ({error}); correct the entry point, or uninstall its package"
        raise ConfigError(key, place, remedy) from error
    if not (isinstance(declared, type) and issubclass(declared, base)):
        raise ConfigError(key, place, f"is no subclass of {group}.{base.__name__}; write module:Class of one")
    return declared
