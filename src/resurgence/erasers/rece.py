"""RECE: Reliable and Efficient Concept Erasure (Gong et al., ECCV 2024, arXiv 2407.12383), Eq. 3 and 8.

First a UCE edit (Eq. 3). Then `epochs` times: find the embedding e' from which the edited model W' would still get what
the original W made of the concept,

    e' = argmin sum_projections ||W' e' - W e(c*)||^2 + mu ||e'||^2
       = (mu I + sum W'^T W')^-1 (sum W'^T W) e(c*) ,                                                        (Eq. 8)

and send it to the destination by another edit of the same kind,

    W'' = argmin s_e sum_erase ||W'' e' - W' e(c)||^2 + s_p sum_keep ||W'' e - W' e||^2 + lamb ||W'' - W'||_F^2 .

All edits of a projection are W' = W R with one d x d matrix R for all of them: edits multiply, and with
G = sum W^T W the sums of Eq. 8 are R^T G R and R^T G. No projection is touched before the end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from resurgence.captions import Encoder, fill, load_captions
from resurgence.config import ConfigError, at_least
from resurgence.erasers import Eraser, EraserData
from resurgence.erasers.attention import as_delta, projection_weights
from resurgence.erasers.closed_form import (
    Edit,
    apply_edit,
    factorise,
    relative_change,
    report,
    right_divide,
    shared_edit,
    system,
)
from resurgence.erasers.uce import last_token, subject_rows

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from resurgence.config import Task

Rule = Literal["last-to-end", "last", "all"]


@dataclass(frozen=True)
class ReceConfig:
    """Settings; UCE's for the first edit, and those of the authors' nudity experiment for the epochs."""

    # the first edit: as in UCE
    tokens: Literal["last-to-end", "last"] = "last-to-end"
    lamb: float = 0.5
    erase_scale: float = 1.0  # s_e of the first edit and of the epochs
    preserve_scale: float | None = None  # null: max(0.1, 1 / number of retained captions)
    destination: str | None = None  # null: the task's mapping concept; " " is the scripts' default
    captions: str | tuple[str, ...] = ("{}",)  # templates with one {}: a list, a file, or "" for MACE's built-in 30
    # the epochs
    epochs: int = 3  # 3 nudity, 2 other unsafe content, 1 styles and objects
    mu: float = 0.1  # 0.1 nudity and easy objects, 1e-3 styles and hard objects; small for the miniature's weights
    epoch_tokens: Literal["all", "last-to-end", "last"] = "all"  # all: every position, paired by position
    epoch_lamb: float = 0.1  # lambda_2
    epoch_preserve_scale: float = 0.1  # lambda_1; the empty caption is kept as well
    targets: Literal["current", "original"] = "current"  # W' e of the model being edited (code), or W e of the base

    def __post_init__(self) -> None:
        for key in ("lamb", "preserve_scale", "epochs", "epoch_lamb", "epoch_preserve_scale"):
            at_least(key, getattr(self, key) or 0.0, 0)
        for key in ("erase_scale", "mu"):
            if not getattr(self, key) > 0:
                raise ConfigError(key, getattr(self, key), "must be positive")


def concept_rows(
    pipe: StableDiffusionPipeline, encoder: Encoder, templates: tuple[str, ...], concept: str, aim: str, rule: Rule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows e of a concept's captions and rows of its destination's, paired by the rule: two of (rows, d)."""
    sources, targets = encoder(fill(templates, concept)), encoder(fill(templates, aim))  # (T, L, d)
    if rule == "all":
        return sources.flatten(0, 1), targets.flatten(0, 1)
    pairs = []
    for template, source, target in zip(templates, sources, targets, strict=True):
        lasts = [last_token(pipe.tokenizer, template, word) for word in (concept, aim)]
        pairs.append(subject_rows(source, target, *lasts, rule))
    return torch.cat([e for e, _ in pairs]), torch.cat([aims for _, aims in pairs])


def kept_gram(
    pipe: StableDiffusionPipeline, encoder: Encoder, templates: tuple[str, ...], task: Task, rule: Rule
) -> torch.Tensor | float:
    """sum e e^T over the captions of the retained concepts, (d, d): all rows, or with rule `last` that one; or 0."""
    total = 0.0
    for concept in task.retain:
        rows = encoder(fill(templates, concept))  # (T, L, d)
        if rule == "last":
            lasts = [last_token(pipe.tokenizer, template, concept) for template in templates]
            rows = rows[torch.arange(len(rows)), lasts]
        rows = rows.reshape(-1, rows.shape[-1])
        total = total + rows.T @ rows
    return total


def derive(e: torch.Tensor, matrix: torch.Tensor, energy: torch.Tensor, mu: float) -> torch.Tensor:
    """The rows e' that regenerate rows e on the edited model W R (Eq. 8), (rows, d).

    Args:
        e: (rows, d). matrix: R. energy: G, the sum of W^T W over the projections. All float64.
    """
    factor = factorise(system(matrix.T @ energy @ matrix, mu), f"mu = {mu:g}")
    return right_divide(e @ energy @ matrix, factor)


def following(
    matrix: torch.Tensor, e: torch.Tensor, aims: torch.Tensor, kept: torch.Tensor, cfg: ReceConfig
) -> tuple[torch.Tensor, float]:
    """R after one more edit, which sends rows e to rows aims: (R, condition number).

    Args:
        matrix: R so far. e, aims: (rows, d). kept: sum e e^T of what is preserved, (d, d).
    """
    s_e, s_p = cfg.erase_scale, cfg.epoch_preserve_scale
    settings = f"epoch_lamb = {cfg.epoch_lamb:g}, epoch_preserve_scale = {s_p:g}"
    whole = system(s_e * e.T @ e, cfg.epoch_lamb, s_p, kept)
    if cfg.targets == "current":  # every value is one of W' = W R, so the new edit multiplies from the right
        edit = shared_edit(s_e * (aims - e).T @ e, whole, settings)
        return matrix + matrix @ edit.matrix, edit.condition
    cross = s_e * (aims - e @ matrix.T).T @ e + s_p * (kept - matrix @ kept)
    edit = shared_edit(cross, whole, settings)
    return matrix + edit.matrix, edit.condition


def erase(
    pipe: StableDiffusionPipeline, task: Task, cfg: ReceConfig, data: EraserData, seed: int, folder: Path | None = None
) -> dict[str, torch.Tensor]:
    """Edit the text projections in closed form. Nothing is drawn, so the seed has no effect.

    Args:
        folder: where closed_form.json goes; None: nowhere.
    """
    encoder, templates = Encoder(pipe), load_captions(cfg.captions, task.kind)
    aims = {c: task.mapping[c] if cfg.destination is None else cfg.destination for c in task.erase}

    def rows(rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [concept_rows(pipe, encoder, templates, concept, aim, rule) for concept, aim in aims.items()]
        return torch.cat([e for e, _ in pairs]), torch.cat([e for _, e in pairs])

    e, e_target = rows(cfg.tokens)
    scale = cfg.preserve_scale
    if scale is None:
        scale = max(0.1, 1 / (len(task.retain) * len(templates)))
    gram = cfg.erase_scale * e.T @ e + scale * kept_gram(pipe, encoder, templates, task, cfg.tokens)
    settings = f"lamb = {cfg.lamb:g}, preserve_scale = {scale:g}"
    edit = shared_edit(cfg.erase_scale * (e_target - e).T @ e, system(gram, cfg.lamb), settings)

    weights = projection_weights(pipe.unet)
    identity, conditions = torch.eye(len(gram), dtype=gram.dtype, device=gram.device), []
    if cfg.epochs:
        energy = sum(w.double().T @ w.double() for w in weights.values()).to(gram)
        empty = encoder([""])[0]  # (L, d)
        kept = empty.T @ empty + kept_gram(pipe, encoder, templates, task, cfg.epoch_tokens)
        e, e_target = rows(cfg.epoch_tokens)
        matrix = identity + edit.matrix
        for _ in range(cfg.epochs):
            matrix, condition = following(matrix, derive(e, matrix, energy, cfg.mu), e_target, kept, cfg)
            conditions.append(condition)
        edit = Edit(matrix - identity, max(edit.condition, *conditions))
    edited = apply_edit(weights, edit)
    told = report("rece", edit.condition, relative_change(weights, edited))
    if folder is not None:
        (folder / "closed_form.json").write_text(json.dumps({"edit": told, "epochs": conditions}, indent=1))
    return as_delta(edited)


ERASER = Eraser(ReceConfig, erase, frozenset())
