"""card.json: the audit as a document of Every Eval Ever, schema 0.3.0 (evaleval/every_eval_ever), and its instances.

The document names a file with a line for each image, `data/resurgence-audit/DEVELOPER/MODEL/UUID_samples.jsonl` below
the folder of the card, as the datastore of Every Eval Ever names it; UUID.json beside it is the document again, so that
the folder `data` can be submitted as it is. Equal audits give equal bytes: the UUID comes from the result, and the time
is that of SOURCE_DATE_EPOCH (reproducible-builds.org), 0 without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from resurgence.analysis.audit.result import Audit, Measure, ModelImages, Probe
from resurgence.figures.card.rows import scores_of
from resurgence.figures.card.text import criteria_lines, limits
from resurgence.files import digest_of_text, json_text, plain, sha256, write_text

SCHEMA = "0.3.0"
BENCHMARK = "resurgence-audit"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_id(audit: Audit) -> str:
    """DEVELOPER/MODEL: a hub id as it is, `local/NAME` for anything else."""
    if HUB_ID.fullmatch(audit.checkpoint) and audit.sha256 is None:
        return audit.checkpoint
    name = re.sub(r"[^\w.-]+", "-", Path(audit.checkpoint).name).strip("-.")
    return f"local/{name or 'model'}"


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Additional details, whose values must be texts; what is None is left out."""
    return {
        name: value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)
        for name, value in values.items()
        if value is not None
    }


def score_details(measure: Measure, level: float, details: Mapping[str, Any]) -> dict[str, Any]:
    """A value with its interval, the method of it and the number of images."""
    uncertainty: dict[str, Any] = {"num_samples": measure.images}
    if measure.low is not None and measure.high is not None:
        ends = {"lower": measure.low, "upper": measure.high, "confidence_level": level, "method": measure.method}
        uncertainty["confidence_interval"] = ends
    return {"score": measure.value, "uncertainty": uncertainty, "details": texts(details)}


def result(
    audit: Audit, probe: Probe, of: str, measure: Measure, what: str, details: Mapping[str, Any]
) -> dict[str, Any]:
    """One evaluation result: a share in percent of one probe.

    Args:
        of: erased, erased:CONCEPT or retained.
    """
    erased = of != "retained"
    return {
        "evaluation_result_id": f"{probe.name}/{of}",
        "evaluation_name": f"{BENCHMARK}: {probe.title}: {what}",
        "source_data": {
            "dataset_name": f"prompts of the task {audit.task.name}", "source_type": "other",
            "additional_details": texts({"templates": audit.task.templates, "pairs": probe.pairs}),
        },
        "metric_config": {
            "evaluation_description": f"Share of the images in which {what}; {audit.metric_title}. {probe.update}",
            "metric_id": f"resurgence.{audit.metric}", "metric_name": audit.metric_title, "metric_kind": "accuracy",
            "metric_unit": "percent", "lower_is_better": erased, "score_type": "continuous",
            "min_score": 0.0, "max_score": 100.0,
        },
        "score_details": score_details(measure, audit.criteria.confidence, details),
        "generation_config": {
            "generation_args": {"execution_command": audit.command},
            "additional_details": texts({
                "update": probe.update, "update_settings": probe.settings or None, "pictures": probe.pictures or None,
                "pictures_number": probe.pictures_number, "pictures_made_by": probe.maker,
                "lower_bound": probe.lower_bound or None, "seeds": probe.seeds or None,
            }),
        },
    }  # fmt: skip


def results(audit: Audit) -> Iterator[dict[str, Any]]:
    """The evaluation results: of each probe the erased concepts, each of several ones, and the retained concepts."""
    for probe in audit.probes:
        details = {
            "verdict": probe.verdict, "reasons": probe.reasons or None, "benign": probe.benign,
            "would_decide": probe.decides or None, "images_erased": probe.erased.images,
            "images_retained": probe.retained.images if probe.retained else None,
            "difference_from_released": probe.difference, "p_returned_holm": probe.p_returned,
            "p_safe_holm": probe.p_safe, "recovered_fraction": probe.recovered,
            "one_training_seed": probe.this_run or None,
        }  # fmt: skip
        yield result(audit, probe, "erased", probe.erased, "an erased concept is shown", details)
        for concept, measure in probe.concepts.items() if len(probe.concepts) > 1 else ():
            yield result(audit, probe, f"erased:{concept}", measure, f"{concept} is shown", {})
        if probe.retained is not None:
            details = {"difference_from_released": probe.retained_change, "retained_loss": probe.retained_loss}
            yield result(audit, probe, "retained", probe.retained, "the retained concept is shown", details)


def document(audit: Audit, samples: Mapping[str, Any]) -> dict[str, Any]:
    """The document.

    Args:
        samples: its reference to the file of instances.
    """
    return {
        "schema_version": SCHEMA,
        "evaluation_id": evaluation_id(audit),
        "retrieved_timestamp": timestamp(),
        "source_metadata": {
            "source_name": "Resurgence release card", "source_type": "evaluation_run",
            "source_organization_name": audit.organization, "evaluator_relationship": audit.evaluator,
            "additional_details": texts({
                "verdict": audit.verdict, "sentence": audit.sentence, "reasons": audit.reasons or None,
                "criteria": criteria_lines(audit.criteria), "criteria_values": audit.criteria,
                "limitations": limits(audit), "power": audit.power.text, "controls": audit.power.controls or None,
                "worst_benign_update": audit.worst, "level": audit.level, "pairs_needed": audit.needed,
                "would_decide": audit.decides or None,
            }),
        },
        "eval_library": {"name": "resurgence", "version": audit.version},
        "model_info": {
            "name": audit.checkpoint, "id": model_id(audit),
            "additional_details": texts({
                "deployment_type": "self_deployed", "model_availability": "unknown", "sha256": audit.sha256,
                "revision": audit.revision, "base_model": audit.original.path if audit.original else None,
                "relative_weight_distances": audit.original.distances if audit.original else None,
                "erased_concepts": audit.task.erase, "mapping_concepts": audit.task.mapping,
                "retained_concepts": audit.task.retain,
            }),
        },
        "evaluation_results": list(results(audit)),
        "detailed_evaluation_results": dict(samples),
    }  # fmt: skip


def timestamp() -> str:
    """Seconds since 1970 of the record: SOURCE_DATE_EPOCH, or 0."""
    return os.environ.get("SOURCE_DATE_EPOCH", "0")


def evaluation_id(audit: Audit) -> str:
    """Benchmark, model, and the time of the record, or a digest of the result without one."""
    last = timestamp() if timestamp() != "0" else digest_of_text(plain(audit))[:16]
    return f"{BENCHMARK}/{model_id(audit)}/{last}"


def instance(audit: Audit, probe: Probe, images: ModelImages, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the file of instances: one image.

    Args:
        number: of the image in its set, from 0.
    """
    kind, place = "erased" if row["role"] != "retain" else "retained", f"{images.images}/step-{images.step:06d}"
    is_shown = bool(row["shows"])
    return {
        "schema_version": SCHEMA, "evaluation_id": evaluation_id(audit), "model_id": model_id(audit),
        "evaluation_name": f"{BENCHMARK}: {probe.title}", "evaluation_result_id": f"{probe.name}/{kind}",
        "sample_id": f"{probe.name}/{images.seed if images.seed is not None else '-'}/{number}",
        "sample_hash": hashlib.sha256(f"{row['prompt']}{row['concept']}".encode()).hexdigest(),
        "interaction_type": "single_turn",
        "input": {"raw": row["prompt"], "reference": [row["concept"]]},
        "output": {"raw": [f"{place}, row {number + 1}"]},
        "messages": None,
        "answer_attribution": [{
            "turn_idx": 0, "source": "output.raw", "extracted_value": row["concept"] if is_shown else "",
            "extraction_method": audit.metric, "is_terminal": True,
        }],
        "evaluation": {"score": 100.0 * row["shows"], "is_correct": is_shown == (kind == "retained")},
        "metadata": texts({"seed": int(row["seed"]), "role": row["role"], "update_seed": images.seed}),
    }  # fmt: skip


def instances(audit: Audit) -> Iterator[dict[str, Any]]:
    """A line for each image of a probe and result.

    Raises:
        FileNotFoundError, ValueError: scores that are missing or lack the metric's column.
    """
    for probe in audit.probes:
        for images in probe.models:
            roles = {images.role, "retain"} if probe.retained is not None else {images.role}
            table: pd.DataFrame = scores_of(audit, images)
            for number, row in table[table["role"].isin(roles)].iterrows():
                yield instance(audit, probe, images, int(number), row.to_dict())


def write(audit: Audit, folder: Path) -> None:
    """Write card.json, the file of instances that it names, and the document again beside that.

    Raises:
        FileNotFoundError, ValueError: see `instances`.
    """
    lines = [json.dumps(plain(line), sort_keys=True, ensure_ascii=False) for line in instances(audit)]
    content = "".join(f"{line}\n" for line in lines)
    digest = hashlib.sha256(f"{digest_of_text(plain(audit))}{content}".encode()).digest()
    name = str(uuid.UUID(bytes=digest[:16], version=4))
    place = f"data/{BENCHMARK}/{model_id(audit)}/{name}"
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{place}_samples.jsonl", content)
    samples = {
        "format": "jsonl", "file_path": f"{place}_samples.jsonl", "hash_algorithm": "sha256",
        "checksum": sha256(folder / f"{place}_samples.jsonl"), "total_rows": len(lines),
    }  # fmt: skip
    for file in (folder / "card.json", folder / f"{place}.json"):
        write_text(file, json_text(document(audit, samples)))
