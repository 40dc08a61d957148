"""Closed-form edits of the cross-attention projections, as one matrix shared by all of them.

MACE (Eq. 3), UCE, TIME and RECE all minimise, for each projection W,

    sum ||W' e - W e'||^2 + s sum_corpus ||W' e - W e||^2 + lamb ||W' - W||_F^2 .

The regressors e are text embeddings, which no layer enters, and the targets are W e'. Therefore W' = W R with

    R = (sum e' e^T + s C + lamb I)(sum e e^T + s C + lamb I)^-1 = I + (sum (e' - e) e^T) S^-1 ,

S = sum e e^T + s C + lamb I (d x d). The second form is what is computed: it is exact where nothing is to change.
Everything is float64; S is factorised once, by Cholesky.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

from resurgence.config.task import Task
from resurgence.diffusion.attention import as_delta
from resurgence.diffusion.deltas import Delta
from resurgence.erasers import EraserData
from resurgence.pretrained.finite import check_finite

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

log = logging.getLogger(__name__)
NEGLIGIBLE = 1e-5  # of a delta: how far `encoder_precision: auto` lets it move
T = TypeVar("T")


class Factor(NamedTuple):
    """The Cholesky factor of a system and its condition number."""

    cholesky: torch.Tensor  # (d, d), lower
    condition: float


class Edit(NamedTuple):
    """R - I, shared by all projections, and the condition number of the system it came from."""

    matrix: torch.Tensor  # (d, d) float64
    condition: float


def paired_words(destinations: Mapping[str, str]) -> list[str]:
    """The words whose captions `caption_pairs` reads, in its order: each concept and its destination."""
    return [word for pair in destinations.items() for word in pair]


def caption_pairs(
    embedded: Iterator[torch.Tensor], destinations: Mapping[str, str]
) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor]]:
    """Each concept, its destination, and the embeddings (T, L, d) of the captions of both.

    Args:
        embedded: embeddings of the captions of `paired_words(destinations)`, as `Encoder.each` makes them.
    """
    for concept, aim in destinations.items():
        yield concept, aim, next(embedded), next(embedded)


def paired_rows(
    source: list[int], target: list[int], concept: Collection[int], length: int
) -> tuple[list[int], list[int]]:
    """Which positions of the concept caption are mapped to which positions of the mapping caption (MACE).

    The longest common prefix and suffix of the un-padded ids co-occur, beginning and end token included; the concept's
    own tokens are skipped; the padding behind both is appended, counted from the end token and cut to the shorter one.
    The end and padding positions carry the concept, so it is through them and the shared words that it is remapped.

    Args:
        source, target: un-padded ids of the caption with the concept and with the mapping concept.
        concept: positions of the concept's tokens in `source`.
        length: of the padded captions.

    Returns:
        Two lists of the same length: row i of the first is mapped to row i of the second.
    """
    n, m = len(source), len(target)
    shared = min(n, m)
    prefix = next((i for i in range(shared) if source[i] != target[i]), shared)
    rest = shared - prefix  # the suffix must not overlap the prefix
    suffix = next((i for i in range(rest) if source[n - 1 - i] != target[m - 1 - i]), rest)
    pairs = [(i, i) for i in range(prefix)] + [(n - i, m - i) for i in range(suffix, 0, -1)]
    pairs += [(n + i, m + i) for i in range(length - max(n, m))]
    pairs = [pair for pair in pairs if pair[0] not in concept]
    return [i for i, _ in pairs], [j for _, j in pairs]


def system(gram: torch.Tensor, lamb: float, scale: float = 0.0, moment: torch.Tensor | None = None) -> torch.Tensor:
    """S = sum e e^T + s C + lamb I: (d, d) float64.

    Raises:
        ValueError: if scale is positive and there is no moment, or one of another size.
    """
    total = gram + lamb * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    if scale == 0:
        return total
    if moment is None or moment.shape != gram.shape:
        shape = None if moment is None else tuple(moment.shape)
        raise ValueError(
            f"second moment {shape}, expected {tuple(gram.shape)}; compute it on this base, or set scale 0"
        )
    return total + scale * moment.to(gram)


def factorise(matrix: torch.Tensor, settings: str) -> Factor:
    """Cholesky factor and condition number of a symmetric matrix.

    Args:
        settings: the values of lamb and scale, for the message.

    Raises:
        ValueError: if the matrix is not finite, or not positive definite in float64, naming the settings and the
            condition number.
    """
    remedy = "check the base's text encoder and the moments"
    check_finite({"the system": matrix}, f"closed form with {settings}", remedy)
    values = torch.linalg.eigvalsh(matrix)
    condition = float(values[-1] / values[0]) if values[0] > 0 else float("inf")
    cholesky, failed = torch.linalg.cholesky_ex(matrix)
    if failed or not condition < 1 / (len(matrix) * torch.finfo(matrix.dtype).eps):
        raise ValueError(
            f"the closed form has no unique solution with {settings}: its system is not positive definite "
            f"(condition number {condition:.1e}); raise lamb, or the scale of the prior moments"
        )
    return Factor(cholesky, condition)


def right_divide(rows: torch.Tensor, factor: Factor) -> torch.Tensor:
    """rows S^-1, for rows (n, d) and the factor of the symmetric S (d, d)."""
    return torch.cholesky_solve(rows.T, factor.cholesky).T


def shared_edit(cross: torch.Tensor, matrix: torch.Tensor, settings: str) -> Edit:
    """R - I = (sum (e' - e) e^T) S^-1.

    Args:
        cross: sum of (e' - e) e^T, (d, d) float64. matrix: S. settings: for the message of `factorise`.
    """
    factor = factorise(matrix, settings)
    return Edit(right_divide(cross, factor), factor.condition)


def apply_edit(weights: Mapping[str, torch.Tensor], edit: Edit) -> dict[str, torch.Tensor]:
    """W' = W R for each projection W (out, d), computed in float64, returned in its own precision."""
    return {name: (w.double() + w.double() @ edit.matrix.to(w.device)).to(w.dtype) for name, w in weights.items()}


def relative_change(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """||W' - W||_F / ||W||_F of each projection."""
    return {n: float((after[n].double() - w.double()).norm() / w.double().norm()) for n, w in before.items()}


def report(stage: str, condition: float, changes: Mapping[str, float]) -> dict:
    """Log and return the condition number and the relative weight changes of one closed form."""
    values = list(changes.values())
    log.info(
        "%s: %d projections, condition number %.2e, relative weight change %.3g to %.3g",
        stage, len(values), condition, min(values), max(values),
    )  # fmt: skip
    return {"condition": condition, "relative_change": dict(changes)}


def edited_delta(stage: str, weights: Mapping[str, torch.Tensor], edit: Edit) -> tuple[Delta, dict]:
    """The delta of an edit of projections, and its report; raises ValueError for a projection that is not finite."""
    edited = apply_edit(weights, edit)
    check_finite(edited, stage, "raise lamb")
    return as_delta(edited), report(stage, edit.condition, relative_change(weights, edited))


def movement(condition: float) -> float:
    """How far an encoder in float32 can move a delta, relative to it, at this condition number: 2^-23 sqrt(condition).

    Rows that are off by u = 2^-24 of the largest singular value move the solution by u sqrt(largest / smallest
    eigenvalue) at most, twice as both e and e' are off. Measured on the miniature and on 12 random layers of CLIP's
    widths, with conditions of 1e2 to 1e8: 0.003 to 0.95 of it.
    """
    return 2**-23 * condition**0.5


def conditions(facts: Mapping[str, Any]) -> list[float]:
    """The condition numbers in a report."""
    return [part["condition"] for part in facts.values() if isinstance(part, Mapping) and "condition" in part]


def in_precision(precision: str, run: Callable[[str], T], condition: Callable[[T], float]) -> tuple[T, str]:
    """The result of a closed form, and the precision of the text encoder that it took: fp64 or fp32.

    Args:
        precision: fp64, fp32, or auto: fp32, and once more fp64 where the delta could move by `NEGLIGIBLE`.
        run: the closed form, of fp64 or fp32. condition: its condition number, of its result.
    """
    if precision != "auto":
        return run(precision), precision
    result = run("fp32")
    number = condition(result)
    chosen = "fp32" if movement(number) < NEGLIGIBLE else "fp64"
    log.info("encoder_precision: %s, condition number %.2e: fp32 moves the delta by up to %.1e", chosen, number,
             movement(number))  # fmt: skip
    return (result if chosen == "fp32" else run("fp64")), chosen


def solved(edit: Callable[[Any, Task, Any, EraserData], tuple[Delta, dict[str, Any]]]) -> Callable[..., Delta]:
    """Return `erase(pipe, task, cfg, data, seed, folder=None)`, which is deterministic: the seed has no effect.

    Args:
        edit: the delta and the content of closed_form.json, from (pipe, task, cfg, data).
    """

    def erase(
        pipe: StableDiffusionPipeline, task: Task, cfg: Any, data: EraserData, seed: int, folder: Path | None = None
    ) -> Delta:
        if not hasattr(cfg, "encoder_precision"):  # a closed form of another package
            delta, facts = edit(pipe, task, cfg, data)
        else:
            (delta, facts), precision = in_precision(
                cfg.encoder_precision,
                lambda precision: edit(pipe, task, replace(cfg, encoder_precision=precision), data),
                lambda result: max(conditions(result[1])),
            )
            facts["encoder_precision"] = precision
        if folder is not None:
            (folder / "closed_form.json").write_text(json.dumps(facts, indent=1))
        return delta

    return erase
