"""Read a study: params.yaml with the files laid over it, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resurgence.config.fields import ConfigError, build, mapping, read_yaml, unique
from resurgence.config.settings import make_eraser, make_method
from resurgence.config.stages import FinetuneConfig
from resurgence.config.study import Study
from resurgence.config.task import load_task
from resurgence.files import resolve_path


def make_study(config: Mapping[str, Any], root: Path = Path()) -> Study:
    """Build and check the study; paths in it are relative to root.

    Raises:
        ConfigError: naming key, value and remedy, for the first mistake found.
    """
    from resurgence.config.consistency import check_study

    given, config = dict(config), with_defaults_located(without_nulls(config), root)
    for key in ("erasers", "finetunes"):
        if key not in config:
            raise ConfigError(key, None, "is missing; add this key")
    config["erasers"] = {name: make_eraser(name, b) for name, b in mapping(config["erasers"], "erasers").items()}
    config["finetunes"] = {
        name: make_method(block, f"finetunes.{name}", FinetuneConfig, ("set", "tasks", "erasers", "seeds"))
        for name, block in mapping(config["finetunes"], "finetunes").items()
    }
    for key in {"loaded", "given"} & set(config):
        raise ConfigError(key, config[key], "unknown key; remove it")
    study = build(Study, config, "")
    unique("tasks.names", study.tasks.names)
    files = {name: root / study.tasks.folder / f"{name}.yaml" for name in study.tasks.names}
    study = dataclasses.replace(study, loaded={name: load_task(path) for name, path in files.items()}, given=given)
    check_study(study, root)
    return study


PATHS = (
    "base.path", "tasks.folder", "tasks.concepts", "tasks.general", "moments.prior", "moments.domain",
    "moments.domain.*", "erasers.*.captions", "erasers.*.words", "erasers.*.variants.*.captions",
    "erasers.*.variants.*.words", "finetune_sets.*.tercile.candidates", "scorers.*.path", "scorers.*.reference",
    "world",
)  # fmt: skip
"""Keys of the configuration whose values are files or folders."""


def with_defaults_located(config: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The configuration with each path of PATHS that is not below root, but in the checkout, as one of the checkout."""

    def located(value: Any, keys: list[str]) -> Any:
        if not keys:
            return resolve_path(value, root) if isinstance(value, str) and value else value
        if not isinstance(value, Mapping):
            return value
        return {k: located(v, keys[1:]) if keys[0] in (k, "*") else v for k, v in value.items()}

    found: Any = dict(config)
    for path in PATHS:
        found = located(found, path.split("."))
    return dict(found)


def without_nulls(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what an overlay takes out of the study below it, by writing null.

    That is an eraser, a fine-tune, a variant of them, a fine-tuning set, a scorer, or a setting of a scorer.
    """

    def taken_out(block: Any) -> Any:
        return {k: v for k, v in block.items() if v is not None} if isinstance(block, Mapping) else block

    kept = dict(config)
    for key in ("erasers", "finetune_sets", "finetunes", "scorers"):
        kept[key] = taken_out(kept[key]) if key in kept else {}
        if not isinstance(kept[key], Mapping):
            continue
        for name, block in kept[key].items():
            if key == "scorers":
                kept[key][name] = taken_out(block)
            elif isinstance(block, Mapping) and "variants" in block:
                kept[key][name] = {**block, "variants": taken_out(block["variants"])}
    return {key: value for key, value in kept.items() if key in config}


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Overlay one configuration on another as Snakemake does: mappings merge, everything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def load_study(paths: list[Path], root: Path = Path()) -> Study:
    """Read params.yaml and the files that overlay it."""
    config: dict[str, Any] = {}
    for path in paths:
        config = merge(config, read_yaml(path))
    return make_study(config, root)
