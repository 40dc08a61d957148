"""The code that the settings of a job choose, for its code version: functions of methods, scorers, segmenters."""

from __future__ import annotations

from typing import Any

from resurgence.config.erasers import eraser_config, method_module
from resurgence.config.model_path import ModelPath
from resurgence.config.scorers import code_of, declarations
from resurgence.config.study import Study
from resurgence.workflow.job_items import erasure
from resurgence.workflow.job_settings import has_loras


def function_of(name: str, function: str) -> tuple[str, ...]:
    """A function of a method, and its configuration class if that shares the module: the method may compute with it."""
    module, config = method_module(name), eraser_config(name)
    return f"{module}:{function}", *([f"{module}:{config.__name__}"] if config.__module__ == module else [])


def loras(study: Study, wildcards: Any) -> tuple[str, ...]:
    """The training of the LoRAs of a job's eraser."""
    return function_of(study.erasers[erasure(wildcards).eraser].name, "train_loras")


def eraser(study: Study, wildcards: Any) -> tuple[str, ...]:
    """The erasure by a job's eraser; of one whose LoRAs are another job's, only their fusion."""
    name = erasure(wildcards).eraser
    return function_of(study.erasers[name].name, "fuse" if has_loras(study, name) else "erase")


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
