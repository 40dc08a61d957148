"""UCE: Unified Concept Editing (Gandikota et al., WACV 2024, arXiv 2308.14761), Eq. 7.

    W' = argmin s_e sum_erase ||W' e(c*) - W e(c)||^2 + s_p sum_keep ||W' e - W e||^2 + lamb ||W' - W||_F^2

for to_k and to_v of every cross-attention. The two published scripts differ in the token rows they use, `tokens`, and
in the empty caption, which the first one retains beside the concepts with all its rows: `keep_empty`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from resurgence.config.task import Task
from resurgence.diffusion.attention import projection_weights
from resurgence.diffusion.deltas import Delta
from resurgence.diffusion.text import concept_positions, encoder_of, load_captions, token_ids
from resurgence.erasers import EraserData
from resurgence.erasers.closed_form.configs import UceConfig
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
    from transformers import PreTrainedTokenizerBase


def last_token(tokenizer: PreTrainedTokenizerBase, template: str, concept: str) -> int:
    """Position of the last token of whatever fills the template.

    An empty filling (" ", the first script's destination) has none; then the token before it, which for a bare
    caption is the beginning token, as in that script.
    """
    if concept.strip():
        return concept_positions(tokenizer, template.replace("{}", concept), concept)[-1]
    return len(token_ids(tokenizer, template.split("{}")[0])) - 2


def subject_rows(
    source: torch.Tensor, target: torch.Tensor, last: int, last_target: int, rule: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows e of the concept caption and e' of the destination caption, aligned from the last subject token on.

    Args:
        source, target: (L, d). last, last_target: position of the last subject token in each.
    """
    count = 1 if rule == "last" else len(source) - max(last, last_target)
    return source[last : last + count], target[last_target : last_target + count]


def kept_rows(
    tokenizer: PreTrainedTokenizerBase, templates: Sequence[str], concept: str, embedded: torch.Tensor, rule: str
) -> torch.Tensor:
    """Rows (n, d) of a retained concept's captions (T, L, d): all, or the last subject token of each."""
    if rule == "last":
        lasts = [last_token(tokenizer, template, concept) for template in templates]
        embedded = embedded[range(len(embedded)), lasts, None]
    return embedded.flatten(0, 1)


def edit(pipe: StableDiffusionPipeline, task: Task, cfg: UceConfig, data: EraserData) -> tuple[Delta, dict]:
    """Edit the text projections: (delta, report)."""
    encoder, templates = encoder_of(pipe, cfg.encoder_precision), load_captions(cfg.captions, task.kind)
    gram = cross = torch.zeros((), dtype=torch.float64, device=pipe.device)
    destinations = cfg.destinations(task)
    words = [*paired_words(destinations), *task.retain]
    embedded = encoder.each(templates, words, padded=cfg.tokens != "last")  # (T, L, d) a word
    for concept, aim, sources, targets in caption_pairs(embedded, destinations):
        for template, source, target in zip(templates, sources, targets, strict=True):
            positions = (last_token(pipe.tokenizer, template, word) for word in (concept, aim))
            e, e_target = subject_rows(source, target, *positions, cfg.tokens)
            gram, cross = gram + cfg.erase_scale * e.T @ e, cross + cfg.erase_scale * (e_target - e).T @ e
    scale = cfg.preservation(len(task.retain) * len(templates))
    if cfg.keep_empty:
        empty = encoder([""])[0]  # (L, d)
        gram = gram + scale * empty.T @ empty
    for concept, states in zip(task.retain, embedded, strict=True):
        rows = kept_rows(pipe.tokenizer, templates, concept, states, cfg.tokens)
        gram = gram + scale * rows.T @ rows
    change = shared_edit(cross, system(gram, cfg.lamb), f"lamb = {cfg.lamb:g}, preserve_scale = {scale:g}")
    delta, facts = edited_delta("uce", projection_weights(pipe.unet), change)
    return delta, {"edit": facts}


erase = solved(edit)
