"""Strict configuration: frozen dataclasses built from YAML; every error names key, value and remedy.

`build` makes any dataclass from a mapping; `Task` is one erasure task, read from its own file by `load_task`. The
study around the tasks is in study.py. Nothing here imports torch: the Snakefile reads its configuration through it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import SchemaValidator

from resurgence.files import read_text

EXPONENT = re.compile(r"([-+]?\d+)\.?(\d*)[eE]([-+]?)(\d+)")
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
UNKNOWN = "unexpected_keyword_argument"  # pydantic's name of the error
LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
LIMITS = {
    **{"greater_than": "more than", "greater_than_equal": "at least"},
    **{"less_than": "less than", "less_than_equal": "at most"},
}
WORDS = {"int_type": "a whole number", "float_type": "a number", "string_type": "text", "bool_type": "true or false"}
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is 7 times faster, where PyYAML has it
T = TypeVar("T")
NO_TEMPLATE = 'is empty; write at least one template with {}, or "" for the built-in ones'
ONE_PLACE = "must hold {} exactly once, where the concept goes"
Count = Annotated[int, Field(ge=1, lt=2**31)]
Natural = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**62)]  # seed + number of the image is stored as int64
DdimSteps = Annotated[int, Field(ge=1, le=1000)]  # DDIM steps: not more than the base was trained with
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class ConfigError(ValueError):
    """An error in the configuration: the key, its value, and what to write instead."""

    def __init__(self, key: str, value: object, remedy: str) -> None:
        super().__init__(f"{key} = {value!r}: {remedy}")
        self.key, self.value, self.remedy = key, value, remedy

    def within(self, where: str) -> ConfigError:
        """The same error for a key below another, or in a file."""
        return ConfigError(dotted(where, self.key), self.value, self.remedy)


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
            raise ConfigError(key, value, "is listed twice; remove one")
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
        raise ConfigError(key, template, ONE_PLACE)


def templates(key: str, value: str | tuple[str, ...]) -> None:
    """Raise for a list of templates that is empty, or has one without a place for the concept; a file is read later."""
    if not isinstance(value, str):
        if not value:
            raise ConfigError(key, [], NO_TEMPLATE)
        for template in value:
            one_place(key, template)


def with_one_place(template: str) -> str:
    """Return a template that has one place for the concept."""
    if template.count("{}") != 1:
        raise ValueError(ONE_PLACE)
    return template


def not_empty(captions: tuple[str, ...]) -> tuple[str, ...]:
    """Return a list of templates that has at least one."""
    if not captions:
        raise ValueError(NO_TEMPLATE)
    return captions


Template = Annotated[str, AfterValidator(with_one_place)]
Captions = str | Annotated[tuple[Template, ...], AfterValidator(not_empty)]  # templates, a file, or "": built in


def lenient(schema: Any) -> Any:
    """The strict core schema, but with mappings accepted as dataclasses and lists as tuples, since YAML has neither."""
    if isinstance(schema, list):
        return [lenient(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: lenient(part) for key, part in schema.items()}
    return parts | {"strict": False} if schema.get("type") in ("dataclass", "tuple") else parts


@functools.cache
def validator(kind: Any) -> SchemaValidator:
    """Validator of a list of one value of a type; a list, because pydantic does not configure a bare dataclass."""
    return SchemaValidator(lenient(TypeAdapter(tuple[kind], config=STRICT).core_schema))


def parse(kind: Any, value: Any, key: str) -> Any:
    """Return a value as an instance of a type: mappings become dataclasses, lists tuples, whole numbers numbers.

    Raises:
        ConfigError: for an unknown or missing key, a value of another type, or one that a dataclass itself refuses.
    """
    try:
        return validator(kind).validate_python([value])[0]
    except ValidationError as error:
        errors = error.errors(include_url=False)
    raise config_error(first(errors, [value]), kind, [value], key)


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a dataclass from a mapping; raises ConfigError as `parse` does."""
    instance: T = parse(cls, values, where)
    return instance


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Return a mapping with text as keys; raises ConfigError as `parse` does."""
    items: dict[str, Any] = parse(dict[str, Any], value, where)
    return items


def keys_in(location: Iterable[Any], value: Any) -> list[str | int]:
    """The keys and indices of a location in a value; pydantic's locations also name the branches of unions."""
    keys = []
    for step in location:
        if isinstance(step, int) if isinstance(value, list | tuple) else isinstance(value, dict) and step in value:
            keys.append(step)
            value = value[step]
    return keys


def first(errors: list[Any], value: Any) -> Any:
    """The error to report: an unknown key, else a missing one, else the first; in a union the deepest, or the last."""
    chosen = min(errors, key=lambda error: (error["type"] != UNKNOWN, error["type"] != "missing"))
    if chosen["type"] in (UNKNOWN, "missing"):
        return chosen
    depth = len(keys_in(chosen["loc"], value))
    branches = [error for error in errors if error["loc"][:depth] == chosen["loc"][:depth]]
    return max(reversed(branches), key=lambda error: len(error["loc"]))


def config_error(error: Any, kind: Any, value: Any, key: str) -> ConfigError:
    """Key, value and remedy of an error that pydantic found in a value of a type."""
    where, entered, last, details = key, error["input"], str(error["loc"][-1]), error.get("ctx", {})
    for step in keys_in(error["loc"], value)[1:]:
        where = f"{where}[{step}]" if isinstance(step, int) else dotted(where, step)
    cause = details.get("error")
    if isinstance(cause, ConfigError):
        return cause.within(where)
    match error["type"]:
        case "value_error":
            remedy = str(cause)
        case "missing":
            return ConfigError(dotted(where, last), None, "is missing; add this key")
        case "unexpected_keyword_argument":
            remedy = f"unknown key; {nearest(last, field_names(kind, error['loc'][:-1]))}"
        case "literal_error":
            options = re.split(", | or ", details["expected"].replace("'", ""))
            remedy = f"not known here; {nearest(entered, options)}"
        case "tuple_type":
            remedy = f"must be a list; write [{entered}]"
        case "dict_type" | "dataclass_type":
            remedy = "must be a mapping of keys to values"
        case limit if limit in LIMITS:
            (bound,) = details.values()
            shown = bound if isinstance(bound, int) else f"{bound:g}"
            remedy = "must be positive" if (limit, bound) == ("greater_than", 0) else f"must be {LIMITS[limit]} {shown}"
        case "int_type" | "float_type" if isinstance(entered, str) and (number := EXPONENT.fullmatch(entered)):
            digits, fraction, sign, power = number.groups("")
            fixed = f"{digits}.{fraction or 0}e{sign or '+'}{power}"
            remedy = f"is text in YAML 1.1, which wants point and sign in the number; write {fixed}"
        case "int_type" if isinstance(entered, str) and LEADING_ZERO.fullmatch(entered):
            remedy = f"is text, as it begins with 0; write {entered.lstrip('+-0')}"
        case "finite_number":
            remedy = "must be a finite number; write one, or leave the key out for the default"
        case "int_parsing_size":
            remedy = "is too large; write a whole number below 2^62"
        case "string_type" if not isinstance(entered, Mapping | list | None):
            remedy = f"must be text, got {type(entered).__name__}; put it in quotes"
        case other:
            remedy = f"must be {WORDS[other]}, got {type(entered).__name__}" if other in WORDS else error["msg"]
    return ConfigError(where, entered, remedy)


def field_names(kind: Any, location: Iterable[str | int]) -> list[str]:
    """Names of the fields of the dataclass at a location below a type."""
    kind = dataclass_in(kind)
    for step in location:
        kind = dataclass_in(typing.get_type_hints(kind).get(str(step))) or kind
    return [field.name for field in dataclasses.fields(kind)]


def dataclass_in(kind: Any) -> Any:
    """The dataclass that an annotation is, or is a union or container of; None without one."""
    if dataclasses.is_dataclass(kind):
        return kind
    return next(filter(None, map(dataclass_in, typing.get_args(kind))), None)


class StrictYaml(Loader):  # type: ignore[misc]
    """YAML in which a key written twice is an error, and so is a number that YAML 1.1 reads otherwise than written."""

    def number(self, node: yaml.ScalarNode) -> Any:
        """The value of a whole number or fraction; ConfigError for octal (010 is 8) and sexagesimal (1:30 is 90)."""
        text, where = str(node.value), f"line {node.start_mark.line + 1}"
        integer = node.tag == "tag:yaml.org,2002:int"
        value = self.construct_yaml_int(node) if integer else self.construct_yaml_float(node)
        if integer and LEADING_ZERO.fullmatch(text):
            sign, decimal = "-" * text.startswith("-"), text.replace("_", "").lstrip("+-0") or "0"
            raise ConfigError(where, text, f"is octal in YAML 1.1 and would be {value}; write {sign}{decimal}")
        if SEXAGESIMAL.fullmatch(text):
            raise ConfigError(where, text, f"is in base 60 in YAML 1.1 and would be {value}; write it in quotes")
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node; raises ConfigError for a key written twice."""
        keys = [self.construct_object(k, deep=True) for k, _ in node.value if k.tag != "tag:yaml.org,2002:merge"]
        unique(f"line {node.start_mark.line + 1}, key", [k for k in keys if isinstance(k, str)])
        items: dict[Any, Any] = super().construct_mapping(node, deep)
        return items


StrictYaml.add_constructor("tag:yaml.org,2002:int", StrictYaml.number)
StrictYaml.add_constructor("tag:yaml.org,2002:float", StrictYaml.number)


def yaml_value(text: str, key: str, value: str) -> Any:
    """The value of YAML text; raises ConfigError for bad syntax, a key written twice, an octal or sexagesimal number.

    Args:
        key, value: what the text belongs to, for messages: a file or an option.
    """
    try:
        return yaml.load(text, Loader=StrictYaml)
    except yaml.YAMLError as error:
        remedy = f"is not valid YAML: {' '.join(str(error).split())}; correct that line, or put text in quotes"
        raise ConfigError(key, value, remedy) from error
    except ConfigError as error:
        raise ConfigError(f"{key} {value}, {error.key}", error.value, error.remedy) from error
    except (ValueError, OverflowError, RecursionError) as error:  # 2024-13-45, nesting
        raise ConfigError(key, value, f"has a value that is no YAML ({error}); put text in quotes") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; raise ConfigError for a missing file and as `yaml_value` does, ValueError as `read_text`."""
    if not Path(path).is_file():
        raise ConfigError("file", str(path), "does not exist; check the name and the folder you run in")
    values = yaml_value(read_text(Path(path)), "file", str(path))
    if not isinstance(values, dict):
        raise ConfigError("file", str(path), "must hold a mapping of keys to values; write key: value lines")
    return values
