"""RECE: Reliable and Efficient Concept Erasure (Gong et al., ECCV 2024, arXiv 2407.12383), Eq. 3 and 8.

First a UCE edit (Eq. 3). Then, `epochs` times, derive the embedding e' from which the edited model W' would still
compute what the original W computes of the concept,

    e' = argmin sum_projections ||W' e' - W e(c*)||^2 + mu ||e'||^2
       = (mu I + sum W'^T W')^-1 (sum W'^T W) e(c*)                                                          (Eq. 8)

and map it to the destination by one more edit,

    W'' = argmin s_e sum_erase ||W'' e' - W' e(c)||^2 + s_p sum_keep ||W'' e - W' e||^2 + lamb ||W'' - W'||_F^2 .

All edits are W' = W R with one d x d matrix R for every projection, so edits multiply; with G = sum W^T W the sums of
Eq. 8 are R^T G R and R^T G, and e' is linear in e. No projection is touched before the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from resurgence.config.task import Task
from resurgence.diffusion.attention import projection_weights
from resurgence.diffusion.deltas import Delta
from resurgence.diffusion.text import encoder_of, load_captions
from resurgence.erasers import EraserData
from resurgence.erasers.closed_form import solver
from resurgence.erasers.closed_form.configs import ReceConfig
from resurgence.erasers.closed_form.uce import kept_rows, last_token, subject_rows

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class Sums(NamedTuple):
    """What an edit reads of the captions: three (d, d) float64."""

    gram: torch.Tensor  # sum e e^T of the rows to be mapped elsewhere
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
    encoder, destinations = encoder_of(pipe, cfg.encoder_precision), cfg.destinations(task)
    zero = torch.zeros((), dtype=torch.float64, device=pipe.device)
    empty = (e := encoder([""])[0]).T @ e
    first, later = [zero, zero, empty if cfg.keep_empty else zero], [zero, zero, empty]
    embedded = encoder.each(templates, [*solver.paired_words(destinations), *task.retain])  # (T, L, d) a word
    for concept, aim, sources, targets in solver.caption_pairs(embedded, destinations):
        for template, *rows in zip(templates, sources, targets, strict=True):
            for total, rule in ((first, cfg.tokens), (later, cfg.epoch_tokens)):
                e, e_aim = paired(pipe, (concept, aim), template, rows, rule)
                total[0], total[1] = total[0] + e.T @ e, total[1] + e_aim.T @ e
    for concept, kept in zip(task.retain, embedded, strict=True):
        for total, rule in ((first, cfg.tokens), (later, "all")):
            rows = kept_rows(pipe.tokenizer, templates, concept, kept, rule)
            total[2] = total[2] + rows.T @ rows
    return Sums(*first), Sums(*later)


def derivation(matrix: torch.Tensor, energy: torch.Tensor, mu: float) -> torch.Tensor:
    """The matrix M that makes the derived embedding e' = M e of an embedding e (Eq. 8), (d, d).

    Args:
        matrix: R, so that the edited projections are W R. energy: G, the sum of W^T W over the projections.
    """
    factor = solver.factorise(solver.system(matrix.T @ energy @ matrix, mu), f"mu = {mu:g}")
    return solver.right_divide(energy @ matrix, factor).T


def following(matrix: torch.Tensor, sums: Sums, cfg: ReceConfig) -> tuple[torch.Tensor, float]:
    """R after one more edit of W R: (R, condition number).

    With targets `current` every value is one of W R, so the edit multiplies R from the right. With `original` the
    values are those of W, and only lamb ties the edit to W R.
    """
    settings = f"epoch_lamb = {cfg.epoch_lamb:g}, epoch_preserve_scale = {cfg.epoch_preserve_scale:g}"
    gram, aims, kept = cfg.erase_scale * sums.gram, cfg.erase_scale * sums.aims, cfg.epoch_preserve_scale * sums.kept
    regressors = solver.system(gram + kept, cfg.epoch_lamb)
    if cfg.targets == "current":
        edit = solver.shared_edit(aims - gram, regressors, settings)
        return matrix + matrix @ edit.matrix, edit.condition
    edit = solver.shared_edit(aims - matrix @ gram + kept - matrix @ kept, regressors, settings)
    return matrix + edit.matrix, edit.condition


def edit(pipe: StableDiffusionPipeline, task: Task, cfg: ReceConfig, data: EraserData) -> tuple[Delta, dict]:
    """Edit the text projections: (delta, report)."""
    weights, templates = projection_weights(pipe.unet), load_captions(cfg.captions, task.kind)
    first, later = sums(pipe, task, cfg, templates)
    scale = cfg.preservation(len(task.retain) * len(templates))
    regressors = solver.system(cfg.erase_scale * first.gram + scale * first.kept, cfg.lamb)
    settings = f"lamb = {cfg.lamb:g}, preserve_scale = {scale:g}"
    change = solver.shared_edit(cfg.erase_scale * (first.aims - first.gram), regressors, settings)

    identity = torch.eye(len(regressors), dtype=regressors.dtype, device=regressors.device)
    matrix, total, conditions = identity + change.matrix, first, [change.condition]
    energy = sum(w.double().T @ w.double() for w in weights.values()).to(identity)  # G
    for _ in range(cfg.epochs):
        m = derivation(matrix, energy, cfg.mu)
        new = Sums(m @ later.gram @ m.T, later.aims @ m.T, later.kept)
        total = Sums(total.gram + new.gram, total.aims + new.aims, new.kept) if cfg.accumulate else new
        matrix, condition = following(matrix, total, cfg)
        conditions.append(condition)
    delta, facts = solver.edited_delta("rece", weights, solver.Edit(matrix - identity, max(conditions)))
    return delta, {"edit": facts, "conditions": conditions}


erase = solver.solved(edit)
