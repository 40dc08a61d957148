"""UCE: Unified Concept Editing (Gandikota et al., WACV 2024, arXiv 2308.14761), Eq. 7.

    W' = argmin s_e sum_erase ||W' e(c*) - W e(c)||^2 + s_p sum_keep ||W' e - W e||^2 + lamb ||W' - W||_F^2

for to_k and to_v of every cross-attention. The two published scripts differ in the token rows they use; both are here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from resurgence.diffusion.attention import as_delta, projection_weights
from resurgence.diffusion.text import Encoder, concept_positions, fill, load_captions, token_ids
from resurgence.erasers import EraserData
from resurgence.erasers.closed_form.configs import UceConfig
from resurgence.erasers.closed_form.solver import apply_edit, relative_change, report, shared_edit, system

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import PreTrainedTokenizerBase

    from resurgence.config.task import Task


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


def erase(
    pipe: StableDiffusionPipeline, task: Task, cfg: UceConfig, data: EraserData, seed: int, folder: Path | None = None
) -> dict[str, torch.Tensor]:
    """Edit the text projections in closed form. Nothing is drawn, so the seed has no effect.

    Args:
        folder: where closed_form.json goes; None: nowhere.
    """
    encoder, templates = Encoder(pipe), load_captions(cfg.captions, task.kind)
    gram = cross = torch.zeros((), dtype=torch.float64, device=pipe.device)
    embedded = encoder.each(templates, [*task.erase, *task.retain])  # (T, L, d) a concept
    aimed: dict[str, torch.Tensor] = {}  # of the last destination, which most concepts share
    for concept, sources in zip(task.erase, embedded, strict=False):
        aim = task.mapping[concept] if cfg.destination is None else cfg.destination
        if aim not in aimed:
            aimed = {aim: encoder(fill(templates, aim))}
        for template, source, target in zip(templates, sources, aimed[aim], strict=True):
            positions = (last_token(pipe.tokenizer, template, word) for word in (concept, aim))
            e, e_target = subject_rows(source, target, *positions, cfg.tokens)
            gram, cross = gram + cfg.erase_scale * e.T @ e, cross + cfg.erase_scale * (e_target - e).T @ e
    scale = cfg.preserve_scale
    if scale is None:
        scale = max(0.1, 1 / (len(task.retain) * len(templates)))
    for concept, kept in zip(task.retain, embedded, strict=True):
        if cfg.tokens == "last":
            lasts = [last_token(pipe.tokenizer, template, concept) for template in templates]
            kept = kept[torch.arange(len(kept)), lasts]
        rows = kept.reshape(-1, kept.shape[-1])
        gram = gram + scale * rows.T @ rows
    edit = shared_edit(cross, system(gram, cfg.lamb), f"lamb = {cfg.lamb:g}, preserve_scale = {scale:g}")
    weights = projection_weights(pipe.unet)
    edited = apply_edit(weights, edit)
    told = report("uce", edit.condition, relative_change(weights, edited))
    if folder is not None:
        (folder / "closed_form.json").write_text(json.dumps({"edit": told}, indent=1))
    return as_delta(edited)
