"""Masks of a concept in its images: which pixels show it, for MACE's attention loss.

Three segmenters, one file each in segmenters/: `foreground` for plain backgrounds, `cross-attention` by the attention
of the base, `grounded-sam` by Grounding DINO and SAM, as in the paper.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from resurgence.config.fields import ConfigError
from resurgence.config.stages import MaskConfig
from resurgence.diffusion.device import exact

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

log = logging.getLogger(__name__)
THRESHOLDS = {"foreground": "contrast", "cross-attention": "timesteps", "grounded-sam": "threshold"}


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
        (N, 1, H, W) bool, on the CPU; of an image without the concept empty.

    Raises:
        ValueError: if a mask is empty and `cfg.empty` is error, naming concept and index.
    """
    with exact(device):
        masks = detect(images, concept, cfg, pipe, device)
    for index in torch.nonzero(~masks.flatten(1).any(1)).flatten().tolist():
        if cfg.empty == "error":
            raise ValueError(
                f"masks: {cfg.segmenter} finds no {concept!r} in image {index}; look at the image, lower "
                f"{THRESHOLDS[cfg.segmenter]}, use another segmenter, or set empty: whole"
            )
        log.warning("masks: %s finds no %r in image %d; the whole image is used", cfg.segmenter, concept, index)
    return masks


def detect(
    images: torch.Tensor,
    concept: str,
    cfg: MaskConfig,
    pipe: StableDiffusionPipeline | None,
    device: str | torch.device,
) -> torch.Tensor:
    """The masks of the segmenter of the settings; arguments and result as of `segment`."""
    if cfg.segmenter == "foreground":
        from resurgence.data.segmenters.foreground import foreground

        parts = [foreground(image, cfg.border, cfg.contrast, cfg.smallest) for image in images.cpu()]
        return torch.stack(parts)[:, None]
    if cfg.segmenter == "cross-attention":
        from resurgence.data.segmenters.cross_attention import cross_attention

        if pipe is None:
            raise ValueError("masks: cross-attention reads the base's attention; give the pipeline")
        return cross_attention(pipe, images, concept, cfg.template, cfg.timesteps, cfg.batch)
    from resurgence.data.segmenters.grounded_sam import GroundedSam

    if cfg.precision == "fp16" and torch.device(device).type != "cuda":
        raise ConfigError("masks.precision", cfg.precision, f"needs a GPU, {device} is in use; write fp32")
    sources = cfg.detector, cfg.detector_revision, cfg.sam, cfg.sam_revision
    model = GroundedSam.load(*sources, str(device), cfg.precision)
    return model(images, cfg.phrase.replace("{}", concept), cfg.threshold, cfg.text_threshold, cfg.batch)


def segment_all(
    images: Mapping[str, torch.Tensor],
    cfg: MaskConfig,
    pipe: StableDiffusionPipeline | None = None,
    device: str | torch.device = "cpu",
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Find each concept in its images; where it is not found, the mask is the whole image. Arguments: see `segment`.

    Returns:
        Concept -> masks (N, 1, H, W) bool, and concept -> number of masks replaced by the whole image.

    Raises:
        ValueError: see `segment`, or more than the share `cfg.max_replaced` of all masks is replaced: rather a fault of
            the segmenter than of the images.
    """
    masks = {concept: segment(pictures, concept, cfg, pipe, device) for concept, pictures in images.items()}
    empty = {concept: ~stack.flatten(1).any(1) for concept, stack in masks.items()}
    replaced, total = sum(int(e.sum()) for e in empty.values()), sum(map(len, masks.values()))
    if replaced > cfg.max_replaced * total:
        raise ValueError(
            f"masks: {cfg.segmenter} finds nothing in {replaced} of {total} images, and max_replaced = "
            f"{cfg.max_replaced:g} of them may be replaced by the whole image; look at the images, lower "
            f"{THRESHOLDS[cfg.segmenter]}, use precision fp32 or another segmenter, or raise max_replaced"
        )
    for concept, stack in masks.items():
        stack[empty[concept]] = True
    return masks, {concept: int(e.sum()) for concept, e in empty.items()}
