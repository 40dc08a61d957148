"""Strict configuration: frozen dataclasses built from YAML, in which every mistake names key, value and remedy.

`build` makes any dataclass from a mapping; `Task` is one erasure task, read from its own file by `load_task`. The
study around the tasks is in study.py. Nothing here imports torch: the Snakefile reads its configuration through it.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


class ConfigError(ValueError):
    """A mistake in the configuration: the key, the value seen and what to write instead."""

    def __init__(self, key: str, value: object, remedy: str) -> None:
        super().__init__(f"{key} = {value!r}: {remedy}")
        self.key, self.value, self.remedy = key, value, remedy


def nearest(word: object, known: Iterable[str]) -> str:
    """The closest known word as a hint, followed by all of them."""
    names = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(names) or 'none'}"


def known(key: str, value: object, names: Iterable[str]) -> None:
    """Raise unless value is one of the names."""
    if value not in (names := list(names)):
        raise ConfigError(key, value, f"not known here; {nearest(value, names)}")


def unique(key: str, values: Iterable[object]) -> None:
    """Raise when a value occurs twice."""
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ConfigError(key, value, "stands here twice; remove one of the two")
        seen.add(value)


def dotted(where: str, key: str) -> str:
    """Join a place and a key: `erasers.mace.lr`, or `config/tasks/ship.yaml: mapping` after a file."""
    return f"{where}: {key}" if where.endswith((".yaml", ".yml")) else f"{where}.{key}" if where else key


def at_least(key: str, value: float, low: float) -> None:
    """Raise when value is below low."""
    if value < low:
        raise ConfigError(key, value, f"must be at least {low:g}")


def one_place(key: str, template: str) -> None:
    """Raise unless a template has one place for the concept."""
    if template.count("{}") != 1:
        raise ConfigError(key, template, "must hold {} exactly once, where the concept goes")


def templates(key: str, value: str | tuple[str, ...]) -> None:
    """Raise for a list of templates that is empty, or has one without a place for the concept; a file is read later."""
    if not isinstance(value, str):
        if not value:
            raise ConfigError(key, [], 'is empty; write at least one template with {}, or "" for the built-in ones')
        for template in value:
            one_place(key, template)


def convert(key: str, value: Any, hint: Any) -> Any:
    """Return value as the annotated type (lists become tuples); raise ConfigError when it is another."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        for option in options[:-1]:
            try:
                return convert(key, value, option)
            except ConfigError:
                continue
        return convert(key, value, options[-1])
    if origin is Literal:
        known(key, value, arguments)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(key, value, f"must be a list; write [{value}]")
        inner = arguments if len(arguments) == len(value) and Ellipsis not in arguments else arguments[:1] * len(value)
        return tuple(convert(f"{key}[{i}]", v, h) for i, (v, h) in enumerate(zip(value, inner, strict=True)))
    if hint is dict or origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(key, value, "must be a mapping of keys to values")
        kind, inside = arguments or (Any, Any)
        return {convert(f"{key} (a key)", k, kind): convert(f"{key}.{k}", v, inside) for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, key)
    return scalar(key, value, hint)


def scalar(key: str, value: Any, kind: type) -> Any:
    """Check one number, text or truth value; whole numbers are numbers, true and false are not."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    if kind in (int, float) and isinstance(value, str) and EXPONENT.fullmatch(value):
        mantissa, exponent = value.lower().split("e")
        mantissa, exponent = mantissa + "." * ("." not in mantissa), exponent.lstrip("+")
        fixed = f"{mantissa}{'0' * mantissa.endswith('.')}e{'' if exponent.startswith('-') else '+'}{exponent}"
        raise ConfigError(key, value, f"is text in YAML 1.1, which wants point and sign in the number; write {fixed}")
    raise ConfigError(key, value, f"must be {WORDS.get(kind, kind.__name__)}, got {type(value).__name__}")


def build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """Make the dataclass from a mapping.

    Raises:
        ConfigError: for an unknown or missing key, a value of another type, or one that the class itself refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(where, values, "must be a mapping of keys to values")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(dotted(where, key), value, f"unknown key; {nearest(key, fields)}")
    for name, spec in fields.items():
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(dotted(where, name), None, "is missing; add this key")
    hints = typing.get_type_hints(cls)
    made = {key: convert(dotted(where, key), value, hints[key]) for key, value in values.items()}
    try:
        return cls(**made)
    except ConfigError as error:
        raise ConfigError(dotted(where, error.key), error.value, error.remedy) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(where, dict(values), str(error)) from error


class UniqueKeys(yaml.SafeLoader):
    """YAML in which a key written twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """The mapping of a node; ConfigError for a key written twice."""
        keys = [self.construct_object(k, deep=True) for k, _ in node.value if k.tag != "tag:yaml.org,2002:merge"]
        unique(f"line {node.start_mark.line + 1}, key", [k for k in keys if isinstance(k, str)])
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; raise ConfigError for a missing file, bad syntax or a key written twice."""
    if not Path(path).is_file():
        raise ConfigError("file", str(path), "does not exist; check the name and the folder you run in")
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigError("file", str(path), f"is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError("file", str(path), "must hold a mapping of keys to values")
    return values
