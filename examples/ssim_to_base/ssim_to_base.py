"""Structural similarity of each image to the base's image of the same prompt and seed (Wang et al. 2004).

Both start from the same noise, so the similarity says how much of the picture an erasure or a fine-tune left as it was:
of retained concepts it should stay near 1, of erased ones it should fall. The base against itself has 1.

    SSIM = (2 m_a m_b + c1) (2 s_ab + c2) / ((m_a^2 + m_b^2 + c1) (s_a^2 + s_b^2 + c2))

with means m, variances s^2 and covariance s_ab in a Gaussian window, the mean over pixels and channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from resurgence.config.fields import Count, Positive
from resurgence.scorers import Metric, ScorerConfig

if TYPE_CHECKING:  # a study is read without torch
    import numpy as np
    import pandas as pd
    import torch

    from resurgence.config.task import Task


@dataclass(frozen=True)
class SsimConfig(ScorerConfig):
    """Settings of the scorer `ssim`, and what it declares."""

    sigma: Positive = 1.5  # of the Gaussian window, in pixels
    batch: Count = 64

    loader: ClassVar = "ssim_to_base:SsimScorer"
    columns: ClassVar = ("ssim_to_base",)
    metrics: ClassVar = {"ssim": Metric("ssim_to_base", "Structural similarity to the base's image (%)", 100.0)}
    reads_base: ClassVar = True


@dataclass(frozen=True)
class SsimScorer:
    """The scorer at work; it has no weights to load."""

    config: SsimConfig
    device: torch.device | str = "cpu"

    def score(
        self, images: torch.Tensor, prompts: pd.DataFrame, task: Task, base: torch.Tensor
    ) -> dict[str, np.ndarray]:
        """Column ssim_to_base in [-1, 1]; images and base uint8 (N, 3, H, W)."""
        import torch
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        values = []
        for ours, theirs in zip(images.split(self.config.batch), base.split(self.config.batch), strict=True):
            pair = (part.to(self.device, torch.float32) for part in (ours, theirs))
            values.append(ssim(*pair, sigma=self.config.sigma, reduction="none", data_range=255.0).reshape(-1).cpu())
        return {"ssim_to_base": torch.cat(values).double().numpy()}
