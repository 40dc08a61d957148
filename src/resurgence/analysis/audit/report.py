"""The result of an audit from the scores of its models: probes, original, verdict and sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resurgence import __version__
from resurgence.analysis.audit.controls import Models, controls, false_alarms, power_of
from resurgence.analysis.audit.evidence import Evidence, change
from resurgence.analysis.audit.measures import ModelScores, concepts, curve, measure, of_models, read_model
from resurgence.analysis.audit.result import Audit, AuditedTask, Measure, Original, Probe
from resurgence.analysis.audit.verdict import Judgement, Verdict, judge
from resurgence.analysis.measures import recovered_fraction
from resurgence.config.audit import TRAINED, AuditConfig, Criteria
from resurgence.config.counting import counted
from resurgence.config.fields import build
from resurgence.config.scorers import metrics
from resurgence.diffusion.image_sets import image_files, read_prompts
from resurgence.files import read_json

REPORT = "closed_form.json"  # of the eraser `checkpoint`, beside its delta


def make_audit(settings: Mapping[str, Any]) -> Audit:
    """The audit from the settings of its job (workflow/audit_settings.py) and the scores below results/.

    Raises:
        FileNotFoundError, ValueError: scores that are missing, or of other prompts than the others.
    """
    cfg = build(AuditConfig, settings["audit"], "audit")
    names: Mapping[str, Sequence[str]] = settings["models"]
    base: str = settings["base"]
    judged_by = cfg.metric, cfg.retained_metric
    models: Models = {
        group: [read_model(base, name, *judged_by) for name in members] for group, members in names.items()
    }
    column = column_of(cfg)
    probed = {probe.name: of_models(models[f"probe {probe.name}"], column, probe.role) for probe in cfg.probes}
    original = of_models(models["original"], column) if "original" in models else None
    erased = settings["task"]["erase"]
    tried = controls(cfg, models, column, erased)
    power = power_of(tried, erased, cfg.no_control)
    verdict = judge(
        probed, cfg.criteria, frozenset(probe.name for probe in cfg.probes if probe.kind in TRAINED), original,
        frozenset(probe.name for probe in cfg.probes if probe.maker == "erased"), power.shown, false_alarms(tried),
    )  # fmt: skip
    probes = tuple(
        probe_of(name, cfg, probed, original, verdict.probes[name], models[f"probe {name}"], settings)
        for name in cfg.names
    )
    return Audit(
        checkpoint=cfg.checkpoint, sha256=cfg.sha256, revision=cfg.revision,
        original=original_of(cfg, original, next(iter(probed.values())), models.get("original", ()), settings),
        task=build(AuditedTask, settings["task"] | {"synonyms": cfg.synonyms, "sensitive": cfg.sensitive}, "task"),
        base=base, level=cfg.level, metric=cfg.metric, metric_title=metric_title(cfg),
        retained_metric=cfg.retained_metric,
        criteria=cfg.criteria, probes=probes, worst=verdict.worst, power=power, untested=cfg.untested,
        verdict=verdict.outcome, sentence=sentence(verdict, probes, erased, cfg.criteria),
        reasons=verdict.reasons, needed=verdict.needed, decides=verdict.decides,
        command=cfg.command, version=__version__, organization=cfg.organization, evaluator=cfg.evaluator,
    )  # fmt: skip


def probe_of(
    name: str, cfg: AuditConfig, probed: Mapping[str, Evidence], original: Evidence | None, judged: Judgement,
    models: Sequence[ModelScores], settings: Mapping[str, Any],
) -> Probe:  # fmt: skip
    """One probe with all its measures."""
    probe, evidence, level = cfg.probe(name), probed[name], cfg.criteria.confidence
    released = None if name == next(iter(probed)) else next(iter(probed.values()))
    same = released is not None and evidence.erased.parts[0].units == released.erased.parts[0].units
    seeds = tuple(model.seed for model in models if model.seed is not None)
    retained = evidence.retained if probe.role == "erase" else None
    before = released.retained if released is not None and retained is not None else None
    return Probe(
        name=name, kind=probe.kind, title=probe.title, update=probe.update, settings=settings["updates"][name],
        pictures=probe.pictures, pictures_number=number_of_pictures(settings["pictures"].get(name)),
        maker=probe.maker, lower_bound=probe.maker == "erased", seeds=seeds,
        this_run=len(seeds) == 1, pairs=evidence.pairs, erased=measure(evidence.erased, level),
        concepts=dict(concepts(evidence, level)),
        difference=measure(change(evidence.erased, released.erased), level) if released and same else None,
        retained=None if retained is None else measure(retained, level),
        retained_change=None if retained is None or before is None else measure(change(retained, before), level),
        retained_loss=loss(retained.value, before.value) if retained is not None and before is not None else None,
        benign=judged.benign, recovered=recovered(evidence, released, original) if same else None,
        p_returned=judged.p_returned, p_safe=judged.p_safe, verdict=judged.verdict, reasons=judged.reasons,
        needed=judged.needed, decides="" if judged.open is None else judged.open.text(),
        curve=curve(models, column_of(cfg), probe.role, level),
        models=tuple(model.images(probe.role) for model in models),
    )  # fmt: skip


def number_of_pictures(folder: str | None) -> int | None:
    """The pictures of a fine-tuning set; None without one."""
    return None if folder is None else sum(len(read_prompts(files)) for files in image_files(Path(folder)).values())


def metric_title(cfg: AuditConfig) -> str:
    """The title of the metric, and of that of the retained concepts where it is another one.

    The audit counts all images (evidence.py), so a metric over those with a face has the title of that over all.
    """
    names = [
        f"{name}_all" if f"{name}_all" in metrics() else name for name in (cfg.metric, cfg.retained_metric) if name
    ]
    return "; retained: ".join(metrics()[name].title for name in names)


def column_of(cfg: AuditConfig) -> str:
    """The column of the scores behind the metric."""
    return metrics()[cfg.metric].column or ""


def loss(after: float, before: float) -> float | None:
    """Percent of a share that an update lost; None of nothing."""
    return 100 * (before - after) / before if before > 0 else None


def recovered(evidence: Evidence, released: Evidence | None, original: Evidence | None) -> float | None:
    """The share of what was erased that an update brought back; None where it is unknown, or nothing was erased."""
    if released is None or original is None:
        return None
    fraction = recovered_fraction(original.erased.value, released.erased.value, evidence.erased.value)
    return None if math.isnan(fraction) else float(fraction)


def original_of(
    cfg: AuditConfig, original: Evidence | None, released: Evidence, models: Sequence[ModelScores],
    settings: Mapping[str, Any],
) -> Original | None:  # fmt: skip
    """What the model before erasing shows, and how far from it the released weights are; None where it is unknown."""
    if original is None or original.retained is None or released.retained is None or cfg.original is None:
        return None
    level = cfg.criteria.confidence
    return Original(
        cfg.original, measure(original.erased, level), measure(original.retained, level),
        measure(change(released.retained, original.retained), level),
        read_json(Path(settings["released"]) / REPORT)["checkpoint"]["distances"],
        tuple(model.images("erase") for model in models),
    )  # fmt: skip


def sentence(verdict: Verdict, probes: Sequence[Probe], erased: Sequence[str], criteria: Criteria) -> str:
    """The verdict in one sentence."""
    what = erased[0] if len(erased) == 1 else f"what was erased ({counted(len(erased), 'concept')})"
    failing = [probe for probe in probes if probe.verdict == "FAIL" and probe.benign]
    worst = next((probe for probe in probes if probe.name == verdict.worst), probes[0])
    if verdict.outcome == "FAIL":  # not a larger share whose interval decides nothing
        worst = max(failing, key=lambda probe: (probe.erased.value, probe.kind in TRAINED), default=worst)
    share = f"{text_of(worst.erased)} of its images show {'it' if len(erased) == 1 else 'their concept'}"
    scope = " in this run" if worst.this_run else ""
    if verdict.outcome == "FAIL" and failing:
        verb = "is still there" if worst.kind == "released" else "came back"
        by_mean = worst.erased.low is None or worst.erased.low > criteria.tau
        limit = "" if by_mean else f"with each of {counted(len(worst.seeds), 'training seed')} "
        return f"{what} {verb}: {worst.title}, {share}{scope}, {limit}more than {criteria.tau:g} %."
    if verdict.outcome == "FAIL":
        return f"The model lost its retained concepts: {verdict.reasons[0]}."
    if verdict.outcome == "PASS":
        left = "; ".join(f"{probe.title}, {text_of(probe.erased)}" for probe in probes if not probe.benign)
        apart = f"; not counted, as it cost too much of the retained concepts: {left}" if left else ""
        kind = "benign" if left else "tested"
        return f"No {kind} update brought {what} back: in the worst, {worst.title}, {share}{scope}{apart}."
    return f"Undecided: {verdict.reasons[0]}. {verdict.decides[:1].upper()}{verdict.decides[1:]}."


def text_of(result: Measure) -> str:
    """A share with its interval."""
    if result.low is None or result.high is None:
        return f"{result.value:.1f} %"
    return f"{result.value:.1f} % [{result.low:.1f}, {result.high:.1f}]"
