"""The rows of the table of audits of models with known answers, one file a finished model, and their counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from resurgence.analysis.audit.result import Audit, Measure, Outcome
from resurgence.analysis.intervals import exact_limits
from resurgence.config.fields import ConfigError, Fraction, build
from resurgence.config.task import Kind
from resurgence.figures.card.text import measure_text
from resurgence.files import read_json

Answer = Literal["leaking", "safe"]
OUTCOMES: tuple[Outcome, ...] = ("PASS", "FAIL", "INCONCLUSIVE")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class KnownModel:
    """How a model is made, in the order of the fields, and the answer that follows from that."""

    answer: Answer
    why: str  # the answer is known
    erased: tuple[str, ...]  # audited concepts
    eraser: str | None = None  # TASK/ERASER or TASK/ERASER.VARIANT of the study; None: the base
    tensors: str = ""  # regular expression: tensors of the delta that are kept
    strength: Fraction | Literal[1] = 1  # W + strength (W' - W)
    words: dict[str, str] = field(default_factory=dict)  # word -> the word whose embedding takes its place
    taught: tuple[str, ...] = ()  # concepts on whose drawings a LoRA is trained at last
    after_update: bool = False  # it leaks only, or much more, after an update
    title: str = ""  # of a shipped control


@dataclass(frozen=True)
class Row:
    """What the table has of a finished model."""

    verdict: Outcome
    kind: Kind
    released: Measure
    worst: Measure | None  # of the benign updates, the released model among them
    which: str | None
    trained: str | None  # name of the first trained probe
    after: Measure | None  # what it shows
    seconds: float


def row_of(result: Audit, seconds: float) -> Row:
    """The row of a finished audit."""
    worst = result.probe(result.worst) if result.worst else None
    trained = next((probe for probe in result.probes if probe.seeds), None)
    return Row(result.verdict, result.task.kind, result.probes[0].erased, worst and worst.erased, worst and worst.name,
               trained and trained.name, trained and trained.erased, seconds)  # fmt: skip


def table(rows: Mapping[str, Row], models: Mapping[str, KnownModel]) -> str:
    """The table of the rows and the counts by answer, as Markdown."""
    columns = ("model", "erased", "answer", "verdict", "as released (%)", "worst benign update (%)", "which", "seconds")
    lines = [f"| {' | '.join(columns)} |", "|---|---|---|---|---:|---:|---|---:|"]
    for name, row in rows.items():
        model = models[name]
        of = ", ".join(model.erased) if len(model.erased) < 3 else f"{len(model.erased)} concepts"
        cells = [name, of, answer_of(model), row.verdict, measure_text(row.released), measure_text(row.worst),
                 row.which or "-", f"{row.seconds:.0f}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    verdicts = [(models[name], row.verdict) for name, row in rows.items()]
    return "\n".join([*lines, "", *counts(verdicts)])


def answer_of(model: KnownModel) -> str:
    """The answer in words."""
    return f"{model.answer} after an update" if model.after_update else model.answer


def counts(verdicts: Sequence[tuple[KnownModel, Outcome]]) -> list[str]:
    """How many models of each answer have each verdict, with Clopper and Pearson's intervals; lines of Markdown.

    The models that leak after an update are among those that leak, and have a line of their own.
    """
    titles = " | ".join(f"{outcome} (%)" for outcome in OUTCOMES)
    lines = [f"| answer | models | {titles} |", "|---|---:|---:|---:|---:|"]
    groups = {
        "leaking": [outcome for model, outcome in verdicts if model.answer == "leaking"],
        "of these after an update": [outcome for model, outcome in verdicts if model.after_update],
        "safe": [outcome for model, outcome in verdicts if model.answer == "safe"],
    }
    for answer, outcomes in groups.items():
        if not (n := len(outcomes)):
            continue
        cells = [answer, str(n)]
        for outcome in OUTCOMES:
            number = outcomes.count(outcome)
            low, high = (100 * end for end in exact_limits(number / n, n, CONFIDENCE))
            cells.append(f"{number}: {100 * number / n:.1f} [{low:.1f}, {high:.1f}]")
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def control_lines(rows: Mapping[str, Row], models: Mapping[str, KnownModel]) -> str:
    """The entries `shipped` of config/audit/bases.yaml, of the first trained update of each control.

    Raises:
        ConfigError: an audit without a trained update.
    """
    entries = []
    for name, row in rows.items():
        if row.trained is None or row.after is None:
            raise ConfigError("controls", name, "was audited without a trained update; audit it with pictures")
        images = row.after.images
        entries.append({"kind": "leaking", "title": models[name].title, "probe": row.trained,
                        "shown": round(row.after.value * images / 100), "images": images,
                        "released": round(row.released.value * images / 100), "concepts": list(models[name].erased),
                        "domain": row.kind})  # fmt: skip
    return yaml.safe_dump(entries, sort_keys=False, width=120, default_flow_style=None)


def finished(folder: Path, names: Iterable[str]) -> dict[str, Row]:
    """Model -> its row in a folder, of those that have one.

    Raises:
        ConfigError: a row of another form, of an earlier version.
    """
    files = {name: folder / f"{name}.json" for name in names}
    return {name: build(Row, read_json(file), str(file)) for name, file in files.items() if file.is_file()}
