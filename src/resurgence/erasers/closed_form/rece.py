"""RECE: Reliable and Efficient Concept Erasure (Gong et al., ECCV 2024, arXiv 2407.12383), Eq. 3 and 8.

First a UCE edit (Eq. 3). Then, `epochs` times, find the embedding e' from which the edited model W' would still get
what the original W made of the concept,

    e' = argmin sum_projections ||W' e' - W e(c*)||^2 + mu ||e'||^2
       = (mu I + sum W'^T W')^-1 (sum W'^T W) e(c*)                                                          (Eq. 8)

and send it to the destination by one more edit,

    W'' = argmin s_e sum_erase ||W'' e' - W' e(c)||^2 + s_p sum_keep ||W'' e - W' e||^2 + lamb ||W'' - W'||_F^2 .

All edits are W' = W R with one d x d matrix R for every projection, so edits multiply; with G = sum W^T W the sums of
Eq. 8 are R^T G R and R^T G, and e' is linear in e. No projection is touched before the end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from resurgence.diffusion.attention import as_delta, projection_weights
from resurgence.diffusion.text import Encoder, fill, load_captions
from resurgence.erasers import EraserData
from resurgence.erasers.closed_form.configs import ReceConfig
from resurgence.erasers.closed_form.solver import (
    Edit,
    apply_edit,
    factorise,
    relative_change,
    report,
    right_divide,
    shared_edit,
    system,
)
from resurgence.erasers.closed_form.uce import last_token, subject_rows

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from resurgence.config.task import Task


class Sums(NamedTuple):
    """What an edit reads of the captions: three (d, d) float64."""

    gram: torch.Tensor  # sum e e^T of the rows to be sent elsewhere
    aims: torch.Tensor  # sum e(c) e^T, their destinations
    kept: torch.Tensor  # sum e e^T of the rows to be preserved


def paired(
    pipe: StableDiffusionPipeline, words: tuple[str, str], template: str, rows: tuple[torch.Tensor, ...], rule: str
) -> tuple[torch.Tensor, ...]:
    """Rows e of a concept's caption and those of its destination's, paired by the rule.

    Args:
        words: concept and destination. rows: all rows of their captions, (L, d) each.
    """
    if rule == "all":
        return rows
    lasts = [last_token(pipe.tokenizer, template, word) for word in words]
    return subject_rows(*rows, *lasts, rule)


def sums(pipe: StableDiffusionPipeline, task: Task, cfg: ReceConfig, templates: tuple[str, ...]) -> tuple[Sums, Sums]:
    """The sums of the first edit, which are UCE's, and those of the epochs. Every caption is embedded once."""
    encoder = Encoder(pipe)
    empty, nothing = encoder([""])[0], torch.zeros((), dtype=torch.float64, device=pipe.device)
    first, later = [nothing] * 3, [nothing, nothing, empty.T @ empty]
    embedded = encoder.each(templates, [*task.erase, *task.retain])  # (T, L, d) a concept
    aimed: dict[str, torch.Tensor] = {}  # of the last destination, which most concepts share
    for concept, sources in zip(task.erase, embedded, strict=False):
        aim = task.mapping[concept] if cfg.destination is None else cfg.destination
        if aim not in aimed:
            aimed = {aim: encoder(fill(templates, aim))}
        for template, *rows in zip(templates, sources, aimed[aim], strict=True):
            for total, rule in ((first, cfg.tokens), (later, cfg.epoch_tokens)):
                e, e_aim = paired(pipe, (concept, aim), template, rows, rule)
                total[0], total[1] = total[0] + e.T @ e, total[1] + e_aim.T @ e
    for concept, kept in zip(task.retain, embedded, strict=True):
        later[2] = later[2] + kept.flatten(0, 1).T @ kept.flatten(0, 1)
        if cfg.tokens == "last":
            lasts = [last_token(pipe.tokenizer, template, concept) for template in templates]
            kept = kept[range(len(kept)), lasts, None]  # (T, 1, d)
        first[2] = first[2] + kept.flatten(0, 1).T @ kept.flatten(0, 1)
    return Sums(*first), Sums(*later)


def derivation(matrix: torch.Tensor, energy: torch.Tensor, mu: float) -> torch.Tensor:
    """The matrix M that makes the derived embedding e' = M e of an embedding e (Eq. 8), (d, d).

    Args:
        matrix: R, so that the edited projections are W R. energy: G, the sum of W^T W over the projections.
    """
    factor = factorise(system(matrix.T @ energy @ matrix, mu), f"mu = {mu:g}")
    return right_divide(energy @ matrix, factor).T


def following(matrix: torch.Tensor, found: Sums, cfg: ReceConfig) -> tuple[torch.Tensor, float]:
    """R after one more edit of W R: (R, condition number).

    With targets `current` every value is one of W R, so the edit multiplies R from the right. With `original` the
    values are those of W, and only lamb ties the edit to W R.
    """
    settings = f"epoch_lamb = {cfg.epoch_lamb:g}, epoch_preserve_scale = {cfg.epoch_preserve_scale:g}"
    gram, aims, kept = cfg.erase_scale * found.gram, cfg.erase_scale * found.aims, cfg.epoch_preserve_scale * found.kept
    regressors = system(gram + kept, cfg.epoch_lamb)
    if cfg.targets == "current":
        edit = shared_edit(aims - gram, regressors, settings)
        return matrix + matrix @ edit.matrix, edit.condition
    edit = shared_edit(aims - matrix @ gram + kept - matrix @ kept, regressors, settings)
    return matrix + edit.matrix, edit.condition


def erase(
    pipe: StableDiffusionPipeline, task: Task, cfg: ReceConfig, data: EraserData, seed: int, folder: Path | None = None
) -> dict[str, torch.Tensor]:
    """Edit the text projections in closed form. Nothing is drawn, so the seed has no effect.

    Args:
        folder: where closed_form.json goes; None: nowhere.
    """
    weights, templates = projection_weights(pipe.unet), load_captions(cfg.captions, task.kind)
    first, later = sums(pipe, task, cfg, templates)
    scale = cfg.preserve_scale
    if scale is None:
        scale = max(0.1, 1 / (len(task.retain) * len(templates)))
    regressors = system(cfg.erase_scale * first.gram + scale * first.kept, cfg.lamb)
    settings = f"lamb = {cfg.lamb:g}, preserve_scale = {scale:g}"
    edit = shared_edit(cfg.erase_scale * (first.aims - first.gram), regressors, settings)

    identity = torch.eye(len(regressors), dtype=regressors.dtype, device=regressors.device)
    matrix, found, conditions = identity + edit.matrix, first, [edit.condition]
    energy = sum(w.double().T @ w.double() for w in weights.values()).to(identity)  # G
    for _ in range(cfg.epochs):
        m = derivation(matrix, energy, cfg.mu)
        new = Sums(m @ later.gram @ m.T, later.aims @ m.T, later.kept)
        found = Sums(found.gram + new.gram, found.aims + new.aims, new.kept) if cfg.accumulate else new
        matrix, condition = following(matrix, found, cfg)
        conditions.append(condition)
    edited = apply_edit(weights, Edit(matrix - identity, max(conditions)))
    told = report("rece", max(conditions), relative_change(weights, edited))
    if folder is not None:
        (folder / "closed_form.json").write_text(json.dumps({"edit": told, "conditions": conditions}, indent=1))
    return as_delta(edited)
