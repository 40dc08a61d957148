"""The scorers by name and their declarations, which are read without importing torch.

A scorer is declared by a frozen dataclass that inherits `ScorerConfig`: its fields are the settings below
`scorers.NAME`, its class attributes the columns, the metrics and the function that loads it. Those of this package are
listed in SCORERS, those of other packages are entry points of the group `resurgence.scorers`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from resurgence.config.fields import ConfigError, build, known
from resurgence.config.registry import registered, registered_class
from resurgence.config.task import Kind

if TYPE_CHECKING:
    from resurgence.config.study import Study

GROUP = "resurgence.scorers"
SCORERS = {
    "recogniser": "resurgence.scorers.configs:RecogniserConfig",
    "clip": "resurgence.scorers.configs:ClipConfig",
    "celebrity": "resurgence.scorers.configs:CelebrityConfig",
    "inception": "resurgence.scorers.configs:InceptionConfig",
    "frechet": "resurgence.scorers.configs:FrechetConfig",
    "reference": "resurgence.scorers.configs:ReferenceConfig",
    "lpips": "resurgence.scorers.erasure_configs:LpipsConfig",
    "lpips_vgg": "resurgence.scorers.erasure_configs:LpipsVggConfig",
    "success": "resurgence.scorers.erasure_configs:SuccessConfig",
    "clip_anchor": "resurgence.scorers.erasure_configs:AnchorConfig",
    "sensitivity": "resurgence.scorers.erasure_configs:SensitivityConfig",
    "nudenet": "resurgence.scorers.erasure_configs:NudenetConfig",
    "identity": "resurgence.scorers.erasure_configs:IdentityConfig",
    "celebrity_stand_in": "resurgence.scorers.configs:CelebrityStandInConfig",
}  # in the order of the rows of the tables
PACKAGES = {
    "celebrity": ("facenet-pytorch",),
    "nudenet": ("onnxruntime",),
    "identity": ("facenet-pytorch", "onnxruntime"),
    "celebrity_stand_in": ("onnxruntime",),
}
"""Scorer -> packages of envs/weights.txt that it imports when it is loaded. The scorers of other packages have their
requirements there."""

CONCEPT = ("erase", "synonym", "retain", "synonym-retain")
"""Roles of prompts that are about a concept."""
ROLES = (*CONCEPT, "general")
"""Roles of the prompts of a task."""
NAMED = "named"
"""Not a role, but a part of one: the general prompts that name an erased or retained concept."""
OF_CONCEPT = (*CONCEPT, NAMED)
"""Where a metric has a value that compares an image with its concept."""


@dataclass(frozen=True)
class Metric:
    """A metric of an image set: the mean of a column times a factor, or a distance between sets."""

    column: str | None  # None: a distance, which resurgence.analysis.estimates computes from features
    title: str  # in tables and figures, with the unit
    scale: float = 1.0  # 100: the column is between 0 and 1, and the metric a share of the images in percent
    shows_concept: bool = False  # the larger, the more of the concept: reports say whether it came back
    accuracy: bool = False  # share of images with their concept, in percent: leads the report, enters H_c and H_o
    roles: tuple[str, ...] = ROLES  # in which images have a value; NAMED: of general prompts, those with a concept
    top: str | None = None  # column of what an image is taken for, one of the scorer's labels; None: there is none

    @property
    def share(self) -> bool:
        """Whether it lies between 0 and 100 %, so that its intervals do."""
        return self.scale == 100.0


BLANK = "blank"
"""Column of every score: 1 for an image of one colour, whose scores say nothing, else 0."""
FALSE_ALARM = "false_alarm"
"""Column of scores with a detector: 1 for an image of another prompt in which it sees an erased concept, else 0."""
AGREEMENT = "agreement"
"""Column of scores with two detectors: 1 for an image of which both say, or both deny, that its concept is there."""
COMMON = {
    BLANK: Metric(BLANK, "Blank images (%)", 100.0),
    FALSE_ALARM: Metric(
        FALSE_ALARM, "Erased concept seen in images of others (%)", 100.0, roles=("retain", "synonym-retain", "general")
    ),
    AGREEMENT: Metric(AGREEMENT, "Images on which the detectors agree (%)", 100.0, roles=OF_CONCEPT),
}  # metrics of all scores, after those of the scorers
HARMONIC = {"H_c": "Harmonic mean H_c (%)", "H_o": "Harmonic mean H_o (%)"}  # of several metrics: name -> title


@dataclass(frozen=True)
class ScorerConfig:
    """Settings and declarations of a scorer. A setting named `path` is a file or folder of weights, one
    named `pictures` a folder of pictures."""

    kinds: tuple[Kind, ...] | None = field(default=None, kw_only=True)  # of tasks whose images it scores; None: all

    loader: ClassVar[str] = ""  # module:function, (config, device) -> Scorer; empty: needs stored features only
    columns: ClassVar[tuple[str, ...]] = ()  # of its scores, in this order
    metrics: ClassVar[Mapping[str, Metric]] = {}
    gives_features: ClassVar[bool] = False  # of images, for a Fréchet distance
    reads_base: ClassVar[bool] = False  # compares with the image that the base made of the same row
    among_labels: ClassVar[bool] = False  # takes every image for a label of the task: no false alarms of other images
    rank: ClassVar[int] = 2  # reports begin with the lowest: a detector of the very concepts before a general one
    fetch: ClassVar[str] = "correct the path"  # remedy where `path` does not exist

    @property
    def features_of(self) -> tuple[str, ...]:
        """The scorers whose features must be stored for this one."""
        return ()

    def offered(self) -> tuple[str, ...]:
        """The metrics with these settings."""
        return tuple(self.metrics)

    def check(self, study: Study, root: Path) -> None:
        """Check the settings against the rest of the study, before any job.

        Raises:
            ConfigError: key, value and remedy.
        """


@functools.cache
def entries() -> dict[str, str]:
    """Scorers by name -> module:class, those of other packages last; raises as `registered`."""
    return registered(GROUP, SCORERS)


@functools.cache
def scorer_class(name: str) -> type[ScorerConfig]:
    """The declaration of a scorer.

    Raises:
        ConfigError: an unknown name, or an entry point that is not a ScorerConfig.
    """
    known("scorers", name, entries())
    return registered_class(GROUP, name, entries()[name], ScorerConfig)


def scorer_config(name: str, settings: Mapping[str, Any]) -> ScorerConfig:
    """The settings of a scorer, checked.

    Raises:
        ConfigError: an unknown name or setting, or a value that is refused.
    """
    return build(scorer_class(name), settings, f"scorers.{name}")


def loader(config: ScorerConfig) -> Callable[..., Any]:
    """The function that loads a scorer; imports torch."""
    module, _, function = config.loader.partition(":")
    load: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return load


def declarations(names: Iterable[str]) -> tuple[str, ...]:
    """The classes that declare these scorers, as module:name: code that the tables depend on."""
    return tuple(entries()[name] for name in names)


def code_of(names: Iterable[str]) -> tuple[str, ...]:
    """Classes and loaders of these scorers, as module:name: code that their scores depend on.

    Those that need stored features only have none.
    """
    loaded = [name for name in names if scorer_class(name).loader]
    return (*declarations(loaded), *(scorer_class(name).loader for name in loaded))


@functools.cache
def metrics() -> dict[str, Metric]:
    """All metrics by name, in the order of the rows of the tables.

    Raises:
        ConfigError: two scorers declare a metric of the same name.
    """
    by_name: dict[str, Metric] = {}
    for name in entries():
        for metric, declared in scorer_class(name).metrics.items():
            if metric in by_name or metric in COMMON:
                raise ConfigError(f"metrics of the scorer {name}", metric, "another scorer has it; rename it")
            by_name[metric] = declared
    return by_name | COMMON


def ranked(reverse: bool = False) -> dict[str, Metric]:
    """All metrics by name, those of scorers of lower rank first; `reverse`: those of higher rank."""
    return {
        metric: metrics()[metric] for name in ranked_names(reverse) for metric in scorer_class(name).metrics
    } | COMMON


def ranked_names(reverse: bool = False) -> list[str]:
    """The names of all scorers, those of lower rank first; `reverse`: those of higher rank."""
    return sorted(entries(), key=lambda name: scorer_class(name).rank, reverse=reverse)
