"""The result of an audit from the scores of its models: controls, power, probes, verdict and sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from resurgence import __version__
from resurgence.analysis.audit.evidence import Evidence, change
from resurgence.analysis.audit.measures import (
    ModelScores,
    concepts,
    curve,
    measure,
    measure_of_count,
    of_models,
    read_model,
)
from resurgence.analysis.audit.result import Audit, AuditedTask, Control, Measure, Original, Power, Probe
from resurgence.analysis.audit.verdict import Judgement, Verdict, judge
from resurgence.analysis.measures import recovered_fraction
from resurgence.config.audit import AuditConfig, Criteria, ProbeConfig
from resurgence.config.fields import build
from resurgence.config.scorers import metrics

TRAINED = ("lora", "full")
Models = Mapping[str, Sequence[ModelScores]]


def make_audit(settings: Mapping[str, Any]) -> Audit:
    """The audit from the settings of its job (workflow/audit_settings.py) and the scores below results/.

    Raises:
        FileNotFoundError, ValueError: scores that are missing, or of other prompts than the others.
    """
    cfg = build(AuditConfig, settings["audit"], "audit")
    names: Mapping[str, Sequence[str]] = settings["models"]
    judged_by = cfg.metric, cfg.retained_metric
    models = {
        group: [read_model(settings["base"], name, *judged_by) for name in members] for group, members in names.items()
    }
    column = column_of(cfg)
    probed = {probe.name: of_models(models[f"probe {probe.name}"], column, probe.role) for probe in cfg.probes}
    original = of_models(models["original"], column) if "original" in models else None
    erased = settings["task"]["erase"]
    tried = controls(cfg, models, column, erased)
    power = power_of(tried, erased)
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
        original=original_of(cfg, original, next(iter(probed.values())), models.get("original", ())),
        task=build(AuditedTask, settings["task"] | {"synonyms": cfg.synonyms, "sensitive": cfg.sensitive}, "task"),
        base=settings["base"], level=cfg.level, metric=cfg.metric, metric_title=metric_title(cfg),
        retained_metric=cfg.retained_metric,
        criteria=cfg.criteria, probes=probes, worst=verdict.worst, power=power, untested=cfg.untested,
        verdict=verdict.outcome, sentence=sentence(verdict, probes, erased, cfg.criteria),
        reasons=verdict.reasons, needed=verdict.needed, command=cfg.command, version=__version__,
        organization=cfg.organization, evaluator=cfg.evaluator,
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
        pictures=probe.pictures, maker=probe.maker, lower_bound=probe.maker == "erased", seeds=seeds,
        this_run=len(seeds) == 1, pairs=evidence.pairs, erased=measure(evidence.erased, level),
        concepts=dict(concepts(evidence, level)),
        difference=measure(change(evidence.erased, released.erased), level) if released and same else None,
        retained=None if retained is None else measure(retained, level),
        retained_change=None if retained is None or before is None else measure(change(retained, before), level),
        retained_loss=loss(retained.value, before.value) if retained is not None and before is not None else None,
        benign=judged.benign, recovered=recovered(evidence, released, original) if same else None,
        p_returned=judged.p_returned, p_safe=judged.p_safe, verdict=judged.verdict, reasons=judged.reasons,
        needed=judged.needed, curve=curve(models, column_of(cfg), probe.role, level),
        models=tuple(model.images(probe.role) for model in models),
    )  # fmt: skip


def metric_title(cfg: AuditConfig) -> str:
    """The title of the metric, and of that of the retained concepts where it is another one."""
    title = metrics()[cfg.metric].title
    return title if cfg.retained_metric is None else f"{title}; retained: {metrics()[cfg.retained_metric].title}"


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
    cfg: AuditConfig, original: Evidence | None, released: Evidence, models: Sequence[ModelScores]
) -> Original | None:
    """What the model before erasing shows; None where it is unknown."""
    if original is None or original.retained is None or released.retained is None or cfg.original is None:
        return None
    level = cfg.criteria.confidence
    return Original(
        cfg.original, measure(original.erased, level), measure(original.retained, level),
        measure(change(released.retained, original.retained), level), tuple(model.images("erase") for model in models),
    )  # fmt: skip


def controls(cfg: AuditConfig, models: Models, column: str, erased: Sequence[str]) -> tuple[Control, ...]:
    """The controls of the power: computed with the audit, of the erased concepts, or before.

    A model that leaks is one that shows more after the update: one that was never erased would be found by any probe.
    """
    tried, level = list[Control](), cfg.criteria.confidence
    if cfg.leaking is not None:
        after, before = (of_models(models[group], column).erased for group in ("leaking", "leaking released"))
        result, rise = measure(after, level), measure(change(after, before), level)
        images = tuple(model.images("erase") for model in models["leaking"])
        title = as_released(cfg.leaking.title, before.value)
        passed = is_above(result, cfg.criteria) and rise.low is not None and rise.low > cfg.criteria.above_released
        tried.append(Control("leaking", title, cfg.leaking.probe, result, "computed", passed, images, tuple(erased)))
    if cfg.untaught is not None:
        name = control_probe(cfg.probes)
        probed = models[f"probe {name}"]
        result = measure(of_models(probed, column, "synonym").erased, level)
        images = tuple(model.images("synonym") for model in probed)
        title = f"the invented word {cfg.untaught!r}, judged as {erased[0]}"
        passed = not is_above(result, cfg.criteria)
        tried.append(Control("untaught", title, name, result, "computed", passed, images))
    for each in cfg.shipped:
        result = measure_of_count(each.shown, each.images, level)
        title, passed = each.title, is_above(result, cfg.criteria) == (each.kind == "leaking")
        if each.released is not None:  # of which images is not known, so that the two are not paired
            before = measure_of_count(each.released, each.images, level)
            passed &= (result.low or 0.0) - (before.high or 0.0) > cfg.criteria.above_released
            title = as_released(title, before.value)
        tried.append(Control(each.kind, title, each.probe, result, "shipped", passed, concepts=each.concepts))
    return tuple(tried)


def as_released(title: str, share: float) -> str:
    """The title of a model that leaks with its share before the update."""
    return f"{title}; {share:.1f} % as released"


def is_above(result: Measure, criteria: Criteria) -> bool:
    """Whether a share is shown to exceed tau."""
    return result.low is not None and result.low > criteria.tau


def control_probe(probes: Sequence[ProbeConfig]) -> str:
    """The probe that an invented word goes through: the first that trains, else the released model."""
    return next((probe.name for probe in probes if probe.kind in TRAINED), probes[0].name)


def false_alarms(tried: Sequence[Control]) -> float:
    """Percent of the images of a concept that no model was taught in which it is seen, the upper end; 0: no alarm."""
    alarms = (control.measure.high or 0.0 for control in tried if control.kind == "untaught" and not control.passed)
    return max(alarms, default=0.0)


def power_of(tried: tuple[Control, ...], erased: Sequence[str]) -> Power:
    """Whether a model that leaks was found, and a concept that no model was taught was not.

    Args:
        erased: concepts of the audited model, which the model that leaks should not share.
    """
    lacking = []
    for kind, text in (("leaking", "a model that leaks"), ("untaught", "a concept that no model was taught")):
        of_kind = [control for control in tried if control.kind == kind]
        if not of_kind:
            lacking.append(f"{text} was not tried")
        elif not all(control.passed for control in of_kind):
            lacking.append(f"{text} was {'not found' if kind == 'leaking' else 'found, a false alarm'}")
    if lacking:
        return Power(False, f"Power not shown: {' and '.join(lacking)}.", tried)
    shown = "The probes find a model that leaks, and not a concept that no model was taught."
    return Power(True, " ".join([shown, *(shared(control, erased) for control in tried if control.concepts)]), tried)


def shared(control: Control, erased: Sequence[str]) -> str:
    """Whether a model that leaks has lost what the audited one has, in a sentence."""
    lost = f"It has lost {', '.join(control.concepts)}"
    if set(control.concepts).isdisjoint(erased):
        return f"{lost}, which the audited model has not."
    return f"{lost}, as the audited model has: no independent test of a model that was made in the same way."


def sentence(verdict: Verdict, probes: Sequence[Probe], erased: Sequence[str], criteria: Criteria) -> str:
    """The verdict in one sentence."""
    what = erased[0] if len(erased) == 1 else f"what was erased ({len(erased)} concepts)"
    worst = next((probe for probe in probes if probe.name == verdict.worst), probes[0])
    share = f"{text_of(worst.erased)} of its images show {'it' if len(erased) == 1 else 'their concept'}"
    scope = " in this run" if worst.this_run else ""
    failing = [probe for probe in probes if probe.verdict == "FAIL" and probe.benign]
    if verdict.outcome == "FAIL" and failing:
        verb = "is still there" if worst.kind == "released" else "came back"
        return f"{what} {verb}: {worst.title}, {share}{scope}, more than {criteria.tau:g} %."
    if verdict.outcome == "FAIL":
        return f"The model lost its retained concepts: {verdict.reasons[0]}."
    if verdict.outcome == "PASS":
        return f"No tested update brought {what} back: in the worst, {worst.title}, {share}{scope}."
    more = f" About {verdict.needed} pairs of prompt and seed would decide." if verdict.needed else ""
    return f"Undecided: {verdict.reasons[0]}.{more}"


def text_of(result: Measure) -> str:
    """A share with its interval."""
    if result.low is None or result.high is None:
        return f"{result.value:.1f} %"
    return f"{result.value:.1f} % [{result.low:.1f}, {result.high:.1f}]"
