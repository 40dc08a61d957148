"""TIME: Text-to-Image Model Editing (Orgad, Kawar and Belinkov, ICCV 2023, arXiv 2303.08084), its closed form.

    W' = argmin sum_i ||W' e_i - W e'_i||^2 + lamb ||W' - W||_F^2 = (lamb W + sum W e' e^T)(lamb I + sum e e^T)^-1

for to_k and to_v of every cross-attention: e are the token embeddings of the source caption, e' those of the tokens of
the destination caption that correspond to them. TIME edits assumptions ("roses" -> "blue roses") and keeps nothing but
what lies near W. As an eraser it sends a concept to its mapping concept; `corresponding` says how their tokens pair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from resurgence.config.task import Task
from resurgence.diffusion.attention import projection_weights
from resurgence.diffusion.deltas import Delta
from resurgence.diffusion.text import concept_positions, encoder_of, fill, load_captions, token_ids
from resurgence.erasers import EraserData
from resurgence.erasers.closed_form.configs import TimeConfig
from resurgence.erasers.closed_form.solver import (
    caption_pairs,
    edited_delta,
    paired_words,
    shared_edit,
    solved,
    system,
)

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def subsequence(source: list[int], target: list[int]) -> list[int] | None:
    """The first positions of `target` with the tokens of `source` in their order; None if it is no subsequence."""
    ahead = iter(range(len(target)))
    positions = [next((j for j in ahead if target[j] == token), None) for token in source]
    return None if None in positions else positions


def aligned(source: list[int], target: list[int]) -> list[int]:
    """Positions in `target` for the tokens of `source` where the two differ in one stretch: a concept for another.

    A common beginning and a common end map to themselves. What differs is paired from its last token on, since the
    last word names what is meant ("old cat" -> "wild dog"); tokens left over go to the first one that differs.
    """
    n, m = len(source), len(target)
    shared = min(n, m)
    prefix = next((i for i in range(shared) if source[i] != target[i]), shared)
    suffix = next((i for i in range(shared - prefix) if source[n - 1 - i] != target[m - 1 - i]), shared - prefix)
    return [i if i < prefix else max(prefix, i + m - n) for i in range(n - suffix)] + list(range(m - suffix, m))


def corresponding(source: list[int], target: list[int], length: int) -> list[int]:
    """For each position of the source caption, the position of the destination caption whose value it is to take.

    A destination that holds all source tokens is the paper's case: every token goes to itself and what was added is
    passed over. Padding is counted from the end token; where the destination has less of it, its last position serves.

    Args:
        source, target: un-padded ids, beginning and end token included. length: of the padded captions.
    """
    positions = subsequence(source, target) or aligned(source, target)
    return positions + [min(len(target) + i, length - 1) for i in range(length - len(source))]


def edit(pipe: StableDiffusionPipeline, task: Task, cfg: TimeConfig, data: EraserData) -> tuple[Delta, dict]:
    """Edit the text projections: (delta, report)."""
    tokenizer, templates = pipe.tokenizer, load_captions(cfg.captions, task.kind)
    gram = cross = torch.zeros((), dtype=torch.float64, device=pipe.device)
    mapping = {concept: task.mapping[concept] for concept in task.erase}
    embedded = encoder_of(pipe, cfg.encoder_precision).each(templates, paired_words(mapping))
    for concept, aim, *rows in caption_pairs(embedded, mapping):
        captions = (fill(templates, word) for word in (concept, aim))
        for source, target, e, e_target in zip(*captions, *rows, strict=True):
            concept_positions(tokenizer, source, concept)  # an error if the caption does not hold the concept
            positions = corresponding(token_ids(tokenizer, source), token_ids(tokenizer, target), len(e))
            gram, cross = gram + e.T @ e, cross + (e_target[positions] - e).T @ e  # (d, d)
    change = shared_edit(cross, system(gram, cfg.lamb), f"lamb = {cfg.lamb:g}")
    weights = {n: w for n, w in projection_weights(pipe.unet).items() if cfg.keys or n.endswith(".to_v")}
    delta, facts = edited_delta("time", weights, change)
    return delta, {"edit": facts}


erase = solved(edit)
