"""Settings of the closed forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from resurgence.config.erasers import EraserConfig
from resurgence.config.fields import ConfigError, at_least, templates


@dataclass(frozen=True)
class UceConfig(EraserConfig):
    """Settings; the first script's, which the resurgence authors used, unless a comment says ours."""

    module: ClassVar[str] = "resurgence.erasers.closed_form.uce"
    closed_form: ClassVar[bool] = True

    tokens: Literal["last-to-end", "last"] = "last-to-end"  # first script; last: the last subject token only, 2025's
    lamb: float = 0.5  # weight of ||W' - W||^2: both scripts; Eq. 7 has none: 0.0
    erase_scale: float = 1.0  # s_e, weight of the erased concepts: both scripts, and Eq. 7
    preserve_scale: float | None = None  # s_p; null: max(0.1, 1 / retained captions), first script; Eq. 7, 2025: 1
    destination: str | None = None  # null: the task's mapping concept, ours; " " is the first script's default
    captions: str | tuple[str, ...] = ("{}",)  # both scripts; templates with one {}: a list, a file, or "" for MACE's

    def __post_init__(self) -> None:
        templates("captions", self.captions)
        for key in ("lamb", "preserve_scale"):
            at_least(key, getattr(self, key) or 0.0, 0)
        if not self.erase_scale > 0:
            raise ConfigError("erase_scale", self.erase_scale, "must be positive")


@dataclass(frozen=True)
class TimeConfig(EraserConfig):
    """Settings; the defaults are those of the paper's main experiment."""

    module: ClassVar[str] = "resurgence.erasers.closed_form.time"
    closed_form: ClassVar[bool] = True

    lamb: float = 0.1  # weight of ||W' - W||^2: paper and code
    keys: bool = True  # also edit to_k, the paper's main experiment; false: to_v alone, its ablation
    # templates with one {}: a list, a file, or "" for MACE's built-in 30; the default is the text and its augmentations
    captions: str | tuple[str, ...] = ("{}", "A photo of {}", "An image of {}", "A picture of {}")  # paper, code

    def __post_init__(self) -> None:
        templates("captions", self.captions)
        at_least("lamb", self.lamb, 0)


@dataclass(frozen=True)
class ReceConfig(EraserConfig):
    """Settings; UCE's for the first edit, the authors' for nudity in the epochs, unless a comment says ours."""

    module: ClassVar[str] = "resurgence.erasers.closed_form.rece"
    closed_form: ClassVar[bool] = True

    # the first edit: as in UCE
    tokens: Literal["last-to-end", "last"] = "last-to-end"  # rows, UCE's first script
    lamb: float = 0.5  # weight of ||W' - W||^2, UCE's scripts
    erase_scale: float = 1.0  # s_e of the first edit and of the epochs: UCE's scripts and the authors' runs
    preserve_scale: float | None = None  # null: max(0.1, 1 / retained captions), UCE's first script
    destination: str | None = None  # null: the task's mapping concept, ours; " " is the scripts' default
    captions: str | tuple[str, ...] = ("{}",)  # scripts; templates with one {}: a list, a file, or "" for MACE's
    # the epochs
    epochs: int = 3  # authors' runs: 3 nudity, 2 other unsafe content, 1 styles and objects; 0: UCE
    mu: float = 0.1  # Eq. 8; authors' runs: 0.1 nudity and easy objects, 1e-3 styles and hard objects
    epoch_tokens: Literal["all", "last-to-end", "last"] = "all"  # all: each position to the same one, as the code
    epoch_lamb: float = 0.1  # lambda_2, authors' runs
    epoch_preserve_scale: float = 0.1  # lambda_1, authors' runs; rows of the retained captions and the empty one (code)
    targets: Literal["current", "original"] = "current"  # values of the model being edited (code), or the base (Eq. 3)
    accumulate: bool = False  # ours: an edit also sends what the earlier ones sent; false: the newest e' alone

    def __post_init__(self) -> None:
        templates("captions", self.captions)
        for key in ("lamb", "preserve_scale", "epochs", "epoch_lamb", "epoch_preserve_scale"):
            at_least(key, getattr(self, key) or 0.0, 0)
        for key in ("erase_scale", "mu"):
            if not getattr(self, key) > 0:
                raise ConfigError(key, getattr(self, key), "must be positive")
