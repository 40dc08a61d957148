"""Checks across the blocks of a study before a job starts: files, concepts, names, settings of every combination.

Each configuration class checks its fields by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resurgence.config.anchor_captions import check_concept_images
from resurgence.config.audit import check_audit
from resurgence.config.claim_checks import check_values
from resurgence.config.erasers import eraser_config, erasers
from resurgence.config.experiment import MEASURED, PER_CONCEPT
from resurgence.config.experiment_checks import check_experiments, check_scored
from resurgence.config.fields import ConfigError, build, known, one_place, read_yaml
from resurgence.config.hints import did_you_mean
from resurgence.config.lists import LISTS, PROMPTS
from resurgence.config.model_path import NAME, method_name
from resurgence.config.scorers import COMMON, HARMONIC, metrics, scorer_config
from resurgence.config.set_checks import check_makers, check_model, check_moments, check_terciles
from resurgence.config.settings import BESIDE, OF_ERASER
from resurgence.config.study_names import check_study_names
from resurgence.config.word_sets import check_tuning, check_words
from resurgence.config.world_words import all_entries, world_entries
from resurgence.files import GET_SHIPPED, read_json, read_lines, resolve_path

if TYPE_CHECKING:
    from resurgence.config.study import Study

WEIGHTS = Path("config/weights.yaml")  # weights that are fetched from elsewhere; see pretrained/checksums.py
COCO_CAPTIONS, COCO_SAMPLE = "data/coco/captions.txt", "data/coco/sample-5000.csv"  # written by rules when needed


def check_study(study: Study, root: Path) -> None:
    """Raise ConfigError for the first inconsistency."""
    check_names(study)
    check_files(study, root)
    check_size(study, root)
    if study.tasks.concepts is not None:
        check_concepts(study, root / study.tasks.concepts)
    check_limits(study)
    check_erasers(study, root)
    check_concept_images(study, root)
    check_moments(study)
    check_finetunes(study)
    check_study_names(study)
    if study.tasks.concepts is not None:
        check_words(study, read_yaml(root / study.tasks.concepts), study.tasks.concepts)
    check_tuning(study, root)
    check_terciles(study, root)
    check_makers(study, root)
    check_experiments(study)
    check_scorers(study, root)
    check_audit(study)


def folder_name(key: str, value: str, taken: Iterable[str] = ()) -> None:
    """Raise unless the value can be a folder of the results."""
    if not NAME.fullmatch(value):
        raise ConfigError(key, value, "use small letters, digits and hyphens: it becomes a folder")
    if value in taken:
        raise ConfigError(key, value, f"is the name of a folder of the results ({', '.join(taken)}); choose another")


def check_names(study: Study) -> None:
    """Names that become folders or files; a task's file has the name of the task."""
    if not study.study or "/" in study.study:
        raise ConfigError("study", study.study, "must be text without /: it becomes a part of a file's name")
    folder_name("base.name", study.base.name)
    for key in ("erasers", "scorers"):
        if not getattr(study, key):
            raise ConfigError(key, {}, "must not be empty; name at least one")
    for eraser in study.erasers:
        folder_name("erasers", eraser)
    for key in ("finetunes", "finetune_sets"):
        for name in getattr(study, key):
            folder_name(key, name)
    if not study.tasks.names:
        raise ConfigError("tasks.names", [], "must not be empty; name at least one task")
    for name, task in study.loaded.items():
        if task.name != name:
            where = f"{study.tasks.folder}/{name}.yaml: name"
            raise ConfigError(where, task.name, f"write {name}, as the file is called")


def check_lines(key: str, name: str, root: Path, of_templates: bool = False) -> None:
    """Raise unless a file has lines; each line of templates has one place for the concept."""
    if not (root / name).is_file():
        raise ConfigError(key, name, "no such file; write a path from the folder of the Snakefile")
    if not (lines := read_lines(root / name)):
        raise ConfigError(key, name, "is an empty file; write one entry a line")
    for line in lines if of_templates else ():
        one_place(key, line)


def check_files(study: Study, root: Path) -> None:
    """Files and folders that the configuration names."""
    base = study.base
    check_model("base.path", base.path, base.revision, root, f"{GET_SHIPPED}, or ")
    domain = study.moments.domain if isinstance(study.moments.domain, dict) else {"": study.moments.domain}
    for kind in {task.kind for task in study.loaded.values()} if "" not in domain else ():
        if kind not in domain:
            raise ConfigError("moments.domain", domain, f"has no templates for tasks of kind {kind!r}; add them")
    if study.moments.prior != COCO_CAPTIONS:
        check_lines("moments.prior", study.moments.prior, root)
    for key, name in domain.items():
        check_lines(f"moments.domain.{key}".rstrip("."), name, root, of_templates=True)
    check_general(study, root)
    if not (root / study.world).is_file():
        raise ConfigError("world", study.world, "no such file; write a path from the folder of the Snakefile")


def check_general(study: Study, root: Path) -> None:
    """Files of general prompts are there, or rules write them; the tasks that have them are tasks of the study."""
    general, limit = study.tasks.general, study.tasks.general_for
    if isinstance(general, dict) and limit is not None:
        useless = "has no effect where tasks.general names the tasks; remove it"
        raise ConfigError("tasks.general_for", list(limit), useless)
    for name in (*(limit or ()), *(general if isinstance(general, dict) else ())):
        known("tasks.general" if limit is None else "tasks.general_for", name, study.tasks.names)
    for task in study.tasks.names:
        path = study.general_of(task)
        if path is not None and path not in (COCO_SAMPLE, *PROMPTS) and not (root / path).is_file():
            remedy = f"no such file; write its path, or {' or '.join((COCO_SAMPLE, *PROMPTS))}, which rules write"
            raise ConfigError("tasks.general", path, remedy)


def check_size(study: Study, root: Path) -> None:
    """The size of the images is a multiple of the autoencoder's factor; for a base from the hub, the job checks it."""
    config = root / study.base.path / "vae/config.json"
    if study.sampling.size is None or not config.is_file():
        return
    factor = 2 ** (len(read_json(config).get("block_out_channels", [None])) - 1)
    if study.sampling.size % factor:
        remedy = f"must be a multiple of {factor}, the factor of the autoencoder of {study.base.path}"
        raise ConfigError("sampling.size", study.sampling.size, remedy)


def check_concepts(study: Study, path: Path) -> None:
    """Every concept is in the world of the base; a mapping concept may also be a scene or a hypernym."""
    world = read_yaml(path)
    drawn, scenes = all_entries(world, str(path)), world_entries(world, "scenes", str(path))
    names = {entry.name for entry in drawn}
    wide = names | {entry.name for entry in scenes} | {word for entry in drawn for word in entry.hypernyms}

    def check(key: str, words: Iterable[str], allowed: set[str]) -> None:
        for word in words:
            if word not in allowed:
                hint = did_you_mean(word, allowed) or "no similar word; "
                raise ConfigError(key, word, f"is not a concept of {path}; {hint}add it there or write another")

    for name, task in study.loaded.items():
        place = f"{study.tasks.folder}/{name}.yaml"
        for key in ("erase", "retain", "finetune", "labels"):
            check(f"{place}: {key}", getattr(task, key), names)
        check(f"{place}: mapping", task.mapping.values(), wide)
    for name, images in study.finetune_sets.items():
        for concepts in images.concepts.values() if isinstance(images.concepts, dict) else [images.concepts]:
            if not isinstance(concepts, str):
                check(f"finetune_sets.{name}.concepts", concepts, names)
    for eraser, method in study.erasers.items():
        for name, variant in method.variants.items():
            words = variant.mapping.values() if isinstance(variant.mapping, dict) else [variant.mapping]
            check(f"erasers.{eraser}.variants.{name}.mapping", filter(None, words), wide)


def check_limits(study: Study) -> None:
    """`tasks`, `erasers`, `seeds` and `mapping` of methods and variants name what the study has."""
    erasers = {*study.erasers, *(f"{e}.{v}" for e, m in study.erasers.items() for v in m.variants)}
    groups = (("erasers", study.erasers, study.seeds.erase), ("finetunes", study.finetunes, study.seeds.finetune))
    for key, methods, seeds in groups:
        variants = {f"{key}.{n}.variants.{v}": variant for n, m in methods.items() for v, variant in m.variants.items()}
        for place, variant in variants.items():
            for limit in OF_ERASER if key == "finetunes" else ():
                if (value := getattr(variant, limit)) is not None:
                    raise ConfigError(f"{place}.{limit}", value, "is of an eraser, and this is a fine-tune; remove it")
            tasks = [task for name, task in study.loaded.items() if variant.tasks is None or name in variant.tasks]
            mapping = variant.mapping if isinstance(variant.mapping, dict) else ()
            checks: tuple[tuple[str, Iterable[object] | None, Iterable[Any]], ...] = (
                ("seeds", variant.seeds, seeds),
                ("tasks", variant.tasks, study.tasks.names),
                ("mapping", mapping, {concept for task in tasks for concept in task.erase}),
                ("erasers", variant.erasers, erasers),
            )
            for limit, values, names in checks:
                for value in values or ():
                    known(f"{place}.{limit}", value, names)
            for concept, task in itertools.product(variant.concepts or (), tasks):
                known(f"{place}.concepts", concept, task.erase)
            for limit in ("tasks", "erasers", "seeds", "concepts"):
                if getattr(variant, limit) == ():
                    raise ConfigError(f"{place}.{limit}", [], f"must not be empty; name {limit}, or leave it out")
    check_order(study)


def check_order(study: Study) -> None:
    """What an erasure works `after` is another erasure of the study, of the same task and seed, and not after it."""
    every = dict.fromkeys(study.erasures())
    for erasure in every:
        chain = [erasure]
        while (before := study.before(chain[-1])) is not None:
            key, value = f"erasers.{erasure.eraser}.variants.{erasure.variant}.after", method_name(*before[1:3])
            if before not in every:
                remedy = f"erases no {before.task} with seed {before.seed}; name an eraser.variant that does"
                raise ConfigError(key, value, remedy)
            if before in chain:
                raise ConfigError(key, value, "works after itself; name an eraser that works on the base")
            if study.erasers[chain[-1].eraser].config is None:
                raise ConfigError(key, value, "is of an eraser that changes nothing: its model is the base; remove it")
            chain.append(before)


def check_settings(config: type | None, settings: Mapping[str, Any], place: str, also: Iterable[str] = ()) -> None:
    """Raise for settings that an eraser does not take."""
    if config is not None:
        build(config, settings, place, also)
    elif settings:
        key = next(iter(settings))
        raise ConfigError(f"{place}.{key}", settings[key], "the eraser none has no settings; remove it")


def check_erasers(study: Study, root: Path) -> None:
    """Settings of every variant, for every task that it erases."""
    for name, task in study.loaded.items():
        for eraser, settings in task.erasers.items():
            place = f"{study.tasks.folder}/{name}.yaml: erasers"
            known(place, eraser, {*study.erasers, *erasers()})
            config = study.erasers[eraser].config if eraser in study.erasers else eraser_config(eraser)
            check_settings(config, settings, f"{place}.{eraser}")
    for eraser, method in study.erasers.items():
        check_settings(method.config, method.settings, f"erasers.{eraser}", BESIDE["erasers"])
        for variant, limits in method.variants.items():
            for name in study.loaded:
                if limits.tasks is None or name in limits.tasks:
                    settings = study.eraser_settings(name, eraser, variant)
                    for key in ("captions", "words"):
                        if isinstance(file := settings.get(key), str) and file and file not in LISTS.values():
                            check_lines(f"erasers.{eraser}.{key}", file, root, of_templates=key == "captions")
                    if isinstance(path := settings.get("path"), str):
                        check_model(f"erasers.{eraser}.path", path, settings.get("revision"), root, "correct it, or ")


def check_finetunes(study: Study) -> None:
    """Settings and sets of every variant."""
    for finetune, method in study.finetunes.items():
        build(method.config, method.settings, f"finetunes.{finetune}", BESIDE["finetunes"])
        for variant in method.variants:
            study.finetune_settings(finetune, variant)
            known(f"finetunes.{finetune}.set", study.set_of(finetune, variant), study.finetune_sets)
    for cell in study.cells():
        task, name = cell.erasure.task, study.set_of(cell.finetune, cell.variant)
        concepts = study.finetune_concepts(name, task)
        if study.finetune_sets[name].maker != "real" and study.finetune_sets[name].tercile is None and not concepts:
            remedy = f"is empty, and the set {name} shows it; name the random concepts, or list concepts in the set"
            raise ConfigError(f"{study.tasks.folder}/{task}.yaml: finetune", [], remedy)


def check_scorers(study: Study, root: Path) -> None:
    """Scorers exist and accept their settings; their paths exist; figures show metrics of the scorers.

    Weights of config/weights.yaml are fetched from elsewhere and may be missing until a job reads them.
    """
    table, offered = root / resolve_path(WEIGHTS, root), list[str]()
    fetched = set(read_yaml(table)) if table.is_file() else set()
    kinds = {task.kind for task in study.loaded.values()}
    configs = {name: scorer_config(name, settings) for name, settings in study.scorers.items()}
    for name, config in configs.items():
        path = getattr(config, "path", None)
        if config.kinds is not None and not config.kinds:
            raise ConfigError(f"scorers.{name}.kinds", [], "must not be empty; name kinds of tasks, or leave it out")
        is_read = name == "clip" or config.kinds is None or kinds & set(config.kinds)
        if is_read and path is not None and not (root / path).exists() and path not in fetched:
            raise ConfigError(f"scorers.{name}.path", path, f"no such file or folder; {config.fetch}")
        config.check(study, root)
        for other, kind in itertools.product(config.features_of, kinds):
            if name in study.scorers_of(kind) and other not in study.scorers_of(kind):
                remedy = f"leaves out tasks of kind {kind}, for which {name} compares its features; add {kind}"
                raise ConfigError(f"scorers.{other}.kinds", list(study.scorers[other].get("kinds", [])), remedy)
        offered += config.offered()
    for metric in study.figures.metrics:
        known("figures.metrics", metric, offered)
    columns = [metric for metric, declared in metrics().items() if declared.column is not None]
    for name, experiment in study.experiments.items():
        key = f"experiments.{name}.{'metrics' if experiment.kind == 'table' else 'metric'}"
        for metric in experiment.shown_metrics:
            known(key, metric, [*offered, *COMMON, *HARMONIC])
            check_scored(study, experiment, key, metric)
            if experiment.kind in PER_CONCEPT:
                known(key, metric, [column for column in columns if column in (*offered, *COMMON)])
            if experiment.kind == "heatmap" and not metrics()[metric].share:
                raise ConfigError(
                    key, metric, "is no share in percent, which a heat map draws; name one, or a histogram"
                )
        if experiment.kind in MEASURED:
            check_values(study, name, key, root)
