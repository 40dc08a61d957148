"""MACE's first stage alone: closed-form cross-attention refinement (Lu et al., CVPR 2024, arXiv 2403.06135), Eq. 3.

    W' = argmin sum_i ||W' e_i - W e'_i||^2 + s sum_corpora ||W' e - W e||^2 + lamb ||W' - W||_F^2

for to_k and to_v of every cross-attention. e are the tokens around a concept in a caption, end and padding included, e'
the same tokens of the caption with the mapping concept. No LoRA is trained and nothing is fused: it shows what the
concept's own tokens, which only the second stage erases, leave behind.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resurgence.config.fields import ConfigError, at_least, templates
from resurgence.erasers import Eraser, EraserData
from resurgence.erasers.mace.method import MaceConfig, refine

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

    from resurgence.config.task import Task


@dataclass(frozen=True)
class MaceRefinementConfig:
    """Settings: those of MACE that its refinement reads, with MACE's names and defaults (see there)."""

    captions: str | tuple[str, ...] = ""  # templates with one {}: a list, a file, or "" for 30, ours; official 30 of 31
    train_preserve_scale: float = 1e-4  # lambda_1, weight of the corpora: authors' configuration
    preserve_weight: float = 8e4  # omega, domain against prior corpus: authors' for ten celebrities; 0: none is needed
    lamb: float = 0.0  # weight of ||W' - W||^2: authors' for celebrities and artists; objects 10 to 1,000
    scale_application: Literal["paper", "official"] = "paper"  # once, the text; official: squared, as the code

    def __post_init__(self) -> None:
        templates("captions", self.captions)
        for key in ("train_preserve_scale", "preserve_weight", "lamb"):
            at_least(key, getattr(self, key), 0)
        if self.lamb == 0 and self.train_preserve_scale == 0:
            raise ConfigError("train_preserve_scale", 0, "is 0, and so is lamb: no unique solution; raise one of them")


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


ERASER = Eraser(MaceRefinementConfig, erase, frozenset({"prior", "domain"}))
