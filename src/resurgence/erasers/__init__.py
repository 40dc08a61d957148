"""Erasers: one file a method. A method turns a base and a task into the tensors it changes.

To add one: write a file here with a frozen config dataclass and `erase`, and end it with `ERASER = Eraser(...)`. In a
package of your own the same file is found through the entry point group `resurgence.erasers`. `declared.methods` lists
them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class EraserData:
    """What an eraser may need besides base and task; `Eraser.needs` names the parts that a method reads."""

    prior: torch.Tensor | None = None  # (d, d) float64, sum of e e^T over the prior corpus
    domain: torch.Tensor | None = None  # (d, d) float64, the same over captions of the retained concepts
    images: dict[str, torch.Tensor] = field(default_factory=dict)  # concept -> (N, 3, H, W) in [-1, 1]
    masks: dict[str, torch.Tensor] = field(default_factory=dict)  # concept -> (N, 1, H, W) bool
    anchors: dict[str, torch.Tensor] = field(default_factory=dict)  # mapping concept -> (N, 3, H, W) in [-1, 1]
    retained: dict[str, torch.Tensor] = field(default_factory=dict)  # retained concept -> (N, 3, H, W) in [-1, 1]
    state: Path | None = None  # scratch folder from which an interrupted training goes on, exactly


class Eraser(NamedTuple):
    """A method: its config class, its function and the fields of EraserData it reads."""

    config: type
    erase: Callable[..., dict[str, torch.Tensor]]  # (pipe, task, cfg, data, seed, folder=None) -> delta
    needs: frozenset[str]
