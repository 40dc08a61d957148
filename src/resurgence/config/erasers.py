"""Erasers by name, and the declarations of their configuration classes about the methods.

The Snakefile and `resurgence plan` ask these classes, so the modules that define them do not import PyTorch. The
functions of a method are in another module, which the class names and which only a job imports.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from resurgence.config.fields import ConfigError, known
from resurgence.config.registry import registered, registered_class

if TYPE_CHECKING:
    from resurgence.config.task import Task, TaskPart

ERASERS = {  # name -> module:configuration class
    "uce": "resurgence.erasers.closed_form.configs:UceConfig",
    "time": "resurgence.erasers.closed_form.configs:TimeConfig",
    "rece": "resurgence.erasers.closed_form.configs:ReceConfig",
    "speed": "resurgence.erasers.closed_form.configs:SpeedConfig",
    "mace": "resurgence.erasers.mace.config:MaceConfig",
    "mace-refinement": "resurgence.erasers.mace.config:MaceRefinementConfig",
    "esd": "resurgence.erasers.gradient.trajectory_configs:EsdConfig",
    "sdd": "resurgence.erasers.gradient.trajectory_configs:SddConfig",
    "spm": "resurgence.erasers.gradient.trajectory_configs:SpmConfig",
    "eap": "resurgence.erasers.gradient.trajectory_configs:EapConfig",
    "advunlearn": "resurgence.erasers.gradient.trajectory_configs:AdvunlearnConfig",
    "ca": "resurgence.erasers.gradient.image_configs:CaConfig",
    "fmn": "resurgence.erasers.gradient.image_configs:FmnConfig",
    "doco": "resurgence.erasers.gradient.image_configs:DocoConfig",
    "salun": "resurgence.erasers.gradient.image_configs:SalunConfig",
    "erasediff": "resurgence.erasers.gradient.image_configs:EraseDiffConfig",
    "scissorhands": "resurgence.erasers.gradient.image_configs:ScissorHandsConfig",
    "checkpoint": "resurgence.erasers.checkpoint.config:CheckpointConfig",
    "update": "resurgence.erasers.checkpoint.config:UpdateConfig",
}
GROUP = "resurgence.erasers"  # entry points of erasers in other packages
DATA = ("prior", "domain", "images", "masks", "anchors", "retained")  # fields of EraserData that the graph can provide

# In what a closed form's text encoder computes. auto: in fp32, and again in fp64 where the condition number is so high
# that the delta could move by 1e-5 of itself. fp64 is the default of all: auto would change the bytes of earlier
# results where it stays with fp32, and cost half as much again where it does not.
EncoderPrecision = Literal["fp64", "fp32", "auto"]

Changes = Mapping[str, tuple[Any, ...]]  # setting -> values


class Passes(NamedTuple):
    """Samples that pass the UNet, for the GPU-hours of a plan."""

    graded: float  # forward and backward
    plain: float  # forward only


class EraserConfig:
    """Base of the configuration classes of erasers, which are frozen dataclasses: fields are settings.

    The class variables tell the workflow about a method before a job runs; see resurgence.erasers.
    """

    module: ClassVar[str] = ""  # dotted name of the module with the method's functions; "": the module of the class
    needs: ClassVar[frozenset[str]] = frozenset()  # names of DATA that the method reads
    closed_form: ClassVar[bool] = False  # the stage `erase` solves an equation, in seconds: a shorter time limit
    has_curve: ClassVar[bool] = False  # the stage `erase` writes curves.json, which the report draws
    has_words: ClassVar[bool] = False  # it writes sensitive.json (concept -> [word, probability]), drawn too
    files: ClassVar[tuple[str, ...]] = ("captions", "words")  # settings that name a file, which the job reads
    trains_loras: ClassVar[bool] = False  # LoRAs are trained in a stage of their own, and `erase` fuses them
    fusion_settings: ClassVar[frozenset[str]] = frozenset()  # settings that these LoRAs do not depend on
    changes: ClassVar[Changes] = {}  # setting -> values with another objective than published
    own_meaning: ClassVar[frozenset[str]] = frozenset()  # settings whose name means something else in other methods

    @classmethod
    def keys_without_effect(cls, values: Mapping[str, Any]) -> set[str]:
        """Settings that the method refuses: the space of losses that compare no predictions."""
        return set() if getattr(cls, "compares_predictions", True) else {"space"}

    def changed_objective(self) -> str:
        """The settings whose values change the published objective, as text; empty if there are none.

        Tables mark such a method: its numbers are not those of the method of that name.
        """
        values = ((name, getattr(self, name)) for name in self.changes)
        return ", ".join(f"{name}: {str(value).lower()}" for name, value in values if value in self.changes[name])

    def reads(self, kind: str) -> frozenset[str]:
        """The names of DATA that the method reads with these settings, for a task of this kind."""
        return self.needs

    def destinations(self, task: Task | TaskPart) -> dict[str, str]:
        """Erased concept -> the word that it becomes: its mapping concept, unless the settings name another.

        Only checks read this; a method whose settings name another word reads its own definition.
        """
        return {concept: task.mapping[concept] for concept in task.erase}

    def unet_passes(self, erased: int, retained: int) -> Passes:
        """Samples that pass the UNet in a whole run; 0 where it is negligible or unknown.

        Args:
            erased, retained: numbers of concepts of the task.
        """
        return Passes(0, 0)


@functools.cache
def erasers() -> dict[str, str]:
    """The erasers, those of other packages included: name -> module:configuration class; raises as `registered`."""
    return registered(GROUP, ERASERS)


@functools.cache
def eraser_config(name: str) -> type[EraserConfig]:
    """The configuration class of an eraser.

    Raises:
        ConfigError: an unknown name, an entry point that is not a subclass of EraserConfig, or unknown `needs`.
    """
    known("method", name, erasers())
    place = erasers()[name]
    config = registered_class(GROUP, name, place, EraserConfig)
    if unknown := sorted(config.needs - set(DATA)):
        remedy = f"is not data that a method can read; known: {', '.join(DATA)}"
        raise ConfigError(f"{place}: needs", unknown[0], remedy)
    return config


def method_module(name: str) -> str:
    """Dotted name of the module with the functions of an eraser."""
    return eraser_config(name).module or eraser_config(name).__module__
