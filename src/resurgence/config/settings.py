"""The blocks of params.yaml as dataclasses; study.py puts them together, consistency.py compares them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from resurgence.config.anchor_captions import check_captions
from resurgence.config.erasers import eraser_config, erasers
from resurgence.config.fields import (
    ConfigError,
    Count,
    DdimSteps,
    Seed,
    build,
    known,
    mapping,
    one_place,
    parse,
    unique,
)
from resurgence.config.guidance import Guidance
from resurgence.config.model_path import DEFAULT, NAME
from resurgence.config.task import Kind

NONE = "none"  # the eraser that changes nothing: a control
OF_ERASER = ("mapping", "concepts", "after")  # keys of the variants of an eraser that are no settings of its method
LIMITS = {"erasers": ("tasks", "seeds"), "finetunes": ("set", "tasks", "erasers", "seeds")}  # of methods and variants
BESIDE = {"erasers": ("method", "variants", *LIMITS["erasers"]), "finetunes": ("variants", *LIMITS["finetunes"])}
"""Keys of an eraser or fine-tune that are no settings of its method."""
IN_VARIANT = {"erasers": (*OF_ERASER, *LIMITS["erasers"]), "finetunes": LIMITS["finetunes"]}


@dataclass(frozen=True)
class Base:
    """The text-to-image model under study."""

    name: str
    """Folder below the stages of results/."""
    path: str
    """A local diffusers folder, a single file of weights, or a hub id such as CompVis/stable-diffusion-v1-4."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """With auto the GPU, if there is one; a change computes nothing again."""
    deterministic: bool = True
    """On a GPU, only kernels that give the same bytes again; false: any. A change computes nothing again."""
    micro_batch: Literal["auto"] | Count = "auto"
    """Most samples in a pass of a training, halved when memory does not suffice; auto: all. Changes only rounding."""
    checkpointing: Literal["auto"] | bool = "auto"
    """Of trainings: less memory, more time, the same results; auto: when memory does not suffice for one sample."""
    speed: Literal["eager", "channels-last", "compiled", "graphs", "auto"] = "eager"
    """On a GPU, how the UNet runs in sampling and fine-tuning; auto: by the card. A change computes nothing again."""
    precision: Literal["fp32", "tf32", "fp16", "bf16"] = "fp32"
    """Of sampling; tf32: fp32 with products in TF32, on a GPU. Erasing and fine-tuning start from fp32."""
    delta_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """In which erased and fine-tuned weights are stored."""
    revision: str | None = None
    """Commit of a hub id."""

    def __post_init__(self) -> None:
        if self.precision == "tf32" and self.device == "cpu":
            raise ConfigError("precision", "tf32", "needs a GPU, and device is cpu; write fp32")


@dataclass(frozen=True)
class Tasks:
    """What is erased: one file for each task, named as the task."""

    folder: str
    """Folder of the task files."""
    names: tuple[str, ...]
    """Tasks of the study."""
    concepts: str | None = None
    """File of all concepts of the base's world; null: any word may be a concept."""
    tuning_for: str | None = None
    """Folder of the tasks that settings are tuned for; those here share no word with them, and have other noise."""
    general: str | dict[str, str] | None = None
    """CSV of prompts and seeds of any content, for CLIP score and FID, or task -> CSV; rules write
    data/coco/sample-5000.csv and data/lists/i2p.csv. With a column concept they are prompts of concepts, which
    classifiers score too."""
    general_for: tuple[str, ...] | None = None
    """Tasks whose models are sampled on one CSV too; null: all."""
    seeds: dict[Kind, dict[Literal["erase", "retain", "synonym"], Count]] = field(default_factory=dict)
    """Kind of task -> role -> images per template and concept, instead of the number in the task files."""


@dataclass(frozen=True)
class Moments:
    """Corpora whose second moments the closed forms preserve."""

    prior: str
    """Text file of general captions, one a line; a rule fetches data/coco/captions.txt."""
    domain: str | dict[str, str]
    """Text file of caption templates, one a line, filled with the retain concepts; or kind of task -> file."""
    encoder_precision: Literal["auto", "fp64", "fp32"] = "auto"
    """In what the text encoder computes; auto: fp64 on a CPU, fp32 (not TF32) on a GPU. Sums are always fp64."""


@dataclass(frozen=True)
class ConceptImages:
    """Images sampled from the base, for the erasers that learn from images."""

    per_concept: Count
    """Images of each erased concept."""
    per_anchor: Count = 200
    """Images of each mapping concept."""
    per_retained: Count = 8
    """Images of each retained concept."""
    template: str | dict[Kind, str] = "a photo of the {}"
    """Prompt, with {} where the concept goes; or kind of task -> prompt."""
    anchor_captions: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    """Mapping concept -> its prompts instead of the template, with {} for its name or without; a list, or a file."""
    steps: DdimSteps = 30
    """DDIM steps."""
    guidance: Guidance = 7.5
    """Scale of classifier-free guidance, more than 1; 0 or 1: no guidance."""

    def __post_init__(self) -> None:
        for template in self.template.values() if isinstance(self.template, dict) else (self.template,):
            one_place("template", template)
        for anchor, captions in self.anchor_captions.items():
            if not isinstance(captions, str):
                check_captions(captions, f"anchor_captions.{anchor}", self.per_anchor, "per_anchor")

    def template_of(self, kind: Kind) -> str:
        """The prompt for tasks of a kind; ConfigError without one."""
        if isinstance(self.template, str):
            return self.template
        known("concept_images.template", kind, self.template)
        return self.template[kind]


@dataclass(frozen=True)
class Seeds:
    """Seeds of erasing and of fine-tuning; every pair is a row of the study.

    An eraser limited to one seed, as a closed form, which is deterministic, is fine-tuned with every seed.
    """

    erase: tuple[Seed, ...]
    """Seeds of erasing."""
    finetune: tuple[Seed, ...]
    """Seeds of fine-tuning."""
    paired: bool = False
    """The first seed of erasing with the first of fine-tuning and so on: three runs instead of nine."""

    def __post_init__(self) -> None:
        for key in ("erase", "finetune"):
            if not getattr(self, key):
                raise ConfigError(key, [], "must not be empty; write [0] for one run")
            unique(key, getattr(self, key))
        if self.paired and len(self.erase) != len(self.finetune):
            raise ConfigError(
                "paired", True, f"needs as many seeds to erase ({len(self.erase)}) as to fine-tune "
                f"({len(self.finetune)}); write false, or the same number"
            )  # fmt: skip

    def to_finetune(self, erasers: tuple[int, ...], seed: int) -> tuple[int, ...]:
        """Seeds that fine-tune a model erased with `seed` by an eraser that runs with `erasers`."""
        if not self.paired or len(erasers) == 1:
            return self.finetune
        return (self.finetune[self.erase.index(seed)],)


@dataclass(frozen=True)
class Statistics:
    """Intervals; resamples and seed are those of the rank correlations, the other intervals need none."""

    resamples: Annotated[int, Field(ge=100)] = 2000
    """Resamples of the models for the interval of a rank correlation."""
    level: float = 0.95
    """Level of the intervals, between 0 and 1."""
    seed: Seed = 0
    """Seed of the resampling."""

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ConfigError("level", self.level, "must lie between 0 and 1; write 0.95 for 95 %")


@dataclass(frozen=True)
class Figures:
    """What is drawn."""

    metrics: tuple[str, ...] = ("recogniser_accuracy",)
    """Metrics of the scorers, each in figures of its own."""
    samples: Count = 10
    """Concepts in a grid of images: the first image of each."""

    def __post_init__(self) -> None:
        unique("metrics", self.metrics)


@dataclass(frozen=True)
class Variant:
    """Changed settings of a method, and the part of the study that it is limited to."""

    settings: dict[str, Any] = field(default_factory=dict)
    mapping: str | dict[str, str] | None = None
    """Mapping concepts instead of the task's: one word for all, or concept -> mapping concept."""
    set: str | None = None
    """Fine-tuning set."""
    concepts: tuple[str, ...] | None = None
    """Of an eraser: the concepts of the task that it erases; null: all."""
    after: str | None = None
    """Of an eraser: eraser.variant on whose erased model, of the same task and seed, it works; null: on the base."""
    tasks: tuple[str, ...] | None = None
    """Tasks that it is limited to; null: all."""
    erasers: tuple[str, ...] | None = None
    """Erasers, or eraser.variant, that it follows; null: all."""
    seeds: tuple[int, ...] | None = None
    """Seeds of the study that it is limited to; null: all. A deterministic eraser needs one."""


@dataclass(frozen=True)
class Method:
    """An eraser or a fine-tune: its configuration class, its settings, and the variants of them."""

    name: str  # in the registry of erasers; empty for a fine-tune, and for the eraser `none`
    config: Any  # the class; None for the eraser `none`
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
        return build(self.config, values, where, IN_VARIANT["erasers" if self.name else "finetunes"])


def make_method(
    values: Mapping[str, Any], where: str, config: Any, block: Literal["erasers", "finetunes"], name: str = ""
) -> Method:
    """Split an entry of a block, an eraser or fine-tune, into settings, limits and variants."""
    values, extra = mapping(values, where), LIMITS[block]
    for key in {*OF_ERASER} & {*values} if block == "erasers" else ():
        if config is None or key not in {field.name for field in dataclasses.fields(config)}:
            raise ConfigError(f"{where}.{key}", values[key], "is a key of a variant; write it below variants.default")
    common = {key: values.pop(key) for key in extra if key in values}
    variants = {}
    for variant, changes in mapping(values.pop("variants", {DEFAULT: {}}), f"{where}.variants").items():
        place = f"{where}.variants.{variant}"
        if not NAME.fullmatch(variant):
            raise ConfigError(place, variant, "use small letters, digits and hyphens: it becomes a folder")
        changes = mapping(changes, place)
        limits = {key: value for key, value in common.items() if key != "set"}
        limits |= {key: changes.pop(key) for key in (*extra, *OF_ERASER) if key in changes}
        variants[variant] = build(Variant, limits | {"settings": changes}, place)
    if not variants:
        raise ConfigError(f"{where}.variants", {}, "must not be empty; write variants: {default: {}}")
    return Method(name, config, values, variants, parse(str | None, common.get("set"), f"{where}.set"))


def make_eraser(name: str, block: Mapping[str, Any]) -> Method:
    """An eraser of the study; its method is a name of the registry, or `none`."""
    block = mapping(block, f"erasers.{name}")
    method = block.pop("method", name)
    known(f"erasers.{name}.method", method, [*erasers(), NONE])
    config, registered = (None, "") if method == NONE else (eraser_config(method), method)
    return make_method(block, f"erasers.{name}", config, "erasers", registered)
