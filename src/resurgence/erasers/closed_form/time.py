"""TIME: Text-to-Image Model Editing (Orgad, Kawar and Belinkov, ICCV 2023, arXiv 2303.08084), its closed form.

    W' = argmin sum_i ||W' e_i - W e'_i||^2 + lamb ||W' - W||_F^2 = (lamb W + sum W e' e^T)(lamb I + sum e e^T)^-1

for to_k and to_v of every cross-attention: e are the token embeddings of the source caption, e' those of the tokens of
the destination caption that stand for them. TIME edits assumptions ("roses" -> "blue roses") and keeps nothing but
what lies near W. As an eraser it sends a concept to its mapping concept; `corresponding` says how their tokens pair.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from resurgence.diffusion.attention import as_delta, projection_weights
from resurgence.diffusion.text import Encoder, concept_positions, fill, load_captions, token_ids
from resurgence.erasers import EraserData
from resurgence.erasers.closed_form.configs import TimeConfig
from resurgence.erasers.closed_form.solver import apply_edit, relative_change, report, shared_edit, system

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from resurgence.config.task import Task


def subsequence(source: list[int], target: list[int]) -> list[int] | None:
    """The first positions of `target` at which the tokens of `source` stand in their order; None if they do not."""
    ahead = iter(range(len(target)))
    places = [next((j for j in ahead if target[j] == token), None) for token in source]
    return None if None in places else places


def aligned(source: list[int], target: list[int]) -> list[int]:
    """Positions in `target` for the tokens of `source` where the two differ in one stretch: a concept for another.

    The same beginning and the same end stand for themselves. What differs is paired from its last token on, since the
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
    places = subsequence(source, target) or aligned(source, target)
    return places + [min(len(target) + i, length - 1) for i in range(length - len(source))]


def erase(
    pipe: StableDiffusionPipeline, task: Task, cfg: TimeConfig, data: EraserData, seed: int, folder: Path | None = None
) -> dict[str, torch.Tensor]:
    """Edit the text projections in closed form. Nothing is drawn, so the seed has no effect.

    Args:
        folder: where closed_form.json goes; None: nowhere.
    """
    encoder, tokenizer, templates = Encoder(pipe), pipe.tokenizer, load_captions(cfg.captions, task.kind)
    gram = cross = torch.zeros((), dtype=torch.float64, device=pipe.device)
    aimed: dict[str, torch.Tensor] = {}  # embeddings of the last mapping concept, which most concepts share
    for concept, embeddings in zip(task.erase, encoder.each(templates, task.erase), strict=True):
        aim = task.mapping[concept]
        sources, targets = fill(templates, concept), fill(templates, aim)
        if aim not in aimed:
            aimed = {aim: encoder(targets)}
        for source, target, e, e_target in zip(sources, targets, embeddings, aimed[aim], strict=True):
            concept_positions(tokenizer, source, concept)  # an error if the caption does not hold the concept
            places = corresponding(token_ids(tokenizer, source), token_ids(tokenizer, target), len(e))
            gram, cross = gram + e.T @ e, cross + (e_target[places] - e).T @ e  # (d, d)
    edit = shared_edit(cross, system(gram, cfg.lamb), f"lamb = {cfg.lamb:g}")
    weights = {n: w for n, w in projection_weights(pipe.unet).items() if cfg.keys or n.endswith(".to_v")}
    edited = apply_edit(weights, edit)
    told = report("time", edit.condition, relative_change(weights, edited))
    if folder is not None:
        (folder / "closed_form.json").write_text(json.dumps({"edit": told}, indent=1))
    return as_delta(edited)
