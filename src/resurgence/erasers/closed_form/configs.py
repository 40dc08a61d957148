"""Settings of the closed forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from resurgence.config.erasers import EraserConfig
from resurgence.config.fields import Captions, Natural, NotNegative, Positive
from resurgence.config.task import Task, TaskPart


@dataclass(frozen=True)
class UceConfig(EraserConfig):
    """Settings; the first script's, which the resurgence authors used, unless a comment says ours."""

    module: ClassVar[str] = "resurgence.erasers.closed_form.uce"
    closed_form: ClassVar[bool] = True

    tokens: Literal["last-to-end", "last"] = "last-to-end"  # first script; last: the last subject token only, 2025's
    lamb: NotNegative = 0.5  # weight of ||W' - W||^2: both scripts; Eq. 7 has none: 0.0
    erase_scale: Positive = 1.0  # s_e, weight of the erased concepts: both scripts, and Eq. 7
    preserve_scale: NotNegative | None = None  # s_p; null: max(0.1, 1 / retained captions), script; Eq. 7, 2025: 1
    destination: str | None = None  # null: the task's mapping concept, ours; " " is the first script's default
    captions: Captions = ("{}",)  # both scripts; templates with one {}: a list, a file, or "" for MACE's

    def destinations(self, task: Task | TaskPart) -> dict[str, str]:
        """Erased concept -> the word that it becomes."""
        return {c: task.mapping[c] if self.destination is None else self.destination for c in task.erase}

    def preservation(self, captions: int) -> float:
        """s_p for this number of retained captions."""
        return max(0.1, 1 / captions) if self.preserve_scale is None else self.preserve_scale


@dataclass(frozen=True)
class TimeConfig(EraserConfig):
    """Settings; the defaults are those of the paper's main experiment."""

    module: ClassVar[str] = "resurgence.erasers.closed_form.time"
    closed_form: ClassVar[bool] = True

    lamb: NotNegative = 0.1  # weight of ||W' - W||^2: paper and code
    keys: bool = True  # also edit to_k, the paper's main experiment; false: to_v alone, its ablation
    # templates with one {}: a list, a file, or "" for MACE's built-in 30; the default is the text and its augmentations
    captions: Captions = ("{}", "A photo of {}", "An image of {}", "A picture of {}")  # paper, code


@dataclass(frozen=True)
class ReceConfig(UceConfig):
    """Settings; UCE's for the first edit, the authors' for nudity in the epochs, unless a comment says ours.

    The authors' runs use UCE's `erase_scale` in the epochs too.
    """

    module: ClassVar[str] = "resurgence.erasers.closed_form.rece"

    epochs: Natural = 3  # authors' runs: 3 nudity, 2 other unsafe content, 1 styles and objects; 0: UCE
    mu: Positive = 0.1  # Eq. 8; authors' runs: 0.1 nudity and easy objects, 1e-3 styles and hard objects
    epoch_tokens: Literal["all", "last-to-end", "last"] = "all"  # all: each position to the same one, as the code
    epoch_lamb: NotNegative = 0.1  # lambda_2, authors' runs
    epoch_preserve_scale: NotNegative = 0.1  # lambda_1, authors' runs; rows of the retained captions and "" (code)
    targets: Literal["current", "original"] = "current"  # values of the model being edited (code), or the base (Eq. 3)
    accumulate: bool = False  # ours: an edit also maps the e' of the earlier ones; false: the newest e' alone
