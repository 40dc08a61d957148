"""The code that the settings of a job choose: modules of methods, scorers, segmenters, which code versions include."""

from __future__ import annotations

from typing import Any

from resurgence.config.erasers import method_module
from resurgence.config.model_path import ModelPath, split_name
from resurgence.config.scorers import code_of, declarations
from resurgence.config.study import Study


def eraser(study: Study, wildcards: Any) -> tuple[str, ...]:
    """The module of a job's eraser."""
    return (method_module(study.erasers[split_name(wildcards.eraser.rpartition("/")[2])[0]].name),)


def scorer(study: Study, wildcards: Any) -> tuple[str, ...]:
    """The scorers of a task, and their application to image sets."""
    kind = study.task(ModelPath.parse(wildcards.model).task).kind
    return ("resurgence.scorers", "resurgence.scorers.score_files", *code_of(study.scorers_of(kind)))


def reference(study: Study, wildcards: Any) -> tuple[str, ...]:
    """The scorer whose features are compared."""
    return ("resurgence.scorers", *code_of([study.scorers["frechet"]["features"]]))


def segmenter(study: Study, wildcards: Any) -> tuple[str, ...]:
    """The module of the study's segmenter."""
    return (f"resurgence.data.segmenters.{study.masks.segmenter.replace('-', '_')}",)


def clip(study: Study, wildcards: Any) -> tuple[str, ...]:
    """CLIP, which compares names."""
    return code_of(["clip"])


def metric(study: Study, wildcards: Any) -> tuple[str, ...]:
    """The metrics that the study's scorers declare."""
    return declarations(study.scorers)


def experiment(study: Study, wildcards: Any) -> tuple[str, ...]:
    """The code behind the tables; CLIP for an experiment that compares words."""
    compares = study.experiments[wildcards.experiment].kind == "similarity"
    return (*table(study, wildcards), *(clip(study, wildcards) if compares else ()))


def table(study: Study, wildcards: Any) -> tuple[str, ...]:
    """The code behind the tables: the metrics, the reader of scores, the distance between sets."""
    return ("resurgence.scorers:read_scores", "resurgence.scorers.frechet", *declarations(study.scorers))
