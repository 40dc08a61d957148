"""The result of an audit as data: what was probed, what came back, and the verdict. The cards are drawn from it.

All shares and differences are in percent or points of percent. verdict.json holds an `Audit` with these names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resurgence.config.audit import Criteria, Evaluator, Level, Maker, ProbeKind
from resurgence.config.fields import build
from resurgence.config.task import Kind
from resurgence.files import read_json, write_json

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]
ControlKind = Literal["leaking", "untaught", "elsewhere", "reference"]
"""A model that leaks; false alarms: of a word that no model was taught, in images of others, in reference pictures."""
EXIT: dict[Outcome, int] = {"PASS": 0, "FAIL": 2, "INCONCLUSIVE": 3}
"""Exit codes of `resurgence audit`; 1 is an error."""


@dataclass(frozen=True)
class Measure:
    """A mean with its interval."""

    value: float
    low: float | None  # None: no interval, as nothing repeats
    high: float | None
    images: int  # rows behind it, of all runs
    method: str  # of the interval


@dataclass(frozen=True)
class CurvePoint:
    """A checkpoint of an update, the mean over its seeds."""

    step: int
    erased: Measure
    retained: Measure


@dataclass(frozen=True)
class ModelImages:
    """Where the images and scores of one model lie, and which rows of them a probe reads."""

    model: str  # its path, as ship/audited/s0/lora-domain/f0
    step: int  # of the checkpoint; 0: not fine-tuned
    images: str  # folder of its image sets
    scores: str  # folder of the scores of this step, for scorers.read_scores
    seed: int | None = None  # of the update; None: it has no random step
    role: str = "erase"  # of the rows with erased concepts: erase or synonym


@dataclass(frozen=True)
class Probe:
    """One probe: an update of the released model, or none, and what its images show."""

    name: str  # unique: released, released-synonyms, lora-domain-real, rounding-4, merge-1, ...
    kind: ProbeKind
    title: str
    update: str  # what was done, one sentence
    settings: dict[str, Any]  # of the update
    pictures: str  # that it was trained on; "": none
    pictures_number: int | None  # of these; None: none
    maker: Maker | None  # of the pictures
    lower_bound: bool  # the pictures are the audited model's, so more may come back with others
    seeds: tuple[int, ...]  # of the update; (): no random step
    this_run: bool  # one training seed: the interval says nothing of other seeds
    pairs: int  # distinct pairs of prompt and seed
    erased: Measure  # mean over the erased concepts
    concepts: dict[str, Measure]  # erased concept -> its own mean
    difference: Measure | None  # from the released model, paired; None for that model
    retained: Measure | None  # None: the probe has no retained images of its own
    retained_change: Measure | None  # from the released model, paired
    retained_loss: float | None  # percent of the released model's share; negative: a gain
    benign: bool  # its loss on retained concepts is not shown to exceed the criterion
    recovered: float | None  # (update - released) / (original - released); None without the original
    p_returned: float | None  # of "at most tau", adjusted for all probes by Holm
    p_safe: float | None  # of "more than allowed", adjusted for all probes by Holm
    verdict: Outcome
    reasons: tuple[str, ...]
    needed: int | None  # pairs that would decide; None: decided, or no number would
    decides: str  # what would decide, or why nothing would; "": decided
    curve: tuple[CurvePoint, ...]  # checkpoints of an update that is trained
    models: tuple[ModelImages, ...]  # one a seed


@dataclass(frozen=True)
class Control:
    """A model whose answer is known, under one of the probes."""

    kind: ControlKind
    title: str
    probe: str  # name of the probe
    measure: Measure
    origin: Literal["computed", "shipped"]
    passed: bool  # the leaking model is found; the false alarms are not shown to exceed tau
    models: tuple[ModelImages, ...] = ()  # of one that was computed
    concepts: tuple[str, ...] = ()  # that a leaking model has lost; () of false alarms


@dataclass(frozen=True)
class Power:
    """Whether the probes can find a model that leaks, and do not raise false alarms."""

    shown: bool
    text: str
    controls: tuple[Control, ...]


@dataclass(frozen=True)
class Original:
    """The model before erasing, where it is known."""

    path: str
    erased: Measure
    retained: Measure
    retained_change: Measure  # from it to the released model, paired
    distances: dict[str, float]  # part of the model -> |W' - W| / |W| of the released weights W', Frobenius norms
    models: tuple[ModelImages, ...]


@dataclass(frozen=True)
class AuditedTask:
    """What was erased and what must stay."""

    name: str
    kind: Kind
    erase: tuple[str, ...]
    retain: tuple[str, ...]
    mapping: dict[str, str]
    synonyms: dict[str, tuple[str, ...]]
    templates: tuple[str, ...]
    sensitive: bool  # images are blurred until clicked


@dataclass(frozen=True)
class Audit:
    """The whole result."""

    checkpoint: str
    sha256: str | None  # of its weights: of the file, or of the list of its files' digests; None for a hub id
    revision: str | None
    original: Original | None
    task: AuditedTask
    base: str  # name of the base in results/
    level: Level
    metric: str  # column of the scores, as recogniser_accuracy
    metric_title: str
    criteria: Criteria
    probes: tuple[Probe, ...]  # released first
    worst: str | None  # name of the probe with the largest erased share of those that are benign
    power: Power
    untested: tuple[str, ...]
    verdict: Outcome
    sentence: str
    reasons: tuple[str, ...]
    needed: int | None  # pairs of each probe that would decide; None: decided, or no number would
    decides: str  # what would decide, or why nothing would; "": decided
    command: str  # that repeats the audit
    version: str  # of resurgence
    organization: str = "not stated"  # that ran the audit
    evaluator: Evaluator = "other"  # its relationship to the audited model
    retained_metric: str | None = None  # of the retained concepts, where it is another one

    def probe(self, name: str) -> Probe:
        """The probe of a name; KeyError without one."""
        return {probe.name: probe for probe in self.probes}[name]


def write_audit(audit: Audit, path: Path) -> None:
    """Write verdict.json."""
    write_json(path, audit)


def read_audit(path: Path) -> Audit:
    """Read verdict.json.

    Raises:
        ConfigError: a key is missing, unknown or of another type.
    """
    return build(Audit, read_json(path), str(path))
