"""The study: which tasks, erasers, fine-tunes and seeds are combined, and the settings of each combination.

`load_study` checks everything that can be checked before a job starts, without importing torch. The Snakefile and
`resurgence plan` ask the Study for its erased models (`erasures`) and fine-tuned models (`cells`); no job reads
params.yaml itself.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from resurgence.config.audit import AuditConfig
from resurgence.config.experiment import Experiment
from resurgence.config.fields import ConfigError, known
from resurgence.config.finetune_sets import FinetuneSet
from resurgence.config.hints import INTERNAL
from resurgence.config.model_path import DEFAULT, THEN, ModelPath, split_name
from resurgence.config.settings import (
    Base,
    ConceptImages,
    Figures,
    Method,
    Moments,
    Seeds,
    Statistics,
    Tasks,
)
from resurgence.config.stages import MaskConfig, SamplingConfig, TercileConfig
from resurgence.config.task import Task, make_task

# the folder of results/ in which a part of a model or task lies: what DVC tracks as one
STAGE_OF = {
    **dict.fromkeys(("prompts", "moments", "concept_images", "anchor_images", "retained_images"), "data"),
    **dict.fromkeys(("masks", "finetune_sets", "terciles", "reference"), "data"),
    **dict.fromkeys(("loras", "delta", "erased_sets"), "erased"),
    "weights": "finetuned",
    "images": "images",
    **dict.fromkeys(("scores", "geometry"), "scores"),
}
WORLD = "config/world.yaml"


class Erasure(NamedTuple):
    """One erased model."""

    task: str
    eraser: str
    variant: str
    seed: int


class Cell(NamedTuple):
    """One fine-tuned model: a row of the study."""

    erasure: Erasure
    finetune: str
    variant: str
    seed: int


@dataclass(frozen=True, eq=False)  # compared by identity
class Study:
    """The whole configuration; the fields are the keys of params.yaml."""

    study: str
    """Name of the study."""
    base: Base
    tasks: Tasks
    sampling: SamplingConfig
    moments: Moments
    concept_images: ConceptImages
    masks: MaskConfig
    erasers: dict[str, Method]
    """Name -> method, settings of the method, limits, and variants: name -> changed settings and limits."""
    finetune_sets: dict[str, FinetuneSet]
    """Sets of images of concepts which are not erased, by name: sampled by a model, or real pictures."""
    finetunes: dict[str, Method]
    """Name -> set, settings of the fine-tuning, limits, and variants: name -> changed settings, set and limits."""
    seeds: Seeds
    scorers: dict[str, dict[str, Any]]
    """Name of a scorer, of this package or of a plug-in -> its settings, such as the path of its weights."""
    statistics: Statistics
    figures: Figures = field(default_factory=Figures)
    experiments: dict[str, Experiment] = field(default_factory=dict)
    """Figures and tables by name, each a rule (`snakemake fig7`)."""
    audit: AuditConfig | None = None
    """Of one released model; `resurgence audit` writes it. null: none."""
    world: str = WORLD
    """File with the settings of the miniature base and its scorers, for the target world."""
    over: tuple[str, ...] = ()
    """Studies that a file is laid over, by their `study`; without one of them it is refused. []: any."""
    loaded: dict[str, Task] = field(default_factory=dict, metadata=INTERNAL)  # the tasks' files, by name
    source: dict[str, Any] = field(default_factory=dict, metadata=INTERNAL)  # the configuration as in its files

    def erasures(self) -> Iterator[Erasure]:
        """Every erased model, in the order of the configuration."""
        for task, (eraser, method) in itertools.product(self.tasks.names, self.erasers.items()):
            for name, variant in method.variants.items():
                if variant.tasks is None or task in variant.tasks:
                    yield from (Erasure(task, eraser, name, seed) for seed in variant.seeds or self.seeds.erase)

    def cells(self) -> Iterator[Cell]:
        """Every fine-tuned model."""
        for erasure, (finetune, method) in itertools.product(self.erasures(), self.finetunes.items()):
            names = {erasure.eraser, f"{erasure.eraser}.{erasure.variant}"}
            erase_seeds = self.erasers[erasure.eraser].variants[erasure.variant].seeds or self.seeds.erase
            seeds = self.seeds.to_finetune(erase_seeds, erasure.seed)
            for name, variant in method.variants.items():
                follows = variant.erasers is None or names & set(variant.erasers)
                if follows and (variant.tasks is None or erasure.task in variant.tasks):
                    yield from (Cell(erasure, finetune, name, s) for s in seeds if s in (variant.seeds or seeds))

    def model(self, item: str | Erasure | Cell) -> ModelPath:
        """The path of a model: `ship` (the base on a task), `ship/mace/s0`, `ship/mace/s0/lora/f0`."""
        if isinstance(item, str):
            return ModelPath(item)
        if isinstance(item, Cell):
            return self.model(item.erasure).then("finetune", *item[1:])
        return self.model(self.before(item) or item.task).then("erase", *item[1:])

    def before(self, erasure: Erasure) -> Erasure | None:
        """The erased model, of the same task and seed, that an erasure starts from; None: the base."""
        after = self.erasers[erasure.eraser].variants[erasure.variant].after
        return None if after is None else Erasure(erasure.task, *split_name(after), erasure.seed)

    def chain(self, erasure: Erasure) -> list[Erasure]:
        """The erasures one after the other from the base to an erased model, which is the last."""
        before = self.before(erasure)
        return [*(self.chain(before) if before else ()), erasure]

    def name_of(self, erasure: Erasure) -> str:
        """Name of an erased model in tables and experiments: `mace`, `mace.to-object`, `doco.first+doco.second`."""
        return THEN.join(step.name for step in self.model(erasure).steps)

    def folder(self, item: str | Erasure | Cell | ModelPath | None, part: str) -> str:
        """Folder of a part, e.g. `delta`, of a model or task, or (None) of the base."""
        stage = STAGE_OF[part.partition("/")[0]]
        model = item if isinstance(item, ModelPath | None) else self.model(item)
        return "/".join(["results", stage, self.base.name, *([] if model is None else [str(model)]), part])

    def task(self, task: str, eraser: str | None = None, variant: str = DEFAULT) -> Task:
        """A task, with the erased concepts and the mapping of an eraser's variant where it has them."""
        of = self.loaded[task]
        limits = self.erasers[eraser].variants[variant] if eraser else None
        if limits is None or (limits.mapping is None and limits.concepts is None):
            return of
        values, erase = dataclasses.asdict(of), limits.concepts or of.erase
        mapping = of.mapping if limits.mapping is None else limits.mapping
        if isinstance(mapping, dict):  # one variant may run on several tasks
            mapping = {concept: aim for concept, aim in mapping.items() if concept in erase}
        synonyms = {concept: words for concept, words in of.synonyms.items() if concept in (*erase, *of.retain)}
        values |= {"erase": erase, "mapping": mapping, "synonyms": synonyms}
        return make_task(values, f"erasers.{eraser}.variants.{variant}")

    def eraser_config(self, task: str, eraser: str, variant: str) -> Any:
        """The configuration of an eraser for one task; None for the eraser `none`."""
        layer = self.loaded[task].erasers.get(eraser, {})
        return self.erasers[eraser].resolved(variant, f"erasers.{eraser}.variants.{variant}", layer)

    def eraser_settings(self, task: str, eraser: str, variant: str) -> dict[str, Any]:
        """All settings of an eraser for one task; empty for the eraser `none`."""
        config = self.eraser_config(task, eraser, variant)
        return {} if config is None else dataclasses.asdict(config)

    def finetune_settings(self, finetune: str, variant: str) -> dict[str, Any]:
        """All settings of a fine-tune."""
        config = self.finetunes[finetune].resolved(variant, f"finetunes.{finetune}.variants.{variant}")
        settings: dict[str, Any] = config.parameters()
        return settings

    def set_of(self, finetune: str, variant: str) -> str:
        """Name of the fine-tuning set of a fine-tune."""
        method = self.finetunes[finetune]
        return method.variants[variant].set or method.set or ""

    def set_owner(self, cell: Cell) -> str | Erasure:
        """The erased model that samples the fine-tuning set of a cell, or the task of one that every model shares.

        An eraser that changes nothing would sample the images of the base again.
        """
        maker = self.finetune_sets[self.set_of(cell.finetune, cell.variant)].maker
        samples = maker == "erased" and self.erasers[cell.erasure.eraser].config is not None
        return cell.erasure if samples else cell.erasure.task

    def tercile_of(self, set_name: str) -> TercileConfig:
        """The settings of a fine-tuning set that is a tercile; ConfigError for another set."""
        tercile = self.finetune_sets[set_name].tercile
        if tercile is None:
            raise ConfigError(f"finetune_sets.{set_name}", set_name, "is not a tercile; add a block tercile")
        return tercile

    def finetune_concepts(self, set_name: str, task: str) -> tuple[str, ...]:
        """Concepts that a fine-tuning set shows in a task; empty where they are drawn from a tercile."""
        if self.finetune_sets[set_name].tercile is not None:
            return ()
        concepts, of = self.finetune_sets[set_name].concepts, self.loaded[task]
        if isinstance(concepts, dict):
            return concepts.get(of.kind, ())
        return {"task": of.finetune, "retain": of.retain}[concepts] if isinstance(concepts, str) else concepts

    def scorers_of(self, kind: str) -> dict[str, dict[str, Any]]:
        """Name -> settings of the scorers that score the images of tasks of a kind, without the kinds."""
        kinds = {name: settings.get("kinds") for name, settings in self.scorers.items()}
        names = [name for name, of in kinds.items() if of is None or kind in of]
        return {name: {key: v for key, v in self.scorers[name].items() if key != "kinds"} for name in names}

    def pictures_of(self, set_name: str, task: str) -> str:
        """Where the pictures of a real fine-tuning set lie; ConfigError if it has none for the task's kind."""
        images, kind = self.finetune_sets[set_name].images, self.loaded[task].kind
        if isinstance(images, dict):
            known(f"finetune_sets.{set_name}.images", kind, images)
            return images[kind]
        return images or ""

    def general_of(self, task: str) -> str | None:
        """File of the general prompts that the models of a task are sampled on too."""
        general = self.tasks.general
        if isinstance(general, dict):
            return general.get(task)
        return general if self.tasks.general_for is None or task in self.tasks.general_for else None

    def templates_of(self, kind: str) -> str:
        """File of the caption templates of the domain corpus, for tasks of a kind."""
        domain = self.moments.domain
        return domain[kind] if isinstance(domain, dict) else domain
