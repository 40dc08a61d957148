"""Settings of the stages that every eraser shares: sampling, masks, terciles, fine-tuning.

The stages' own modules import them from here, so that a study is read without PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resurgence.config.fields import ConfigError, at_least, one_place


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of the sampler; the defaults are the paper's."""

    steps: int = 50  # DDIM steps
    guidance: float = 7.5  # 1 or less: no guidance
    batch: int = 16  # images at a time; changes an image by rounding only
    size: int | None = None  # pixels a side; null: the base's own
    shard: int | None = None  # most images in a file, from which an interrupted job goes on; null: all in one
    channels_last: bool = False  # memory format of UNet and autoencoder; faster convolutions in half precision
    compile: bool = False  # the UNet by torch.compile: minutes at the start, then faster steps

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        at_least("batch", self.batch, 1)
        at_least("guidance", self.guidance, 0)
        for key, low in (("size", 8), ("shard", 1)):
            if getattr(self, key) is not None:
                at_least(key, getattr(self, key), low)


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


@dataclass(frozen=True)
class TercileConfig:
    """The concepts of a fine-tuning set: some of one third of the candidates."""

    candidates: str  # file of names, one a line; erased concepts and their synonyms among them are left out
    number: Literal[1, 2, 3]
    size: int = 10  # concepts drawn; all where the third has fewer
    similarity: Literal["max", "min"] = "max"
    bins: Literal["width", "count"] = "width"
    template: str = "{}"  # text that the name stands in
    seed: int = 42  # of the draw

    def __post_init__(self) -> None:
        at_least("size", self.size, 1)
        one_place("template", self.template)


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings; the defaults are the LoRA run of the resurgence authors' repository (the papers state none)."""

    algorithm: Literal["lora", "full"] = "lora"  # lora: rank-r updates of all attentions; full: the whole UNet
    steps: int = 1000  # optimiser steps
    checkpoints: tuple[int, ...] = ()  # steps at which weights are written, the last one too; (): only the last
    lr: float = 1e-4  # AdamW, betas (0.9, 0.999), eps 1e-8; the authors' full run: 1e-5
    lr_scheduler: Literal["cosine", "constant"] = "cosine"  # the authors' full run: constant
    warmup: int = 0  # steps of linear warm-up
    batch: int = 1  # images a forward pass; the authors' full run: 8
    accumulation: int = 4  # forward passes a step
    rank: int = 4  # of the LoRA; alpha is the rank, so the scale is 1; A is Gaussian with deviation 1/rank, B zero
    weight_decay: float = 0.01
    max_norm: float = 1.0  # of the gradient of a step
    ema: bool = False  # full: write the moving average of the weights; the authors' full run: true
    horizontal_flip: bool = True  # mirror each image with probability 1/2
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the forward pass; weights stay fp32; full run: fp16
    gradient_checkpointing: bool = False  # less memory, more time, same result; the authors' full run: true
    shuffle_captions: bool = False  # control: permute the captions over the images

    def __post_init__(self) -> None:
        for key in ("steps", "batch", "accumulation", "rank"):
            at_least(key, getattr(self, key), 1)
        for key in ("warmup", "weight_decay"):
            at_least(key, getattr(self, key), 0)
        for key in ("lr", "max_norm"):
            if not getattr(self, key) > 0:
                raise ConfigError(key, getattr(self, key), "must be positive")
        if self.ema and self.algorithm == "lora":
            raise ConfigError("ema", True, "belongs to full fine-tuning; write false, or algorithm: full")
        if self.warmup >= self.steps:
            raise ConfigError("warmup", self.warmup, f"must be less than steps ({self.steps})")
        marks = self.checkpoints or (self.steps,)
        if list(marks) != sorted(set(marks)) or marks[0] < 1 or marks[-1] != self.steps:
            raise ConfigError("checkpoints", list(marks), f"must rise from 1 or more to the last step, {self.steps}")
        object.__setattr__(self, "checkpoints", tuple(marks))
