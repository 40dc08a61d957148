"""Who judges the images of an audit: the metrics, and the scorers that give them with their settings."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resurgence.cli.audit_inputs import linked
from resurgence.cli.key_values import settings
from resurgence.config.audit import giver, yes_or_no
from resurgence.config.audit_bases import AuditBase
from resurgence.config.audit_kinds import AuditKind
from resurgence.config.fields import ConfigError
from resurgence.config.scorers import scorer_class
from resurgence.config.task import Task
from resurgence.files import read_lines, resolve_path

NEAREST = "reference_accuracy"  # metric of the scorer of --reference
FILES = ("path", "pictures", "reference")  # settings of a scorer that are files or folders
FEATURES = ("path", "name", "pretrained")  # settings of CLIP that say which features are compared


class Judges(NamedTuple):
    """Who says whether an image shows its concept."""

    metric: str
    retained_metric: str | None  # of the retained concepts, where it is another one
    detected: bool = False  # whether the detector of the kind was there, so that the command has to name its metric
    absent: str = ""  # why the detector of the kind does not judge; "": it does, or is not asked

    @property
    def all(self) -> list[str]:
        """The metrics."""
        return [metric for metric in (self.metric, self.retained_metric) if metric is not None]


def judges(args: Namespace, base: AuditBase, kind: AuditKind, task: Task) -> Judges:
    """The metric of the erased concepts, and that of the retained ones where it is another one.

    Raises:
        ConfigError: a metric that says of no image whether its concept is there, that no scorer of the audit gives, or
            that has no value for concepts of this kind.
    """
    default, detected, absent = NEAREST if args.reference else kind.metric or base.metric, False, ""
    if kind.detector is not None and args.metric is None and not args.reference:
        absent = absent_detector(args, base, kind.detector, (*task.erase, *task.retain))
        default, detected = (default, False) if absent else (kind.detector, True)
    metric: str = args.metric or default
    if metric not in yes_or_no():
        remedy = f"does not say of each image whether its concept is there; take one of {', '.join(yes_or_no())}"
        raise ConfigError("--metric", metric, remedy)
    present = [*base.scorers, *(name for name, *_ in args.scorer), *(["reference"] if args.reference else [])]
    giving = [name for name in present if metric in scorer_class(name).metrics]
    kinds = next((base.scorers[name]["kinds"] for name in giving if "kinds" in base.scorers.get(name, {})), [task.kind])
    if task.kind not in kinds:
        remedy = f"is of the kind {', '.join(kinds)} alone, and {', '.join(task.erase)} of the kind {task.kind}; take "
        raise ConfigError("--metric", metric, f"{remedy}another metric, or name the kind with --kind")
    if not giving:
        remedy = f"no scorer of the audit gives it; add --scorer {giver(metric)} with its settings"
        raise ConfigError("--metric", metric, remedy)
    judged_apart = kind.retained_metric is not None and metric not in (kind.retained_metric, NEAREST)
    return Judges(metric, kind.retained_metric if judged_apart else None, detected, absent)


def absent_detector(args: Namespace, base: AuditBase, metric: str, concepts: Sequence[str]) -> str:
    """Why the detector of a metric cannot judge these concepts, in words; empty: it can."""
    name = giver(metric)
    given = next((settings(pairs, f"--scorer {name}") for scorer, *pairs in args.scorer if scorer == name), {})
    path = str(given.get("path", base.scorers[name]["path"]))
    folder = Path(resolve_path(path))
    if not all((folder / file).is_file() for file in ("labels.txt", "model.safetensors")):
        return f"{metric}: no weights at {path}"
    known = {label.lower() for label in read_lines(folder / "labels.txt")}
    if lacking := [concept for concept in concepts if concept.lower() not in known]:
        return f"{metric}: it does not know {', '.join(lacking)}"
    return ""


def scorers(
    args: Namespace, base: AuditBase, kind: AuditKind, judged_by: Sequence[str], out: Path
) -> dict[str, dict[str, Any]]:
    """The scorers that give the metrics: those of the command line, else those of the base; the card shows no other."""
    of_kind, given = kind.scorers, dict[str, dict[str, Any]]()
    for name, *pairs in args.scorer:
        kept = {key: base.scorers[name][key] for key in ("kinds",) if key in base.scorers.get(name, {})}
        given[name] = {**kept, **of_kind.get(name, {}), **scorer(out, name, settings(pairs, f"--scorer {name}"))}
    if args.reference:
        own, clip = given.get("reference", {}), given.get("clip") or base.scorers["clip"]
        given["reference"] = reference(out, args.reference, own, clip)
    for metric in judged_by:
        if not any(metric in scorer_class(name).metrics for name in given):
            giving = [name for name in base.scorers if metric in scorer_class(name).metrics]
            of_base = {name: scorer(out, name, base.scorers[name], optional=True) for name in giving}
            given |= {name: {**values, **of_kind.get(name, {})} for name, values in of_base.items()}
    return given


def reference(out: Path, pictures: str, own: Mapping[str, Any], clip: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the scorer of --reference, in the features that its own settings name, else in those of CLIP.

    Raises:
        ConfigError: its own settings name pictures, too.
    """
    if "pictures" in own:
        raise ConfigError("--reference", pictures, "--scorer reference names pictures, too; name them once")
    features = {} if {*FEATURES, "architecture"} & own.keys() else {k: clip[k] for k in FEATURES if k in clip}
    return {**features, **own, "pictures": linked(out, "reference-pictures", pictures, "--reference")}


def scorer(out: Path, name: str, values: Mapping[str, Any], optional: bool = False) -> dict[str, Any]:
    """The settings of a scorer, with links to its files.

    Args:
        optional: whether a file that is not in the working folder is left to be looked for in the checkout.
    """
    files = {key: values[key] for key in FILES if isinstance(values.get(key), str)}
    if optional:
        files = {key: value for key, value in files.items() if Path(value).exists()}
    links = {key: linked(out, f"{name}-{key}", value, f"--scorer {name} {key}") for key, value in files.items()}
    return {**values, **links}
