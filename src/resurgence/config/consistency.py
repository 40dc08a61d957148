"""What must fit together before a job starts: files, concepts, names, and the settings of every combination.

The configuration classes check themselves; here is what only shows when they meet.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resurgence.config.erasers import eraser_config, erasers
from resurgence.config.experiment_cells import cells_of, row_of, setting_of
from resurgence.config.fields import NAME, ConfigError, build, known, nearest, one_place, read_yaml
from resurgence.config.model_path import method_name
from resurgence.config.scorers import scorer_config
from resurgence.files import resolve_path

if TYPE_CHECKING:
    from resurgence.config.study import Study

EXPERIMENT = re.compile(r"[a-z][a-z0-9_]*")  # becomes the name of a rule


def check_experiments(study: Study) -> None:
    """Raise ConfigError for an experiment that names what the study does not have."""
    erasers = {method_name(e, v) for e, m in study.erasers.items() for v in m.variants}
    finetunes = {method_name(f, v) for f, m in study.finetunes.items() for v in m.variants}
    for name, one in study.experiments.items():
        place = f"experiments.{name}"
        if not EXPERIMENT.fullmatch(name):
            raise ConfigError("experiments", name, "use small letters, digits and _: it becomes the name of a rule")
        for key, names in (("tasks", study.tasks.names), ("erasers", erasers), ("finetunes", finetunes)):
            for value in getattr(one, key):
                known(f"{place}.{key}", value, names)
        for value in one.sets:
            known(f"{place}.sets", value, study.finetune_sets)
        if one.kind == "members":
            continue
        found = cells_of(study, name)
        rows = [row_of(study, cell) for cell in found]
        for key, values in (("task", one.tasks), ("eraser", one.erasers), ("finetune", one.finetunes)):
            for value in values:
                if not any(row[key] == value for row in rows):
                    raise ConfigError(
                        f"{place}.{key}s", value, "has no cell with the others named here; look at the limits "
                        "(tasks, erasers) of its variants"
                    )  # fmt: skip
        for number, claim in enumerate(one.claims):
            for key, chosen in (("of", claim.of), ("against", claim.against)):
                if chosen and not any(chosen.holds({**row, "role": r}) for row in rows for r in one.roles):
                    where = f"{place}.claims[{number}].{key}"
                    raise ConfigError(where, dataclasses.asdict(chosen), "is no row of this experiment; see its lists")
        if one.kind == "line":
            for cell in found:
                setting_of(study, cell, one.along, f"{place}.along")


WEIGHTS = Path("config/weights.yaml")  # what is fetched from elsewhere: pretrained/checksums.py reads it whole
COCO_CAPTIONS, COCO_SAMPLE = "data/coco/captions.txt", "data/coco/sample-5000.csv"  # made by rules, when asked for
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# the folders of results/<stage>/<base>/<task> beside the erasers
IMAGES = ("concept_images", "anchor_images", "retained_images", "images")
FOLDERS = ("prompts", "moments", *IMAGES, "masks", "finetune_sets", "terciles", "scores", "geometry")


def check_study(study: Study, root: Path) -> None:
    """Raise ConfigError for the first thing that does not fit."""
    check_names(study)
    check_files(study, root)
    if study.tasks.concepts is not None:
        check_concepts(study, root / study.tasks.concepts)
    check_limits(study)
    check_erasers(study, root)
    check_finetunes(study)
    check_terciles(study, root)
    check_experiments(study)
    check_scorers(study, root)


def folder_name(key: str, value: str, taken: Iterable[str] = ()) -> None:
    """Raise unless the value can be a folder of the results."""
    if not NAME.fullmatch(value):
        raise ConfigError(key, value, "use small letters, digits and hyphens: it becomes a folder")
    if value in taken:
        raise ConfigError(key, value, f"is the name of a folder of the results ({', '.join(taken)}); choose another")


def check_names(study: Study) -> None:
    """Names that become folders; a file's name is its task's."""
    folder_name("base.name", study.base.name)
    for key in ("erasers", "finetune_sets", "finetunes", "scorers"):
        if not getattr(study, key) and key in ("erasers", "scorers"):
            raise ConfigError(key, {}, "must not be empty; name at least one")
    for eraser in study.erasers:
        folder_name("erasers", eraser, FOLDERS)
    for name in (*study.finetunes, *study.finetune_sets):
        folder_name("finetunes", name, ("loras", "delta", "images", "scores"))
    if not study.tasks.names:
        raise ConfigError("tasks.names", [], "must not be empty; name at least one task")
    for name, task in study.loaded.items():
        if task.name != name:
            raise ConfigError(
                f"{study.tasks.folder}/{name}.yaml: name", task.name, f"write {name}, as the file is called"
            )


def check_files(study: Study, root: Path) -> None:
    """Files and folders that the configuration names."""
    base = study.base.path
    hub = HUB_ID.fullmatch(base) and not (root / base.split("/")[0]).exists()
    if not (root / base).exists() and not hub:
        raise ConfigError(
            "base.path",
            base,
            "no such folder; run `dvc pull data/miniature/dvc.yaml`, or write a hub id such as CompVis/name",
        )
    if study.base.revision is not None and not hub:
        raise ConfigError("base.revision", study.base.revision, "only a hub id has revisions; remove it for a folder")
    domain = study.moments.domain if isinstance(study.moments.domain, dict) else {"": study.moments.domain}
    for kind in {task.kind for task in study.loaded.values()} if "" not in domain else ():
        if kind not in domain:
            raise ConfigError("moments.domain", domain, f"has no templates for tasks of kind {kind!r}; add them")
    templates = {f"moments.domain.{kind}".rstrip("."): name for kind, name in domain.items()}
    prior = {} if study.moments.prior == COCO_CAPTIONS else {"moments.prior": study.moments.prior}
    for key, name in {**prior, **templates}.items():
        if not (root / name).is_file():
            raise ConfigError(key, name, "no such file; write a path from the folder of the Snakefile")
        if not (root / name).read_text(encoding="utf-8").strip():
            raise ConfigError(key, name, "is an empty file; write one caption a line")
    if study.tasks.general not in (None, COCO_SAMPLE) and not (root / study.tasks.general).is_file():
        raise ConfigError(
            "tasks.general", study.tasks.general, f"no such file; write its path, or {COCO_SAMPLE}, which is made"
        )
    for name in study.tasks.general_for or ():
        known("tasks.general_for", name, study.tasks.names)
    for key, name in templates.items():
        for line in (root / name).read_text(encoding="utf-8").splitlines():
            if line.strip():
                one_place(key, line)


def check_concepts(study: Study, path: Path) -> None:
    """Every concept is one of the base's world; a mapping concept may also be a scene or a wider word."""
    world = read_yaml(path)
    names = {entry["name"] for entry in world["concepts"]}
    wide = names | {entry["name"] for entry in world.get("scenes", [])}
    wide |= {word for entry in world["concepts"] for word in entry.get("hypernyms", [])}

    def must(key: str, words: Iterable[str], allowed: set[str]) -> None:
        for word in words:
            if word not in allowed:
                hint = nearest(word, allowed).split("known:")[0] or "no similar word; "
                raise ConfigError(key, word, f"is not a concept of {path}; {hint}add it there or write another")

    for name, task in study.loaded.items():
        place = f"{study.tasks.folder}/{name}.yaml"
        for key in ("erase", "retain", "finetune", "labels"):
            must(f"{place}: {key}", getattr(task, key), names)
        must(f"{place}: mapping", task.mapping.values(), wide)
    for name, chosen in study.finetune_sets.items():
        lists = chosen.concepts.values() if isinstance(chosen.concepts, dict) else [chosen.concepts]
        for concepts in lists:
            if not isinstance(concepts, str):
                must(f"finetune_sets.{name}.concepts", concepts, names)
    for eraser, method in study.erasers.items():
        for name, variant in method.variants.items():
            words = [*variant.mapping.values()] if isinstance(variant.mapping, dict) else [variant.mapping or ""]
            must(f"erasers.{eraser}.variants.{name}.mapping", [w for w in words if w], wide)


def check_limits(study: Study) -> None:
    """`tasks`, `erasers` and `seeds` of methods and variants name what exists."""
    erasers = {e for e in study.erasers} | {f"{e}.{v}" for e, m in study.erasers.items() for v in m.variants}
    for key, methods_of in (("erasers", study.erasers), ("finetunes", study.finetunes)):
        for name, method in methods_of.items():
            for variant, chosen in method.variants.items():
                place = f"{key}.{name}.variants.{variant}"
                if chosen.mapping is not None and key == "finetunes":
                    raise ConfigError(f"{place}.mapping", chosen.mapping, "only an eraser maps concepts; remove it")
                for seed in chosen.seeds or ():
                    known(f"{place}.seeds", seed, getattr(study.seeds, "erase" if key == "erasers" else "finetune"))
                for task in chosen.tasks or ():
                    known(f"{place}.tasks", task, study.tasks.names)
                for concept in chosen.mapping if isinstance(chosen.mapping, dict) else ():
                    erased = {c for task in chosen.tasks or study.tasks.names for c in study.loaded[task].erase}
                    known(f"{place}.mapping", concept, erased)
                for eraser in chosen.erasers or ():
                    known(f"{place}.erasers", eraser, erasers)


def check_named(place: str, settings: Mapping[str, Any], root: Path) -> None:
    """The files that an eraser's settings name exist; each caption of one has a place for the concept."""
    for key in ("captions", "words"):
        name = settings.get(key)
        if not isinstance(name, str) or not name:
            continue
        if not (root / name).is_file():
            raise ConfigError(f"{place}.{key}", name, "no such file; write a path from the folder of the Snakefile")
        lines = [line for line in (root / name).read_text(encoding="utf-8").splitlines() if line.strip()]
        if not lines:
            raise ConfigError(f"{place}.{key}", name, "is an empty file; write one entry a line")
        for line in lines if key == "captions" else ():
            one_place(f"{place}.{key}", line)


def check_settings(config: type | None, settings: Mapping[str, Any], place: str) -> None:
    """Raise for settings that an eraser does not take."""
    if config is not None:
        build(config, settings, place)
    elif settings:
        key = next(iter(settings))
        raise ConfigError(f"{place}.{key}", settings[key], "the eraser none has no settings; remove it")


def check_erasers(study: Study, root: Path) -> None:
    """Settings and mapping of every variant, for every task that it is run on."""
    for name, task in study.loaded.items():
        for eraser, settings in task.erasers.items():
            place = f"{study.tasks.folder}/{name}.yaml: erasers"
            known(place, eraser, {*study.erasers, *erasers()})
            config = study.erasers[eraser].config if eraser in study.erasers else eraser_config(eraser)
            check_settings(config, settings, f"{place}.{eraser}")
    for eraser, method in study.erasers.items():
        check_settings(method.config, method.settings, f"erasers.{eraser}")
        for variant in method.variants:
            for name in study.loaded:
                chosen = method.variants[variant]
                if chosen.tasks is None or name in chosen.tasks:
                    check_named(f"erasers.{eraser}", study.eraser_settings(name, eraser, variant), root)
                    study.task(name, eraser, variant)


def check_finetunes(study: Study) -> None:
    """Settings and sets of every variant; no set shows an erased concept."""
    for finetune, method in study.finetunes.items():
        build(method.config, method.settings, f"finetunes.{finetune}")
        for variant in method.variants:
            study.finetune_settings(finetune, variant)
            chosen = study.set_of(finetune, variant)
            known(f"finetunes.{finetune}.set", chosen, study.finetune_sets)
    for cell in study.cells():
        task, name = cell.erasure.task, study.set_of(cell.finetune, cell.variant)
        concepts = study.finetune_concepts(name, task)
        if study.finetune_sets[name].tercile is None and not concepts:
            remedy = f"is empty, and the set {name} shows it; name the random concepts, or list concepts in the set"
            raise ConfigError(f"{study.tasks.folder}/{task}.yaml: finetune", [], remedy)
        for concept in concepts:
            if concept in study.loaded[task].erase:
                remedy = f"is erased by the task {task}: the set would teach it again; remove it from the set"
                raise ConfigError(f"finetune_sets.{name}.concepts", concept, remedy)


def check_terciles(study: Study, root: Path) -> None:
    """Terciles have candidates, and a CLIP that compares them."""
    for name, chosen in study.finetune_sets.items():
        if chosen.tercile is None:
            continue
        place = f"finetune_sets.{name}.tercile"
        if "clip" not in study.scorers:
            raise ConfigError(place, chosen.tercile.number, "needs scorers.clip, which compares the names; add it")
        file = chosen.tercile.candidates
        if not (root / file).is_file():
            raise ConfigError(f"{place}.candidates", file, "no such file; write names, one a line")
        if len((root / file).read_text(encoding="utf-8").split("\n")) < 4:
            raise ConfigError(f"{place}.candidates", file, "has no terciles; write at least three names, one a line")


def fetched(root: Path) -> set[str]:
    """The places of weights that are fetched from elsewhere: they may be missing until a job needs them."""
    table = root / resolve_path(WEIGHTS, root)
    return set(read_yaml(table)) if table.is_file() else set()


def check_scorers(study: Study, root: Path) -> None:
    """Scorers exist and take their settings; their paths exist; figures show metrics that the scorers make.

    What config/weights.yaml knows how to get may be missing until a run needs it (weights.check_present).
    """
    offered: list[str] = []
    for name, settings in study.scorers.items():
        config = scorer_config(name, settings)
        path = getattr(config, "path", None)
        if path is not None and not (root / path).exists() and path not in fetched(root):
            raise ConfigError(f"scorers.{name}.path", path, f"no such file or folder; {config.fetch}")
        config.check(study, root)
        offered += config.offered()
    for metric in study.figures.metrics:
        known("figures.metrics", metric, offered)
