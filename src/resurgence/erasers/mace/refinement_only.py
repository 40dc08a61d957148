"""MACE's first stage alone: closed-form cross-attention refinement (Lu et al., CVPR 2024, arXiv 2403.06135), Eq. 3.

    W' = argmin sum_i ||W' e_i - W e'_i||^2 + s sum_corpora ||W' e - W e||^2 + lamb ||W' - W||_F^2

for to_k and to_v of every cross-attention. e are the tokens around a concept in a caption, end and padding included, e'
the same tokens of the caption with the mapping concept. No LoRA is trained and nothing is fused: it shows what the
concept's own tokens, which only the second stage erases, leave behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resurgence.config.task import Task
from resurgence.diffusion.deltas import Delta
from resurgence.erasers import EraserData
from resurgence.erasers.closed_form.solver import solved
from resurgence.erasers.mace.config import MaceRefinementConfig
from resurgence.erasers.mace.method import refine

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def edit(pipe: StableDiffusionPipeline, task: Task, cfg: MaceRefinementConfig, data: EraserData) -> tuple[Delta, dict]:
    """Refine the text projections: (delta, report)."""
    refined, facts = refine(pipe, task, cfg, data)
    return refined, {"refinement": facts}


erase = solved(edit)
