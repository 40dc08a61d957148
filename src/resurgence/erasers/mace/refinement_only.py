"""MACE's first stage alone: closed-form cross-attention refinement (Lu et al., CVPR 2024, arXiv 2403.06135), Eq. 3.

    W' = argmin sum_i ||W' e_i - W e'_i||^2 + s sum_corpora ||W' e - W e||^2 + lamb ||W' - W||_F^2

for to_k and to_v of every cross-attention. e are the tokens around a concept in a caption, end and padding included, e'
the same tokens of the caption with the mapping concept. No LoRA is trained and nothing is fused: it shows what the
concept's own tokens, which only the second stage erases, leave behind.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from resurgence.erasers import EraserData
from resurgence.erasers.mace.config import MaceConfig, MaceRefinementConfig
from resurgence.erasers.mace.method import refine

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

    from resurgence.config.task import Task


def erase(
    pipe: StableDiffusionPipeline,
    task: Task,
    cfg: MaceRefinementConfig,
    data: EraserData,
    seed: int,
    folder: Path | None = None,
) -> dict[str, torch.Tensor]:
    """Edit the text projections in closed form. Nothing is drawn, so the seed has no effect.

    Args:
        folder: where closed_form.json goes; None: nowhere.
    """
    refined, told = refine(pipe, task, MaceConfig(**dataclasses.asdict(cfg)), data)
    if folder is not None:
        (folder / "closed_form.json").write_text(json.dumps({"refinement": told}, indent=1))
    return refined
