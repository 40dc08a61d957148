"""Write the JSON schema of a study and the table of its keys: `python -m resurgence.config.schema`.

Both come from the classes of the configuration and the docstrings below their fields.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from resurgence.config.settings import OF_ERASER
from resurgence.config.stages import FinetuneConfig
from resurgence.config.study import Study

SCHEMA, README = Path("workflow/schemas/params.schema.yaml"), Path("config/README.md")
BEGIN, END = "<!-- keys: begin, written by python -m resurgence.config.schema -->", "<!-- keys: end -->"
TOP = {
    "title": "Parameters of a study",
    "description": "The keys of params.yaml. In a study laid over it, null takes an eraser, a variant, a set, a "
    "fine-tune or a scorer out. What has to fit together (concepts, files, settings of a method) is checked when the "
    "study is read.",
}
METHOD = "Method of erasing, or none: a control that changes nothing. By default the name of the eraser."
VARIANTS = "Name -> changed settings and limits of a variant; the variant `default` is not printed in paths."
NULL = {"type": "null"}
WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


class WithoutAliases(yaml.SafeDumper):
    """YAML in which what occurs twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """No value is an alias of another."""
        return True


class WithoutTitles(GenerateJsonSchema):
    """JSON schema without a title for each key, and open where the settings of a method are."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """No key has a title."""
        return False

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        """Anything may stand where a class is kept."""
        return {}


def inlined(schema: Any, classes: Mapping[str, Any]) -> Any:
    """The schema with the definition of each class where it is referred to, and every description on one line."""
    if isinstance(schema, list):
        return [inlined(part, classes) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        named = classes[schema["$ref"].rpartition("/")[2]]
        schema = {key: value for key, value in {**named, **schema}.items() if key not in ("$ref", "title")}
    if isinstance(schema.get("description"), str):
        schema = schema | {"description": " ".join(schema["description"].split())}
    return {key: inlined(value, classes) for key, value in schema.items()}


def method_schema(
    common: Mapping[str, Any], method: Mapping[str, Any], variant: Mapping[str, Any], known: bool
) -> dict[str, Any]:
    """The schema of a method with its variants, or null.

    Args:
        common: keys of both. method: keys of the method only. variant: keys of a variant only. known: whether the
            settings are among the keys; else other keys are settings.
    """

    def block(keys: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": ["object", "null"], "properties": {**keys}, "additionalProperties": not known}

    variants = {"type": "object", "description": VARIANTS, "minProperties": 1}
    variants["additionalProperties"] = block({**variant, **common})
    return block({**method, **common, "variants": variants})


def study_schema() -> dict[str, Any]:
    """The JSON schema of params.yaml."""
    config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)
    kinds = TypeAdapter(tuple[Study, FinetuneConfig], config=config)
    classes = kinds.json_schema(schema_generator=WithoutTitles)["$defs"]
    schema = inlined(classes["Study"], classes)
    keys, changes = schema["properties"], inlined(classes["Variant"], classes)["properties"]
    del keys["loaded"], keys["source"]  # no keys: the task files, and the configuration as in its files
    of_eraser, method = {key: changes[key] for key in OF_ERASER}, {"method": {"type": "string", "description": METHOD}}
    limits = {key: changes[key] for key in ("tasks", "seeds")}
    keys["erasers"] |= {
        "minProperties": 1,
        "additionalProperties": method_schema(limits, method, of_eraser, known=False),
    }
    limits = {key: changes[key] for key in ("set", "tasks", "erasers", "seeds")}
    limits |= inlined(classes["FinetuneConfig"], classes)["properties"]
    keys["finetunes"]["additionalProperties"] = method_schema(limits, {}, {}, known=True)
    for key in ("finetune_sets", "scorers"):
        keys[key]["additionalProperties"] = {"anyOf": [keys[key]["additionalProperties"], NULL]}
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, **TOP}


def value_text(schema: Mapping[str, Any]) -> str:
    """What a key takes, in words."""
    if "anyOf" in schema:
        return " or ".join(map(value_text, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list ({value_text(schema['items'])})"
    return WORDS.get(str(schema.get("type")), "mapping")


def blocks(schema: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The mappings with known keys in a value, each with the path to it: NAME for any name, [] for an entry."""
    for option in (schema, *schema.get("anyOf", [])):
        if "properties" in option:
            yield ".", option
        for path, inner in ((".NAME", option.get("additionalProperties")), ("[]", option.get("items"))):
            if isinstance(inner, dict):
                yield from ((path + rest, block) for rest, block in blocks(inner))


def rows(schema: Mapping[str, Any], where: str = "", above: Collection[str] = ()) -> Iterator[str]:
    """The rows of the table of a mapping's keys, and of the keys below them, but of a variant without its method's."""
    for key, part in schema["properties"].items():
        if key in above:
            continue
        default = f"`{json.dumps(part['default'])}`" if "default" in part else ""
        default = "needed" if key in schema.get("required", ()) else default
        yield f"| `{where}{key}` | {value_text(part)} | {default} | {part.get('description', '')} |"
        for path, block in blocks(part):
            yield from rows(block, f"{where}{key}{path}", schema["properties"] if key == "variants" else ())


def schema_text() -> str:
    """The file of the schema."""
    head = "# Written by python -m resurgence.config.schema from the classes of resurgence.config; change those.\n"
    return head + yaml.dump(study_schema(), Dumper=WithoutAliases, sort_keys=False, width=120, allow_unicode=True)


def readme_text(before: str) -> str:
    """The README of the configuration with its table of keys written again."""
    head, _, rest = before.partition(BEGIN)
    table = "\n".join(["| Key | Value | Default | Meaning |", "|---|---|---|---|", *rows(study_schema())])
    return f"{head}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Write both files of the project in this folder."""
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    README.write_text(readme_text(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
