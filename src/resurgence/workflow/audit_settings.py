"""The job of an audit: the models of every probe, and what it reads of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from resurgence.config.audit import AuditConfig, ProbeConfig
from resurgence.config.model_path import method_name, split_name
from resurgence.config.study import Cell, Erasure, Study
from resurgence.provenance.manifest import MANIFEST
from resurgence.workflow import graph
from resurgence.workflow.job_settings import part
from resurgence.workflow.report_settings import seen_as

Item = str | Erasure | Cell


def audit_of(study: Study) -> AuditConfig:
    """The audit of a study that has one."""
    if study.audit is None:
        raise LookupError(f"the study {study.study} has no block audit; resurgence audit writes it")
    return study.audit


def models(study: Study, probe: ProbeConfig, eraser: str | None = None) -> list[Item]:
    """The models of a probe, one a seed.

    Args:
        eraser: another than the probe's, for a control.
    """
    wanted = probe.task, eraser or probe.eraser
    if probe.finetune is None:
        erased = [e for e in study.erasures() if (e.task, study.name_of(e)) == wanted]
        return [seen_as(study, item) for item in erased]
    return [
        cell
        for cell in study.cells()
        if (cell.erasure.task, study.name_of(cell.erasure)) == wanted
        and method_name(cell.finetune, cell.variant) == probe.finetune
    ]


def groups(study: Study) -> dict[str, list[Item]]:
    """The models that an audit reads: of each probe by its name, `original`, and the model that leaks, `leaking` after
    the probe and `leaking released` before it; no probe is called so."""
    audit = audit_of(study)
    by_group = {f"probe {probe.name}": models(study, probe) for probe in audit.probes}
    if audit.original is not None:
        by_group["original"] = [audit.released.task]
    if audit.leaking is not None:
        for group, probe in (("leaking", audit.probe(audit.leaking.probe)), ("leaking released", audit.released)):
            by_group[group] = models(study, probe, audit.leaking.eraser)
    return by_group


def update_settings(study: Study, probe: ProbeConfig) -> dict[str, Any]:
    """The settings of the update of a probe; empty for the released model."""
    if probe.finetune is not None:
        return study.finetune_settings(*split_name(probe.finetune))
    if probe.kind == "released":
        return {}
    return study.eraser_settings(probe.task, *split_name(probe.eraser))


def pictures(study: Study) -> dict[str, str]:
    """Probe -> the manifest of the pictures that it trains on."""
    first = {probe.name: models(study, probe)[:1] for probe in audit_of(study).probes}
    cells = {name: cell for name, items in first.items() for cell in items if isinstance(cell, Cell)}
    return {name: graph.finetune(study, cell)["set"][0] for name, cell in cells.items()}


def released(study: Study) -> str | None:
    """The manifest of the released model's difference from the original; None where that is unknown."""
    audit = audit_of(study)
    if audit.original is None:
        return None
    (model,) = models(study, audit.released)
    return graph.manifest(study, model, "delta")


def settings(study: Study) -> dict[str, Any]:
    """The settings of the job."""
    audit = audit_of(study)
    task = study.task(audit.released.task)
    return {
        "audit": dataclasses.asdict(audit) | {"sensitive": audit.sensitive or task.is_sensitive},
        "base": study.base.name,
        "models": {name: [str(study.model(item)) for item in items] for name, items in groups(study).items()},
        "updates": {probe.name: update_settings(study, probe) for probe in audit.probes},
        "pictures": {name: path.removesuffix(f"/{MANIFEST}") for name, path in pictures(study).items()},
        "released": (released(study) or "").removesuffix(f"/{MANIFEST}") or None,
        "task": part(task, "erase", "retain", "mapping", "synonyms", "templates"),
    }


def inputs(study: Study) -> dict[str, list[str]]:
    """Images and scores of all models, the pictures that they trained on, the released model's difference."""
    items = dict.fromkeys(item for group in groups(study).values() for item in group)
    artefacts = {kind: [f"{study.folder(item, kind)}/{MANIFEST}" for item in items] for kind in ("scores", "images")}
    artefacts["pictures"] = list(dict.fromkeys(pictures(study).values()))
    return artefacts | ({"released": [path]} if (path := released(study)) else {})
