"""SPEED: Scalable, Precise, and Efficient Concept Erasure (Li et al., ICLR 2026, arXiv 2503.07392).

    Delta P = argmin ||(W + Delta P) E - W E*||^2 + lamb ||Delta P||^2   subject to   Delta P C = 0

for to_v of every cross-attention. The columns of E are embeddings e of the erased concepts, those of E* of their
destinations, those of C what no edit may change: the start token and the other rows of the caption "". P projects onto
the null space of the retained concepts' embeddings, so that what they say stays.

With an orthonormal basis V of those directions of the null space that are orthogonal to C, Delta P is A V^T with any A,
and the constraints are gone:

    Delta P = W (sum (e* - e) e^T) V (V^T (sum e e^T) V + lamb I)^-1 V^T

This is the paper's closed form W (E* E^T - E E^T) P Q M without the inverse of C^T P M C, which does not exist where a
column of C depends on others or on retained rows. V is another for each projection, because the retained rows are:

- prior filtering: those whose influence ||D e|| is above the mean, D = W (sum (e* - e) e^T) (sum e e^T + I)^-1 being
  the edit without constraints;
- prior augmentation: to each of them copies with normal noise along the right singular vectors of W with the smallest
  singular values, where W says nearly the same; of these, again, those above their mean influence.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.cluster.vq import kmeans

from resurgence.config.task import Task
from resurgence.diffusion.attention import as_delta, projection_weights
from resurgence.diffusion.deltas import Delta
from resurgence.diffusion.text import encoder_of, load_captions
from resurgence.erasers import EraserData
from resurgence.erasers.closed_form import solver
from resurgence.erasers.closed_form.configs import SpeedConfig
from resurgence.erasers.closed_form.rece import paired
from resurgence.erasers.closed_form.uce import kept_rows
from resurgence.pretrained.finite import check_finite
from resurgence.seeds import generator, seed_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

CENTRES = 3  # of the rows of "" behind the start token: code


class Rows(NamedTuple):
    """What the edits read of the captions, float64."""

    gram: torch.Tensor  # sum e e^T of the erased concepts, (d, d)
    cross: torch.Tensor  # sum (e* - e) e^T, (d, d)
    retained: torch.Tensor  # of the retained concepts, last subject tokens or all, (n, d)
    invariants: torch.Tensor  # columns of C, (m, d)


def invariant_rows(empty: torch.Tensor, rule: str, seed: int) -> torch.Tensor:
    """The rows that no edit may change, (m, d), of the rows (L, d) of the caption "": see `SpeedConfig.invariants`."""
    if rule == "rows":
        return empty
    if rule == "none":
        return empty[:0]
    draws = np.random.default_rng(seed_of("speed centres", seed))
    centres, _ = kmeans(empty[1:].cpu().numpy(), CENTRES, rng=draws)
    return torch.cat([empty[:1], torch.from_numpy(centres).to(empty)])


def embedded_rows(pipe: StableDiffusionPipeline, task: Task, cfg: SpeedConfig, seed: int) -> Rows:
    """Embed the captions, each once; without padding where only last subject tokens are read."""
    encoder, templates = encoder_of(pipe, cfg.encoder_precision), load_captions(cfg.captions, task.kind)
    destinations = cfg.destinations(task)
    gram = cross = torch.zeros((), dtype=torch.float64, device=pipe.device)
    words = [*solver.paired_words(destinations), *task.retain]
    embedded = encoder.each(templates, words, padded="all" in (cfg.tokens, cfg.retained_tokens))  # (T, L, d) a word
    for concept, aim, sources, targets in solver.caption_pairs(embedded, destinations):
        for template, *rows in zip(templates, sources, targets, strict=True):
            e, e_aim = paired(pipe, (concept, aim), template, tuple(rows), cfg.tokens)
            if cfg.tokens == "all":  # the start token's row is the same in both
                e, e_aim = e[1:], e_aim[1:]
            gram, cross = gram + e.T @ e, cross + (e_aim - e).T @ e
    number = len(task.erase) * len(templates) if cfg.average else 1
    retained = [
        kept_rows(pipe.tokenizer, templates, concept, states, cfg.retained_tokens)
        for concept, states in zip(task.retain, embedded, strict=True)
    ]
    empty = encoder([""])[0]
    return Rows(gram / number, cross / number, torch.cat(retained), invariant_rows(empty, cfg.invariants, seed))


def influential(rows: torch.Tensor, influence: torch.Tensor) -> torch.Tensor:
    """The rows (n, d) with at least the mean of the influences (n,): a single row stays."""
    return rows[influence >= influence.mean() * (1 - 1e-12)]


def refined_prior(
    weight: torch.Tensor, retained: torch.Tensor, direction: torch.Tensor, cfg: SpeedConfig, draws: torch.Generator
) -> torch.Tensor:
    """The retained rows (n, d) after filtering and augmentation for a projection W (out, d), float64.

    Args:
        direction: (sum (e* - e) e^T) (sum e e^T + I)^-1, (d, d), the edit without constraints before W.
    """

    def influence(rows: torch.Tensor) -> torch.Tensor:
        return (rows @ direction.T @ weight.T).norm(dim=1)

    if cfg.prior_filter:
        retained = influential(retained, influence(retained))
    if cfg.augmentations == 0:
        return retained
    quiet = torch.linalg.svd(weight, full_matrices=False).Vh[-cfg.directions :]  # (r, d)
    copies = retained.repeat(cfg.augmentations, 1)
    noise = torch.randn(copies.shape, generator=draws, dtype=torch.float64).to(copies)
    copies = copies + noise @ quiet.T @ quiet  # the same for either sign of a singular vector
    return torch.cat([retained, influential(copies, influence(copies))])


def free_directions(retained: torch.Tensor, invariants: torch.Tensor, threshold: float) -> torch.Tensor:
    """Orthonormal basis V (d, k) of the null space of the retained rows (n, d), orthogonal to the invariants (m, d)."""
    values, vectors = torch.linalg.eigh(retained.T @ retained / len(retained))
    basis = vectors[:, values < threshold]
    inside = invariants @ basis
    _, sizes, turn = torch.linalg.svd(inside)  # the last rows of `turn` are orthogonal to all rows of `inside`
    noise = 10 * max(invariants.shape) * torch.finfo(inside.dtype).eps * invariants.norm()
    return basis @ turn[int((sizes > noise).sum()) :].T


def constrained_edit(rows: Rows, basis: torch.Tensor, lamb: float) -> solver.Edit:
    """The matrix that W is to be multiplied with for Delta P, of the basis V (d, k)."""
    factor = solver.factorise(solver.system(basis.T @ rows.gram @ basis, lamb), f"lamb = {lamb:g}")
    return solver.Edit(solver.right_divide(rows.cross @ basis, factor) @ basis.T, factor.condition)


def edit(
    pipe: StableDiffusionPipeline, task: Task, cfg: SpeedConfig, data: EraserData, seed: int
) -> tuple[Delta, dict]:
    """Edit the text projections: (delta, report).

    Raises:
        ValueError: a projection for which retained rows and invariants leave no direction to change.
    """
    rows = embedded_rows(pipe, task, cfg, seed)
    direction = solver.shared_edit(rows.cross, solver.system(rows.gram, 1.0), "lamb = 1").matrix
    weights = {n: w for n, w in projection_weights(pipe.unet).items() if cfg.keys or n.endswith(".to_v")}
    edited: dict[str, torch.Tensor] = {}
    free: dict[str, int] = {}
    conditions = []
    for name, weight in weights.items():
        draws = generator("speed augmentation", seed, name)
        retained = refined_prior(weight.double(), rows.retained, direction, cfg, draws)
        basis = free_directions(retained, rows.invariants, cfg.threshold)
        if not basis.shape[1]:
            raise ValueError(
                f"speed: threshold = {cfg.threshold:g} and invariants: {cfg.invariants} leave none of {len(basis)} "
                f"directions of {name} to change; raise threshold, or retain fewer concepts"
            )
        change = constrained_edit(rows, basis, cfg.lamb)
        edited |= solver.apply_edit({name: weight}, change)
        free[name] = basis.shape[1]
        conditions.append(change.condition)
    check_finite(edited, "speed", "raise lamb")
    facts = solver.report("speed", max(conditions), solver.relative_change(weights, edited))
    return as_delta(edited), {"edit": facts, "null_space": free}


def erase(
    pipe: StableDiffusionPipeline,
    task: Task,
    cfg: SpeedConfig,
    data: EraserData,
    seed: int,
    folder: Path | None = None,
) -> Delta:
    """Return the edited projections; the seed draws the noise of the augmentation and the start of k-means."""
    return solver.solved(partial(edit, seed=seed))(pipe, task, cfg, data, seed, folder)
