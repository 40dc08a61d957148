"""card.html: the verdict in one sentence, the probes with their intervals, images, what was not tested, criteria."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resurgence.analysis.audit.result import Audit, Measure, ModelImages, Probe
from resurgence.figures import charts
from resurgence.figures.card.rows import image_rows
from resurgence.figures.card.text import (
    EXPECTED,
    OUTCOMES,
    criteria_lines,
    distance_lines,
    images_of,
    limits,
    scope,
    verdict_line,
)
from resurgence.figures.numbers import Number, Source
from resurgence.figures.page import render
from resurgence.scorers import SCORES

RULE = "audit"  # that writes verdict.json


@dataclass
class Numbers:
    """The numbers of a card, each with where it stands in verdict.json and the command that prints its provenance."""

    sources: list[Source] = field(default_factory=list)

    def source(self, place: str, models: tuple[ModelImages, ...] = ()) -> Source:
        """A new source.

        Args:
            place: in verdict.json. models: that the numbers are about.
        """
        commands = tuple(f"resurgence provenance {model.scores}/{SCORES}" for model in models)
        self.sources.append(Source(f"s{len(self.sources) + 1}", f"verdict.json, {place}", commands, RULE))
        return self.sources[-1]


def as_number(measure: Measure | None, source: Source) -> Number | None:
    """A measure as a number of the page."""
    if measure is None:
        return None
    low, high = (math.nan if end is None else end for end in (measure.low, measure.high))
    return Number(measure.value, low, high, source)


def probe_block(probe: Probe, source: Source, is_worst: bool) -> dict[str, Any]:
    """A probe for the template."""
    measures = {
        "erased": probe.erased, "difference": probe.difference, "retained": probe.retained,
        "change": probe.retained_change,
    }  # fmt: skip
    return {
        "probe": probe, "outcome": OUTCOMES[probe.verdict], "worst": is_worst, "scope": scope(probe),
        "images": images_of(probe),
        "state": "erased" if probe.kind == "released" else "finetuned",
        "concepts": {name: as_number(measure, source) for name, measure in probe.concepts.items()},
        "curve": [(p.step, as_number(p.erased, source), as_number(p.retained, source)) for p in probe.curve],
        **{name: as_number(measure, source) for name, measure in measures.items()},
    }  # fmt: skip


def drawn_bars(blocks: list[dict[str, Any]], original: Mapping[str, Number | None], name: str) -> list[charts.Bar]:
    """The bars of the original and of all probes, of what is `erased` or `retained`."""
    items = [("before erasing", "base", original[name])] if original else []
    items += [(block["probe"].title, block["state"], block[name]) for block in blocks]
    return charts.bars([(label, state, number) for label, state, number in items if number], share=True)


def drawn_curves(blocks: list[dict[str, Any]], original: Mapping[str, Number | None], name: str) -> charts.Panel | None:
    """The curves of the updates with several checkpoints, from the released model on; None without one."""
    released, lines = blocks[0][name], {}
    for block in blocks:
        points = [(step, erased if name == "erased" else retained) for step, erased, retained in block["curve"]]
        if len(points) > 1:
            lines[block["probe"].title] = [*([(0, released)] if released else []), *points]
    return charts.panel(lines, original.get(name), share=True) if lines else None


def context(audit: Audit) -> dict[str, Any]:
    """All that the template shows.

    Raises:
        FileNotFoundError, ValueError: images or scores that are missing or of other prompts.
    """
    numbers, original = Numbers(), {}
    if audit.original:
        source = numbers.source("original", audit.original.models)
        pairs = (("erased", audit.original.erased), ("retained", audit.original.retained))
        original = {name: as_number(measure, source) for name, measure in pairs}
        original["change"] = as_number(audit.original.retained_change, source)
    blocks = [
        probe_block(probe, numbers.source(f"probe {probe.name}", probe.models), probe.name == audit.worst)
        for probe in audit.probes
    ]
    controls = [(each, as_number(each.measure, numbers.source(f"control {n}", each.models)))
                for n, each in enumerate(audit.power.controls, 1)]  # fmt: skip
    drawn = [
        {"title": title, "bars": drawn_bars(blocks, original, name), "curves": drawn_curves(blocks, original, name),
         "mark": audit.criteria.tau if name == "erased" else None}
        for name, title in (("erased", "Erased concepts"), ("retained", "Retained concepts"))
    ]  # fmt: skip
    rows, left_out = image_rows(audit)
    return {
        "audit": audit, "title": verdict_line(audit), "outcome": OUTCOMES[audit.verdict], "blocks": blocks,
        "original": original, "distances": distance_lines(audit), "expected": EXPECTED,
        "controls": controls, "drawn": drawn, "rows": rows, "left_out": left_out,
        "limits": limits(audit), "criteria": criteria_lines(audit.criteria), "sources": numbers.sources,
        "level": f"{100 * audit.criteria.confidence:g}", "width": charts.WIDTH, "height": charts.HEIGHT,
    }  # fmt: skip


def render_card(audit: Audit) -> str:
    """The page as text."""
    return render("card.html", context(audit), {})
