"""CLIP scores of single words, by which DoCo and EAP compare a concept with another text or with the base's image.

With e the embedding of an image, t(w) that of the text w alone, without a template, and c the concept of the row:

clip_anchor, of DoCo with the settings of SPM's evaluation:
  anchor_cs      CS = 100 x 2.5 max(cos(e, t(c)), 0), CLIPScore's w of Hessel et al. (2021) in percent
  anchor_nearer  CA: 1 where cos(e, t(c)) > cos(e, t(anchor of c))

sensitivity, of EAP, equation 3, with S = 100 cos(e, t(c)):
  concept_sensitivity  S of the base's image of the row minus S of the row's image, whose mean over the rows of c is
                       delta_e(c): how much of c an eraser of e costs. Both images have one noise z_i. A vocabulary is a
                       task whose templates are "{}"; its `first_seed` gives all concepts the same noises z_1 .. z_k.
                       Or it is the prompts of role `general`, each its own c, with equal seeds for every word.
  concept_similarity   cos(t(c), t(e)), of several erased concepts e the largest, as in EAP's figure 7

Other rows without a concept have no value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from resurgence.scorers import clip
from resurgence.scorers.erasure_configs import SIMILARITY

if TYPE_CHECKING:
    from resurgence.config.task import Task
    from resurgence.scorers.erasure_configs import AnchorConfig, SensitivityConfig

WEIGHT = 2.5  # w of CLIPScore


def word_cosines(scorer: clip.ClipScorer, features: torch.Tensor, words: Sequence[str]) -> np.ndarray:
    """Cosines of images, embedded (N, d), and their words, (N,); NaN where the word is empty."""
    codes, unique = pd.factorize(np.asarray(words, dtype=object))
    texts = scorer.text_features(list(unique))[codes]
    return np.where([bool(word) for word in words], (features * texts).sum(1).double().numpy(), np.nan)


def nearest_cosines(scorer: clip.ClipScorer, words: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Cosine of each word to the nearest of some others, (N,); NaN where the word is empty."""
    codes, unique = pd.factorize(np.asarray(words, dtype=object))
    cosines = scorer.text_features(list(unique)) @ scorer.text_features(list(others)).T  # (unique, others)
    return np.where([bool(word) for word in words], cosines.amax(1).double().numpy()[codes], np.nan)


@dataclass
class AnchorScorer:
    """CLIP, and the anchor of each concept."""

    clip: clip.ClipScorer
    config: AnchorConfig

    def score(
        self, images: torch.Tensor, prompts: pd.DataFrame, task: Task, base: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Columns anchor_*, one row an image; images uint8 (N, 3, H, W)."""
        concepts, features = prompts["concept"].fillna("").tolist(), self.clip.features(images)
        anchors = [self.config.anchor_of(word) if word else "" for word in concepts]
        concept, anchor = (word_cosines(self.clip, features, words) for words in (concepts, anchors))
        nearer = np.where(np.isnan(concept), np.nan, concept > anchor)
        return {"anchor_cs": 100 * WEIGHT * np.maximum(concept, 0), "anchor_nearer": nearer}


@dataclass
class SensitivityScorer:
    """CLIP, which compares a model's image and the base's with the concept."""

    clip: clip.ClipScorer

    def score(
        self, images: torch.Tensor, prompts: pd.DataFrame, task: Task, base: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Columns concept_*, one row an image; images and base uint8 (N, 3, H, W)."""
        concepts = prompts["concept"].fillna("").where(prompts["role"] != "general", prompts["prompt"]).tolist()
        before, after = (word_cosines(self.clip, self.clip.features(x), concepts) for x in (base, images))
        similarity = nearest_cosines(self.clip, concepts, task.erase)
        return {"concept_sensitivity": clip.LOGIT_SCALE * (before - after), SIMILARITY: similarity}


def load_anchored(config: AnchorConfig, device: torch.device | str = "cpu") -> AnchorScorer:
    """Load CLIP; errors as those of scorers.clip."""
    return AnchorScorer(clip.load(config, device, "scorers.clip_anchor"), config)


def load_sensitivity(config: SensitivityConfig, device: torch.device | str = "cpu") -> SensitivityScorer:
    """Load CLIP; errors as those of scorers.clip."""
    return SensitivityScorer(clip.load(config, device, "scorers.sensitivity"))
