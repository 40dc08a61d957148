"""Settings of the closed forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from resurgence.config.erasers import Changes, EncoderPrecision, EraserConfig
from resurgence.config.fields import Captions, Count, Natural, NotNegative, Positive
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
    keep_empty: bool = True  # also retain all rows of the caption "", which counts as one: first script; 2025: false
    destination: str | None = None  # null: the task's mapping concept, ours; " " is the first script's default
    captions: Captions = ("{}",)  # both scripts; templates with one {}: a list, a file, or "" for MACE's
    encoder_precision: EncoderPrecision = "fp64"  # ours: see EncoderPrecision; the sums are always float64

    def destinations(self, task: Task | TaskPart) -> dict[str, str]:
        """Erased concept -> the word that it becomes."""
        return {c: task.mapping[c] if self.destination is None else self.destination for c in task.erase}

    def preservation(self, captions: int) -> float:
        """s_p for this number of captions of the retained concepts; "" counts as one more where it is retained."""
        return max(0.1, 1 / (captions + self.keep_empty)) if self.preserve_scale is None else self.preserve_scale


@dataclass(frozen=True)
class TimeConfig(EraserConfig):
    """Settings; the defaults are those of the paper's main experiment."""

    module: ClassVar[str] = "resurgence.erasers.closed_form.time"
    closed_form: ClassVar[bool] = True

    lamb: NotNegative = 0.1  # weight of ||W' - W||^2: paper and code
    keys: bool = True  # also edit to_k, the paper's main experiment; false: to_v alone, its ablation
    # templates with one {}: a list, a file, or "" for MACE's built-in 30; the default is the text and its augmentations
    captions: Captions = ("{}", "A photo of {}", "An image of {}", "A picture of {}")  # paper, code
    encoder_precision: EncoderPrecision = "fp64"  # ours: see EncoderPrecision; the sums are always float64


@dataclass(frozen=True)
class ReceConfig(UceConfig):
    """Settings; UCE's for the first edit, the authors' for nudity in the epochs, unless a comment says ours.

    The authors' runs use UCE's `erase_scale` in the epochs too.
    """

    module: ClassVar[str] = "resurgence.erasers.closed_form.rece"
    changes: ClassVar[Changes] = {"accumulate": (True,)}  # Eq. 3 has the newest e' alone

    epochs: Natural = 3  # authors' runs: 3 nudity, 2 other unsafe content, 1 styles and objects; 0: UCE
    mu: Positive = 0.1  # Eq. 8; authors' runs: 0.1 nudity and easy objects, 1e-3 styles and hard objects
    epoch_tokens: Literal["all", "last-to-end", "last"] = "all"  # all: each position to the same one, as the code
    epoch_lamb: NotNegative = 0.1  # lambda_2, authors' runs
    epoch_preserve_scale: NotNegative = 0.1  # lambda_1, authors' runs; rows of the retained captions and "" (code)
    targets: Literal["current", "original"] = "current"  # values of the model being edited (code), or the base (Eq. 3)
    accumulate: bool = False  # ours: an edit also maps the e' of the earlier ones; false: the newest e' alone


@dataclass(frozen=True)
class SpeedConfig(EraserConfig):
    """Settings; the defaults are those of the authors' script and its runs for one to three concepts, unless ours."""

    module: ClassVar[str] = "resurgence.erasers.closed_form.speed"
    closed_form: ClassVar[bool] = True

    tokens: Literal["last", "all"] = "last"  # of erased concepts: the last subject token; all but the start: nudity
    retained_tokens: Literal["last", "all"] = "last"  # of retained concepts; all: ours, with tokens: all they stay too
    keys: bool = False  # also edit to_k; script: to_v alone
    lamb: Positive = 1.0  # weight of ||Delta P||^2: paper; authors' runs for ten people and more: 0.05
    average: bool = False  # divide the sums over the erased concepts by their number: code; false: the formula's sums
    threshold: Positive = 0.1  # eigenvalues of the retained second moment below it span the null space; people: 1e-4
    prior_filter: bool = True  # only retained rows with more than mean influence; authors' runs for people: false
    augmentations: Natural = 10  # noisy copies of each retained row; 0: none
    directions: Count = 1  # right singular vectors of W, of its smallest singular values, along which noise is added
    invariants: Literal["rows", "centres", "none"] = "rows"  # ours, all rows of ""; centres: start, 3 of k-means: code
    destination: str | None = None  # null: the task's mapping concept, ours; authors' runs: "", "art", "person"
    captions: Captions = ("{}",)  # script; templates with one {}: a list, a file, or "" for MACE's
    encoder_precision: Literal["fp64", "fp32"] = "fp64"  # ours; no condition number bounds what its thresholds do

    def destinations(self, task: Task | TaskPart) -> dict[str, str]:
        """Erased concept -> the word that it becomes."""
        return {c: task.mapping[c] if self.destination is None else self.destination for c in task.erase}
