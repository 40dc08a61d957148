"""Erasers: a method turns a base and a task into a delta, the tensors of the base that it changes.

A method is two things, registered under one name (`config.erasers.ERASERS`, or an entry point of the group
`resurgence.erasers` in another package, `name = "module:ConfigClass"`):

- its **configuration class**, a frozen dataclass derived from `EraserConfig`, or from `Optimisation` for what trains
  by gradient steps. Its fields are the settings; its class variables and methods say what the workflow must know before
  a job runs: `module`, `needs` and `reads`, `closed_form`, `has_curve`, `has_words`, `trains_loras`, `fusion_settings`,
  `unet_passes`. The module that defines it should not import PyTorch.
- the **functions** of `module`. In all of them `pipe` is the base, left as it was; `cfg` an instance of the class;
  `data` an `EraserData` with what `cfg.reads(task.kind)` names; and every random draw follows from `seed`.

`erase(pipe, task, cfg, data, seed, folder=None) -> delta`
    Needed. `folder` is where further results go: curves.json ({quantity: [a value a step]}, drawn if `has_curve`),
    sensitive.json ({concept: [[word, probability], ...]}, drawn if `has_words`), and anything else; None: nowhere.
    `gradient.erasure.trained(Objective)` returns this function for a loss, `closed_form.solver.solved(edit)` for a
    closed form.

With `trains_loras` the training is a stage of its own, shared by all variants of an eraser that differ in
`fusion_settings` alone, and `erase` is only called outside a study (`lora.in_two_steps(train_loras, fuse)` makes it):

`train_loras(pipe, task, cfg, data, seed) -> lora.TrainedLoras`
    LoRAs by concept, their curves, the delta that they belong on (empty: the base), a report for closed_form.json and,
    optionally, sums over captions that all variants of the fusion share.
    `cfg` has the defaults of `fusion_settings`; of `task`, `erase` and `mapping` count, and `retain` if `retained` is
    read. `data.state` is a folder for the state of an interrupted training.
`fuse(pipe, task, cfg, data, refined, loras) -> (delta, report)`
    Joins them. `refined` and `loras` are what `train_loras` returned, read from its artefact; of `data`, only the
    second moments and the `sums` are there.

The base classes and what checks settings are importable from here without PyTorch; what a method is written with
(`Objective`, `Student`, closed forms, LoRAs, embeddings, latents) from `resurgence.erasers.toolkit`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resurgence.config.erasers import EraserConfig, Passes, eraser_config, method_module
from resurgence.config.fields import (
    Captions,
    ConfigError,
    Count,
    Natural,
    NotNegative,
    Positive,
    Template,
)
from resurgence.config.optimisation import Optimisation, Selection

if TYPE_CHECKING:
    import torch

__all__ = [
    "Captions", "ConfigError", "Count", "EraserConfig", "EraserData", "Natural", "NotNegative", "Optimisation",
    "Passes", "Positive", "Selection", "Template", "eraser_config", "method",
]  # fmt: skip


@dataclass(frozen=True)
class EraserData:
    """What an eraser may need besides base and task; `EraserConfig.reads` names the parts that a method reads."""

    prior: torch.Tensor | None = None  # (d, d) float64, sum of e e^T over the prior corpus
    domain: torch.Tensor | None = None  # (d, d) float64, the same over captions of the retained concepts
    images: dict[str, torch.Tensor] = field(default_factory=dict)  # concept -> (N, 3, H, W) in [-1, 1]
    masks: dict[str, torch.Tensor] = field(default_factory=dict)  # concept -> (N, 1, H, W) bool
    anchors: dict[str, torch.Tensor] = field(default_factory=dict)  # mapping concept -> (N, 3, H, W) in [-1, 1]
    anchor_captions: dict[str, list[str]] = field(default_factory=dict)  # mapping concept -> N prompts, {} for its name
    retained: dict[str, torch.Tensor] = field(default_factory=dict)  # retained concept -> (N, 3, H, W) in [-1, 1]
    sums: dict[str, torch.Tensor] = field(default_factory=dict)  # of `fuse`: TrainedLoras.sums of the LoRAs' training
    state: Path | None = None  # scratch folder for the state of an interrupted training, which resumes exactly


def method(name: str) -> Any:
    """The module with the functions of an eraser, imported now.

    Raises:
        ConfigError: for an unknown name.
    """
    return importlib.import_module(method_module(name))
