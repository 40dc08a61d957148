"""Read and check a study: params.yaml and the overlays on it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resurgence.config.fields import ConfigError, build, mapping, read_yaml, unique
from resurgence.config.hints import nearest
from resurgence.config.settings import Tasks, make_eraser, make_method
from resurgence.config.stages import FinetuneConfig
from resurgence.config.study import WORLD, Study
from resurgence.config.task import Kind, Task, load_task
from resurgence.files import resolve_path


def make_study(config: Mapping[str, Any], root: Path = Path()) -> Study:
    """Build and check the study; paths in it are relative to root.

    Raises:
        ConfigError: key, value and remedy of the first error.
    """
    from resurgence.config.consistency import check_study

    source, config = dict(config), with_paths_resolved({"world": WORLD, **without_nulls(config)}, root)
    for key in ("erasers", "finetunes"):
        if key not in config:
            raise ConfigError(key, None, "is missing; add this key")
    config["erasers"] = {name: make_eraser(name, b) for name, b in mapping(config["erasers"], "erasers").items()}
    config["finetunes"] = {
        name: make_method(block, f"finetunes.{name}", FinetuneConfig, "finetunes")
        for name, block in mapping(config["finetunes"], "finetunes").items()
    }
    for key in {"loaded", "source"} & set(config):
        raise ConfigError(key, config[key], "unknown key; remove it")
    study = build(Study, config, "")
    unique("tasks.names", study.tasks.names)
    files = task_files(study.tasks, root)
    tasks = {name: with_seeds(load_task(path), study.tasks.seeds) for name, path in files.items()}
    loaded = {
        name: dataclasses.replace(task, **with_paths_resolved({"erasers": task.erasers}, root))
        for name, task in tasks.items()
    }
    study = dataclasses.replace(study, loaded=loaded, source=source)
    check_study(study, root)
    return study


def task_files(tasks: Tasks, root: Path) -> dict[str, Path]:
    """Task -> its file; raises ConfigError for a folder without tasks, and for a task without a file."""
    folder = root / tasks.folder
    there = {path.stem for path in folder.glob("*.yaml")}
    if not there:
        raise ConfigError("tasks.folder", tasks.folder, "holds no task files (.yaml); correct the path")
    for name in tasks.names:
        if name not in there:
            remedy = f"has no file {name}.yaml in {tasks.folder}; {nearest(name, there)}"
            raise ConfigError("tasks.names", name, remedy)
    return {name: folder / f"{name}.yaml" for name in tasks.names}


def with_seeds(task: Task, seeds: Mapping[Kind, Mapping[Any, int]]) -> Task:
    """The task with other numbers of images for the roles that it has: kind of task -> role -> number."""
    changed = {role: seeds.get(task.kind, {}).get(role, number) for role, number in task.seeds.items()}
    return dataclasses.replace(task, seeds=changed)


PATHS = (
    "base.path", "tasks.folder", "tasks.concepts", "tasks.general", "tasks.general.*", "tasks.tuning_for",
    "moments.prior", "moments.domain", "moments.domain.*", "erasers.*.captions", "erasers.*.words",
    "erasers.*.variants.*.captions",
    "erasers.*.variants.*.words", "erasers.*.path", "erasers.*.variants.*.path",
    "finetune_sets.*.tercile.candidates", "finetune_sets.*.images", "finetune_sets.*.images.*",
    "finetune_sets.*.made_by.base", "concept_images.anchor_captions.*",
    "scorers.*.path", "scorers.*.pictures",
    "scorers.*.reference",
    "world",
)  # fmt: skip
"""Keys of the configuration whose values are files or folders."""


def with_paths_resolved(config: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The configuration with each path of PATHS that is not below root, but in the checkout, as one of the checkout."""

    def resolved(value: Any, keys: list[str]) -> Any:
        if not keys:
            return resolve_path(value, root) if isinstance(value, str) and value else value
        if not isinstance(value, Mapping):
            return value
        return {k: resolved(v, keys[1:]) if keys[0] in (k, "*") else v for k, v in value.items()}

    return dict(functools.reduce(lambda values, path: resolved(values, path.split(".")), PATHS, config))


def without_nulls(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what an overlay removes from the study below it, by the value null.

    That is an eraser, a fine-tune, a variant of them, a fine-tuning set, a scorer, or a setting of a scorer.
    """

    def present(block: Any) -> Any:
        return {k: v for k, v in block.items() if v is not None} if isinstance(block, Mapping) else block

    def entry(key: str, block: Any) -> Any:
        if key != "scorers" and isinstance(block, Mapping) and "variants" in block:
            return {**block, "variants": present(block["variants"])}
        return present(block) if key == "scorers" else block

    values = dict(config)
    for key in config.keys() & {"erasers", "finetune_sets", "finetunes", "scorers"}:
        if isinstance(block := present(values[key]), Mapping):
            values[key] = {name: entry(key, part) for name, part in block.items()}
    return values


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Overlay one configuration on another as Snakemake does: mappings merge, other values are replaced."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def check_below(files: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raise ConfigError for a file that is laid over other studies than those that are given with it.

    Args:
        files: the files of a study, params.yaml and its overlays, with their contents.
    """
    given = {values.get("study") for values in files.values()}
    for path, values in files.items():
        over = values.get("over")
        if isinstance(over, list) and over and not given & set(map(str, over)):
            remedy = "of these studies none is given; name the file of one before this file"
            raise ConfigError(f"{path}: over", over, remedy)


def load_study(paths: list[Path], root: Path = Path()) -> Study:
    """Read params.yaml and its overlays."""
    files = {path: read_yaml(path) for path in paths}
    check_below(files)
    return make_study(functools.reduce(merge, files.values(), {}), root)
