"""Masks of a concept in its images: which pixels show it, for MACE's attention loss.

Three segmenters, one file each in segmenters/: `foreground` for plain backgrounds, `cross-attention` from the base's
own attention, `grounded-sam` with Grounding DINO and SAM as the paper does.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from resurgence.config.fields import ConfigError, at_least, one_place

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskConfig:
    """Settings of all segmenters; each reads its own."""

    segmenter: Literal["foreground", "cross-attention", "grounded-sam"] = "foreground"
    empty: Literal["error", "whole"] = "error"  # when nothing is found: stop, or take the whole image
    batch: int = 8  # images a forward pass; does not change any result
    # foreground
    border: float = 0.06  # width of the frame that shows only background, as a fraction of the image
    contrast: float = 6.0  # least distance from the background, in Lab units; 2.3 is just noticeable
    smallest: float = 0.1  # parts smaller than this fraction of the largest part are dropped
    # cross-attention
    template: str = "a photo of {}"  # caption under which the attention is read
    timesteps: tuple[int, ...] = (100, 200, 300, 400)  # of noise, averaged
    # grounded-sam
    detector: str = "IDEA-Research/grounding-dino-base"  # folder or hub id
    detector_revision: str | None = None
    sam: str = "facebook/sam-vit-huge"  # folder or hub id
    sam_revision: str | None = None
    phrase: str = "{}"  # what the detector is asked for
    threshold: float = 0.3  # of a detection
    text_threshold: float = 0.25  # of its words
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of both models; fp16 needs a GPU

    def __post_init__(self) -> None:
        at_least("batch", self.batch, 1)
        at_least("contrast", self.contrast, 0)
        limits = {"border": 0.5, "smallest": 1.0, "threshold": 1.0, "text_threshold": 1.0}
        for key, high in limits.items():
            if not 0 < getattr(self, key) < high:
                raise ConfigError(key, getattr(self, key), f"must lie between 0 and {high:g}")
        for key in ("template", "phrase"):
            one_place(key, getattr(self, key))
        if not self.timesteps or min(self.timesteps) < 0:
            raise ConfigError("timesteps", list(self.timesteps), "must name at least one timestep, none negative")
        for key in ("detector", "sam"):
            if not getattr(self, key).strip():
                raise ConfigError(key, getattr(self, key), "is empty; write a folder or a hub id")


def segment(
    images: torch.Tensor,
    concept: str,
    cfg: MaskConfig,
    pipe: StableDiffusionPipeline | None = None,
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """Find the concept in each image.

    Args:
        images: (N, 3, H, W) in [-1, 1].
        pipe: the base, needed by `cross-attention`.
        device: where `grounded-sam` runs.

    Returns:
        (N, 1, H, W) bool, on the CPU.

    Raises:
        ValueError: if a mask is empty and `cfg.empty` is error, naming concept and index.
    """
    masks = found(images, concept, cfg, pipe, device)
    for index in torch.nonzero(~masks.flatten(1).any(1)).flatten().tolist():
        if cfg.empty == "error":
            lower = {"foreground": "contrast", "cross-attention": "timesteps", "grounded-sam": "threshold"}[
                cfg.segmenter
            ]
            raise ValueError(
                f"masks: {cfg.segmenter} finds no {concept!r} in image {index}; look at the image, lower {lower}, "
                "use another segmenter, or set empty: whole"
            )
        log.warning("masks: %s finds no %r in image %d; the whole image is used", cfg.segmenter, concept, index)
        masks[index] = True
    return masks


def found(
    images: torch.Tensor,
    concept: str,
    cfg: MaskConfig,
    pipe: StableDiffusionPipeline | None,
    device: str | torch.device,
) -> torch.Tensor:
    """The masks as the segmenter finds them, possibly empty: (N, 1, H, W) bool."""
    if cfg.segmenter == "foreground":
        from resurgence.data.segmenters.foreground import foreground

        return torch.stack([foreground(image, cfg.border, cfg.contrast, cfg.smallest) for image in images.cpu()])[
            :, None
        ]
    if cfg.segmenter == "cross-attention":
        from resurgence.data.segmenters.cross_attention import cross_attention

        if pipe is None:
            raise ValueError("masks: cross-attention reads the base's attention; give the pipeline")
        return cross_attention(pipe, images, concept, cfg.template, cfg.timesteps, cfg.batch)
    from resurgence.data.segmenters.grounded_sam import GroundedSam

    if cfg.precision == "fp16" and torch.device(device).type != "cuda":
        raise ConfigError("masks.precision", cfg.precision, f"needs a GPU, the masks are made on {device}; write fp32")
    places = (cfg.detector, cfg.detector_revision, cfg.sam, cfg.sam_revision)
    model = GroundedSam.load(*places, str(device), cfg.precision)
    phrase = cfg.phrase.replace("{}", concept)
    return model(images, phrase, cfg.threshold, cfg.text_threshold, cfg.batch)
