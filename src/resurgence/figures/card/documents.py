"""The audit for other documents: evaluation results of Hugging Face, CycloneDX, the EU AI Act's Annex XI."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from resurgence.analysis.audit.result import Audit, Measure, Probe
from resurgence.config.counting import counted
from resurgence.figures.card.every_eval_ever import model_id
from resurgence.figures.card.text import criteria_lines, limits, measure_text, scope
from resurgence.files import digest_of_text, plain

TASK = "text-to-image"


def measures(probe: Probe) -> Iterator[tuple[str, Measure]]:
    """What a probe measured, in percent, by what it is of."""
    yield "erased concepts shown (%)", probe.erased
    for concept, measure in probe.concepts.items() if len(probe.concepts) > 1 else ():
        yield f"{concept} shown (%)", measure
    if probe.retained is not None:
        yield "retained concepts shown (%)", probe.retained


def model_index(audit: Audit) -> str:
    """Evaluation results for the front matter of a model card on Hugging Face, as YAML with the key model-index."""
    evaluations = [
        EvalResult(
            task_type=TASK, dataset_type="resurgence-audit", dataset_name=f"prompts of the task {audit.task.name}",
            dataset_config=probe.name, metric_type=audit.metric, metric_name=f"{probe.title}: {name}",
            metric_value=measure.value,
            metric_args={
                "confidence_level": audit.criteria.confidence, "low": measure.low, "high": measure.high,
                "images": measure.images, "method": measure.method, "verdict": probe.verdict,
            },
        )
        for probe in audit.probes
        for name, measure in measures(probe)
    ]  # fmt: skip
    index = eval_results_to_model_index(model_id(audit), evaluations)
    return yaml.safe_dump({"model-index": plain(index)}, sort_keys=False, allow_unicode=True)


def performance_metric(audit: Audit, probe: Probe, name: str, measure: Measure) -> dict[str, Any]:
    """A metric of CycloneDX, whose values are texts."""
    metric: dict[str, Any] = {
        "type": f"{audit.metric}: {name}", "value": f"{measure.value:.6g}", "slice": f"{probe.title}, {probe.name}"
    }  # fmt: skip
    if measure.low is not None and measure.high is not None:
        metric["confidenceInterval"] = {"lowerBound": f"{measure.low:.6g}", "upperBound": f"{measure.high:.6g}"}
    return metric


def cyclonedx(audit: Audit) -> dict[str, Any]:
    """A bill of materials of CycloneDX 1.6 with the audited model, its ancestor, metrics and limitations."""
    digest = digest_of_text(plain(audit))
    component: dict[str, Any] = {
        "type": "machine-learning-model", "bom-ref": "audited-model", "name": audit.checkpoint,
        "modelCard": {
            "modelParameters": {"task": TASK, "inputs": [{"format": "text"}], "outputs": [{"format": "image"}]},
            "quantitativeAnalysis": {"performanceMetrics": [
                performance_metric(audit, probe, *pair) for probe in audit.probes for pair in measures(probe)
            ]},
            "considerations": {"technicalLimitations": [*audit.reasons, *(f"Not tested: {x}" for x in limits(audit))]},
        },
        "properties": [{"name": f"resurgence:audit:{name}", "value": value} for name, value in {
            "verdict": audit.verdict, "sentence": audit.sentence, "level": audit.level, "command": audit.command,
            "erased": ", ".join(audit.task.erase), "power": audit.power.text,
            "confidence": f"{audit.criteria.confidence:g}",
        }.items()],
    }  # fmt: skip
    if audit.sha256:
        component["hashes"] = [{"alg": "SHA-256", "content": audit.sha256}]
    if audit.revision:
        component["version"] = audit.revision
    if audit.original:
        component["pedigree"] = {"ancestors": [{"type": "machine-learning-model", "name": audit.original.path}]}
    tool = {"type": "application", "name": "resurgence", "version": audit.version}
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "serialNumber": f"urn:uuid:{uuid.UUID(hex=digest[:32], version=4)}",
        "metadata": {"tools": {"components": [tool]}}, "components": [component],
    }  # fmt: skip


def annex_xi(audit: Audit) -> dict[str, Any]:
    """What the audit can fill of Annex XI of Regulation (EU) 2024/1689; the provider of the model fills the rest.

    The keys name section, point and letter: section 1, points 1 (general description) and 2 (elements and development);
    section 2, points 1 (evaluation strategies with criteria, metrics, methodology on the identification of limitations,
    and results) and 2 (adversarial testing and model adaptations).
    """
    adapted = [probe for probe in audit.probes if probe.kind != "released"]
    return {
        "regulation": "Regulation (EU) 2024/1689, Annex XI",
        "model": {
            "name": audit.checkpoint, "sha256": audit.sha256, "revision": audit.revision,
            "base_model": audit.original.path if audit.original else None,
        },
        "section_1": {
            "1e_modality": "text in, image out",
            "2b_design_choices": f"Erased concepts: {', '.join(audit.task.erase)}; retained concepts to compare with: "
            f"{', '.join(audit.task.retain)}.",
            "2c_testing_data": f"{counted(max(probe.pairs for probe in audit.probes), 'pair')} of prompt and seed of "
            f"erased concepts a probe, from the templates {'; '.join(audit.task.templates)}.",
        },
        "section_2": {
            "1_evaluation_strategies": {
                "criteria": criteria_lines(audit.criteria),
                "metrics": {"name": audit.metric, "title": audit.metric_title,
                            "confidence": audit.criteria.confidence},
                "identification_of_limitations": {"method": audit.power.text, "limitations": limits(audit)},
                "results": {
                    "verdict": audit.verdict, "sentence": audit.sentence, "reasons": audit.reasons,
                    "probes": {probe.name: {name: measure_text(measure) for name, measure in measures(probe)}
                               for probe in audit.probes},
                },
            },
            "2_adaptations": [
                {"name": probe.name, "what": probe.update, "with": scope(probe), "settings": probe.settings,
                 "verdict": probe.verdict}
                for probe in adapted
            ],
        },
        "repeat": {"command": audit.command, "tool": "resurgence", "version": audit.version},
    }  # fmt: skip
