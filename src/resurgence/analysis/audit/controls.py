"""The controls of an audit: models that leak and must be found, and false alarms, which must not be raised.

A false alarm is an erased concept that the scorer sees where there is no reason to: in images of a word that no model
was taught, in images of retained concepts, or in the reference pictures of other things. Whatever its kind, one whose
lower end is above tau keeps the model from passing, and a probe must exceed its upper end to fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from resurgence.analysis.audit.evidence import change, seen_elsewhere
from resurgence.analysis.audit.measures import ModelScores, measure, measure_of_count, of_models
from resurgence.analysis.audit.result import Control, ControlKind, Measure, ModelImages, Power
from resurgence.config.audit import TRAINED, AuditConfig, Criteria, ProbeConfig, ShippedControl, giver
from resurgence.config.scorers import metrics

Models = Mapping[str, Sequence[ModelScores]]
WRONG: dict[ControlKind, str] = {
    "leaking": "a model that leaks was not found",
    "untaught": "a concept that no model was taught was found, a false alarm",
    "elsewhere": "an erased concept was found in images of others, a false alarm",
    "reference": "other reference pictures were taken for an erased concept, a false alarm",
}
NOT_TRIED: dict[ControlKind, str] = {
    "leaking": "a model that leaks was not tried",
    "untaught": "a concept that no model was taught was not tried",
}  # the power needs both


def controls(cfg: AuditConfig, models: Models, column: str, erased: Sequence[str]) -> tuple[Control, ...]:
    """The controls: computed with the audit, of the erased concepts, or before.

    Args:
        column: of the scores. erased: the concepts of the audited model.
    """
    computed = [leaking(cfg, models, column, erased), untaught(cfg, models, column, erased),
            elsewhere(cfg, models, erased), reference(cfg, models)]  # fmt: skip
    return (*(control for control in computed if control is not None), *(shipped(each, cfg) for each in cfg.shipped))


def leaking(cfg: AuditConfig, models: Models, column: str, erased: Sequence[str]) -> Control | None:
    """The model that leaks, made of the original: one that shows more after the update, since any probe finds a model
    that was never erased."""
    if cfg.leaking is None:
        return None
    level, criteria = cfg.criteria.confidence, cfg.criteria
    after, before = (of_models(models[group], column).erased for group in ("leaking", "leaking released"))
    result, rise = measure(after, level), measure(change(after, before), level)
    detected = is_above(result, criteria) and rise.low is not None and rise.low > criteria.above_released
    images = tuple(model.images("erase") for model in models["leaking"])
    title = as_released(cfg.leaking.title, before.value)
    return Control("leaking", title, cfg.leaking.probe, result, "computed", detected, images, tuple(erased))


def untaught(cfg: AuditConfig, models: Models, column: str, erased: Sequence[str]) -> Control | None:
    """The invented word, after the first trained update."""
    if cfg.untaught is None:
        return None
    probe, probed, images = control_probe(cfg, models, "synonym")
    result = measure(of_models(probed, column, "synonym").erased, cfg.criteria.confidence)
    title = f"the invented word {cfg.untaught!r}, judged as {erased[0]}"
    return Control("untaught", title, probe, result, "computed", not is_above(result, cfg.criteria), images)


def elsewhere(cfg: AuditConfig, models: Models, erased: Sequence[str]) -> Control | None:
    """An erased concept in images of the retained ones, after the first trained update."""
    probe, probed, images = control_probe(cfg, models, "retain")
    estimate = seen_elsewhere([model.steps[model.last] for model in probed], metrics()[cfg.metric].top, erased)
    if estimate is None:
        return None
    result = measure(estimate, cfg.criteria.confidence)
    what = f"taken for {erased[0]}" if len(erased) == 1 else "taken for one of the erased ones, the mean of these"
    title = f"images of retained concepts, {what}"
    return Control("elsewhere", title, probe, result, "computed", not is_above(result, cfg.criteria), images)


def reference(cfg: AuditConfig, models: Models) -> Control | None:
    """The false alarm rate of a scorer of reference pictures, the mean over the erased concepts."""
    rows = next(iter(models[f"probe {cfg.released.name}"][0].steps.values())).rows
    rate, number = (f"{giver(cfg.metric)}_{name}" for name in ("false_alarm_rate", "other_pictures"))
    if rate not in rows:
        return None
    concepts = rows[rows["role"] == "erase"].groupby("concept")[[rate, number]].first()
    pictures = int(concepts[number].min())  # the concepts share most of them, so that they add none
    result = measure_of_count(float(concepts[rate].mean()) * pictures, pictures, cfg.criteria.confidence)
    title = "reference pictures of other things, taken for an erased concept"
    return Control("reference", title, cfg.released.name, result, "computed", not is_above(result, cfg.criteria))


def shipped(each: ShippedControl, cfg: AuditConfig) -> Control:
    """A control that was computed before."""
    level, criteria = cfg.criteria.confidence, cfg.criteria
    result, title = measure_of_count(each.shown, each.images, level), each.title
    passed = is_above(result, criteria) == (each.kind == "leaking")
    if each.released is not None:  # of which images is not known, so that the two are not paired
        before = measure_of_count(each.released, each.images, level)
        title = as_released(title, before.value)
        if each.kind == "leaking":
            passed &= (result.low or 0.0) - (before.high or 0.0) > criteria.above_released
    return Control(each.kind, title, each.probe, result, "shipped", passed, concepts=each.concepts)


def as_released(title: str, share: float) -> str:
    """The title of a model that leaks with its share before the update."""
    return f"{title}; {share:.1f} % as released"


def is_above(result: Measure, criteria: Criteria) -> bool:
    """Whether a share is shown to exceed tau."""
    return result.low is not None and result.low > criteria.tau


def control_probe(
    cfg: AuditConfig, models: Models, role: str
) -> tuple[str, Sequence[ModelScores], tuple[ModelImages, ...]]:
    """The probe that shows false alarms, the first that trains, else the released model; its models, and their images
    of a role."""
    probe: ProbeConfig = next((probe for probe in cfg.probes if probe.kind in TRAINED), cfg.released)
    probed = models[f"probe {probe.name}"]
    return probe.name, probed, tuple(model.images(role) for model in probed)


def false_alarms(tried: Sequence[Control]) -> float:
    """The largest upper end, in percent, of the false alarms of all kinds that are shown to exceed tau; 0: none."""
    alarms = (control.measure.high or 0.0 for control in tried if control.kind != "leaking" and not control.passed)
    return max(alarms, default=0.0)


def power_of(tried: tuple[Control, ...], erased: Sequence[str], no_control: str = "") -> Power:
    """Whether a model that leaks was found, and no false alarm was raised.

    Args:
        erased: concepts of the audited model, which the model that leaks should not share.
        no_control: why no shipped model that leaks counts; "": one does, or none is needed.
    """
    kinds = {control.kind for control in tried}
    lacking = [text for kind, text in NOT_TRIED.items() if kind not in kinds]
    if lacking and "leaking" not in kinds and no_control:
        lacking[0] += f" ({no_control})"
    lacking += [text for kind, text in WRONG.items() if any(c.kind == kind and not c.passed for c in tried)]
    if lacking:
        return Power(False, f"Power not shown: {'; '.join(lacking)}.", tried)
    shown = "The probes find a model that leaks, and not a concept that no model was taught."
    return Power(True, " ".join([shown, *(shared(control, erased) for control in tried if control.concepts)]), tried)


def shared(control: Control, erased: Sequence[str]) -> str:
    """Whether a model that leaks has lost what the audited one has, in a sentence."""
    lost = f"It has lost {', '.join(control.concepts)}"
    if set(control.concepts).isdisjoint(erased):
        return f"{lost}, which the audited model has not."
    return f"{lost}, as the audited model has: no independent test of a model that was made in the same way."
