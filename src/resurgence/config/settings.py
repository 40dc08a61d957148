"""The blocks of params.yaml as dataclasses; study.py puts them together, checks.py compares them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from resurgence.config.erasers import eraser_config, erasers
from resurgence.config.fields import NAME, ConfigError, at_least, build, convert, known, one_place, unique
from resurgence.config.model_path import DEFAULT
from resurgence.config.stages import TercileConfig

NONE = "none"  # the eraser that changes nothing: a control


@dataclass(frozen=True)
class Base:
    """The text-to-image model under study."""

    name: str
    path: str  # local diffusers folder, or a hub id
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"  # of sampling
    delta_precision: Literal["fp32", "fp16", "bf16"] = "fp32"  # in which erased and fine-tuned weights are kept
    revision: str | None = None  # of a hub id


@dataclass(frozen=True)
class Tasks:
    """Where the task files are, and which of them are run."""

    folder: str
    names: tuple[str, ...]
    concepts: str | None = None  # file of all concepts of the base's world; null: any word may be a concept
    general: str | None = None  # CSV of prompts and seeds of any content, for CLIP score and FID
    general_for: tuple[str, ...] | None = None  # tasks whose models are sampled on it too; null: all


@dataclass(frozen=True)
class Moments:
    """Corpora whose second moments the closed forms preserve."""

    prior: str  # general captions, one a line
    domain: str | dict[str, str]  # caption templates, one a line, filled with the retain concepts; or one file a kind


@dataclass(frozen=True)
class ConceptImages:
    """Images made by the base, for the erasers that learn from images."""

    per_concept: int  # of each erased concept
    per_anchor: int = 200  # of each mapping concept
    per_retained: int = 8  # of each retained concept
    template: str = "a photo of the {}"
    steps: int = 30
    guidance: float = 7.5

    def __post_init__(self) -> None:
        for key in ("per_concept", "per_anchor", "per_retained"):
            at_least(key, getattr(self, key), 1)
        at_least("steps", self.steps, 1)
        at_least("guidance", self.guidance, 0)
        one_place("template", self.template)


@dataclass(frozen=True)
class FinetuneSet:
    """Images that the base makes of concepts which are not erased."""

    # the task's random ones, its retain set, a list, or kind of task -> list
    concepts: Literal["task", "retain"] | dict[str, tuple[str, ...]] | tuple[str, ...] = "task"
    templates: Literal["task"] | tuple[str, ...] = "task"
    tercile: TercileConfig | None = None  # instead of concepts: drawn by their similarity to the erased ones
    images_per_prompt: int | None = None
    size: int | None = None  # images in all, spread evenly over the prompts: for sets matched in size
    first_seed: int | None = None  # image i of every prompt has seed first_seed + i; null: seeds of our own

    def __post_init__(self) -> None:
        if (self.images_per_prompt is None) == (self.size is None):
            raise ConfigError(
                "images_per_prompt", self.images_per_prompt, "give either this or size, not both, not none"
            )
        if self.tercile is not None and self.concepts != "task":
            raise ConfigError("concepts", list(self.concepts), "give either this or tercile, not both")
        for key in ("images_per_prompt", "size"):
            at_least(key, 1 if getattr(self, key) is None else getattr(self, key), 1)
        at_least("first_seed", self.first_seed or 0, 0)
        concepts = self.concepts if isinstance(self.concepts, dict) else {"": self.concepts}
        lists = {f"concepts.{kind}".rstrip("."): words for kind, words in concepts.items()}
        for key, words in {**lists, "templates": self.templates}.items():
            if isinstance(words, tuple):
                unique(key, words)
                if not words:
                    raise ConfigError(key, [], "must not be empty; name at least one, or write task")


@dataclass(frozen=True)
class Seeds:
    """Seeds of erasing and of fine-tuning; every pair is a row of the study, or, where `paired`, the first of the one
    with the first of the other and so on: three runs instead of nine. An eraser limited to one seed, as a closed form,
    which draws nothing, is fine-tuned with all of them either way."""

    erase: tuple[int, ...]
    finetune: tuple[int, ...]
    paired: bool = False

    def __post_init__(self) -> None:
        for key in ("erase", "finetune"):
            if not getattr(self, key):
                raise ConfigError(key, [], "must not be empty; write [0] for one run")
            unique(key, getattr(self, key))
            for seed in getattr(self, key):
                at_least(key, seed, 0)
        if self.paired and len(self.erase) != len(self.finetune):
            raise ConfigError(
                "paired",
                True,
                f"needs as many seeds to erase ({len(self.erase)}) as to fine-tune "
                f"({len(self.finetune)}); write false, or the same number",
            )

    def to_finetune(self, erasers: tuple[int, ...], seed: int) -> tuple[int, ...]:
        """Seeds that fine-tune a model erased with `seed` by an eraser that runs with `erasers`."""
        if not self.paired or len(erasers) == 1:
            return self.finetune
        return (self.finetune[self.erase.index(seed)],)


@dataclass(frozen=True)
class Statistics:
    """Bootstrap of the intervals."""

    resamples: int = 2000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("resamples", self.resamples, 100)
        if not 0 < self.level < 1:
            raise ConfigError("level", self.level, "must lie between 0 and 1; write 0.95 for 95 %")


@dataclass(frozen=True)
class Figures:
    """What is drawn."""

    metrics: tuple[str, ...] = ("recogniser_accuracy",)
    samples: int = 10  # rows of a grid: concepts, the first image of each

    def __post_init__(self) -> None:
        unique("metrics", self.metrics)
        at_least("samples", self.samples, 1)


@dataclass(frozen=True)
class Variant:
    """Some settings of a method changed, and the part of the study it is run on (None: everywhere)."""

    settings: dict[str, Any] = field(default_factory=dict)
    mapping: str | dict[str, str] | None = None  # of an eraser: instead of the task's
    set: str | None = None  # of a fine-tune: another set
    tasks: tuple[str, ...] | None = None
    erasers: tuple[str, ...] | None = None  # of a fine-tune: the erasers, or eraser.variant, that it follows
    seeds: tuple[int, ...] | None = None  # some of the study's; one is enough for an eraser that draws nothing


@dataclass(frozen=True)
class Method:
    """An eraser or a fine-tune: its configuration class, its settings, and the variants of them."""

    name: str  # in the registry of erasers; empty for a fine-tune, and for the eraser `none`
    config: type | None  # None for the eraser `none`
    settings: dict[str, Any]
    variants: dict[str, Variant]
    set: str | None = None

    def resolved(self, variant: str, where: str, *layers: Mapping[str, Any]) -> Any:
        """The configuration of a variant: the settings of the method, of the layers (a task's), of the variant.

        None for the eraser `none`.
        """
        if self.config is None:
            return None
        values = {k: v for layer in (self.settings, *layers, self.variants[variant].settings) for k, v in layer.items()}
        return build(self.config, values, where)


def make_method(
    values: Mapping[str, Any], where: str, config: type | None, extra: tuple[str, ...], name: str = ""
) -> Method:
    """Split the block of an eraser or fine-tune into settings and variants; `extra` keys are not settings."""
    values = dict(convert(where, values, dict[str, Any]))
    common = {key: values.pop(key) for key in extra if key in values}
    variants = {}
    for variant, changes in convert(f"{where}.variants", values.pop("variants", {DEFAULT: {}}), dict[str, Any]).items():
        place = f"{where}.variants.{variant}"
        if not NAME.fullmatch(variant):
            raise ConfigError(place, variant, "use small letters, digits and hyphens: it becomes a folder")
        changes = convert(place, changes, dict[str, Any])
        own = {key: changes[key] for key in (*extra, "mapping") if key in changes and key in Variant.__annotations__}
        settings = {key: value for key, value in changes.items() if key not in own}
        limits = {key: common[key] for key in ("tasks", "erasers", "seeds") if key in common}
        variants[variant] = build(Variant, limits | own | {"settings": settings}, place)
    if not variants:
        raise ConfigError(f"{where}.variants", {}, "must not be empty; write variants: {default: {}}")
    return Method(name, config, values, variants, convert(f"{where}.set", common.get("set"), str | None))


def make_eraser(name: str, block: Mapping[str, Any]) -> Method:
    """An eraser of the study; its method is a name of the registry, or `none`."""
    block = dict(convert(f"erasers.{name}", block, dict[str, Any]))
    method = block.pop("method", name)
    known(f"erasers.{name}.method", method, [*erasers(), NONE])
    config, registered = (None, "") if method == NONE else (eraser_config(method), method)
    return make_method(block, f"erasers.{name}", config, ("tasks", "seeds"), registered)
