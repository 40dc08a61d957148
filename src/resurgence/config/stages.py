"""Settings of the stages that every eraser shares: sampling, masks, terciles, fine-tuning.

The stages' own modules import them from here, so that a study is read without PyTorch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from resurgence.config.fields import (
    ConfigError,
    Count,
    DdimSteps,
    Fraction,
    Natural,
    NotNegative,
    Positive,
    Seed,
    one_place,
)
from resurgence.config.guidance import Guidance


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of the sampler; the defaults are the paper's."""

    steps: DdimSteps = 50
    """DDIM steps."""
    guidance: Guidance = 7.5
    """Scale of classifier-free guidance, more than 1; 0 or 1: no guidance."""
    batch: Count = 16
    """Images in a forward pass; changes an image by rounding only."""
    size: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Pixels a side; null: the base's own."""
    shard: Count | None = None
    """Most images in a file, after which an interrupted job resumes; null: all in one."""
    channels_last: bool = False
    """Memory format of UNet and autoencoder; faster convolutions in half precision."""
    compile: bool = False
    """The UNet by torch.compile: minutes at the start, then faster steps."""
    long_prompts: Literal["error", "truncate"] = "error"
    """A prompt of more tokens than the base reads: stop, or cut its end off and log it, as for the prompts of I2P."""


@dataclass(frozen=True)
class MaskConfig:
    """Settings of all segmenters; each reads its own."""

    segmenter: Literal["foreground", "cross-attention", "grounded-sam"] = "foreground"
    """Method that segments the concept in an image."""
    empty: Literal["error", "whole"] = "error"
    """When no segment results: stop, or take the whole image."""
    max_replaced: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Largest share of the masks of a task that may be the whole image instead; more is an error."""
    batch: Count = 8
    """Images a forward pass; does not change any result."""
    # foreground
    border: Annotated[float, Field(gt=0, lt=0.5)] = 0.06
    """Width of the frame that shows only background, as a fraction of the image."""
    contrast: NotNegative = 6.0
    """Least distance from the background, in Lab units; 2.3 is just noticeable."""
    smallest: Fraction = 0.1
    """Parts smaller than this fraction of the largest part are dropped."""
    # cross-attention
    template: str = "a photo of {}"
    """Caption under which the attention is read."""
    timesteps: tuple[Annotated[int, Field(ge=0, lt=1000)], ...] = (100, 200, 300, 400)
    """Timesteps of the noise, whose attention is averaged."""
    # grounded-sam
    detector: str = "IDEA-Research/grounding-dino-base"
    """Folder or hub id of Grounding DINO."""
    detector_revision: str | None = None
    """Commit of the detector, where it is a hub id."""
    sam: str = "facebook/sam-vit-huge"
    """Folder or hub id of SAM."""
    sam_revision: str | None = None
    """Commit of SAM, where it is a hub id."""
    phrase: str = "{}"
    """What the detector is asked for, with {} where the concept goes."""
    threshold: Fraction = 0.3
    """Least score of a detection."""
    text_threshold: Fraction = 0.25
    """Least score of the words of a detection."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the detector; fp16 needs a GPU. SAM runs in fp32, as SAM ViT-H is reported to return garbage in fp16."""

    def __post_init__(self) -> None:
        for key in ("template", "phrase"):
            one_place(key, getattr(self, key))
        if not self.timesteps:
            raise ConfigError("timesteps", [], "must not be empty; write at least one timestep, e.g. [100]")
        for key in ("detector", "sam"):
            if not getattr(self, key).strip():
                raise ConfigError(key, getattr(self, key), "is empty; write a folder or a hub id")


@dataclass(frozen=True)
class TercileConfig:
    """The concepts of a fine-tuning set: some of one third of the candidates."""

    candidates: str
    """File of names, one a line; erased concepts and their synonyms among them are left out."""
    number: Literal[1, 2, 3]
    """The third: 1 is the least similar."""
    size: Count = 10
    """Concepts drawn; all where the third has fewer."""
    similarity: Literal["max", "min"] = "max"
    """To the nearest erased concept (max) or to the farthest (min)."""
    bins: Literal["width", "count"] = "width"
    """Thirds of equal width of similarity, or of equally many candidates."""
    template: str = "{}"
    """Text that the name stands in."""
    seed: Seed = 42
    """Seed of the draw."""

    def __post_init__(self) -> None:
        one_place("template", self.template)


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings; the defaults are the LoRA run of the resurgence authors' repository (the papers state none)."""

    algorithm: Literal["lora", "full"] = "lora"
    """With lora rank-r updates of all attentions, with full the whole UNet."""
    steps: Count = 1000
    """Optimiser steps."""
    checkpoints: tuple[int, ...] = ()
    """Steps at which weights are written, the last one too; []: only the last."""
    lr: Positive = 1e-4
    """Learning rate of AdamW, betas (0.9, 0.999), eps 1e-8; the authors' full run: 1e-5."""
    lr_scheduler: Literal["cosine", "constant"] = "cosine"
    """After the warm-up; the authors' full run: constant."""
    warmup: Natural = 0
    """Steps of linear warm-up."""
    batch: Count = 1
    """Images a forward pass, unless base.micro_batch is a number; on a GPU all that fit; the authors' full run: 8."""
    accumulation: Count = 4
    """Forward passes a step."""
    rank: Count = 4
    """Rank of the LoRA; alpha is the rank, so the scale is 1; A is Gaussian with deviation 1/rank, B zero."""
    weight_decay: NotNegative = 0.01
    """Of AdamW."""
    max_norm: Positive = 1.0
    """Largest norm of the gradient of a step; a larger one is scaled down."""
    ema: bool = False
    """Of full fine-tuning: write the moving average of the weights; the authors' full run: true."""
    horizontal_flip: bool = True
    """Mirror each image with probability 1/2."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Of the passes; weights stay fp32; tf32: products in TF32, on a GPU; the authors' full run: fp16."""
    gradient_checkpointing: bool = False
    """Less memory, more time, same result; the authors' full run: true."""
    shuffle_captions: bool = False
    """As a control: permute the captions over the images."""
    long_captions: Literal["truncate", "error"] = "truncate"
    """What to do with captions longer than the base reads: cut their ends off, counted in run.json, or stop."""

    def __post_init__(self) -> None:
        if self.ema and self.algorithm == "lora":
            raise ConfigError("ema", True, "belongs to full fine-tuning; write false, or algorithm: full")
        if self.warmup >= self.steps:
            raise ConfigError("warmup", self.warmup, f"must be less than steps ({self.steps})")
        marks = self.checkpoints or (self.steps,)
        if list(marks) != sorted(set(marks)) or marks[0] < 1 or marks[-1] != self.steps:
            raise ConfigError("checkpoints", list(marks), f"must rise from 1 or more to the last step, {self.steps}")
        object.__setattr__(self, "checkpoints", tuple(marks))

    def parameters(self) -> dict[str, Any]:
        """The settings, for the manifest: without `long_captions` at its default, which older results do not name."""
        values = dataclasses.asdict(self)
        if self.long_captions == "truncate":
            del values["long_captions"]
        return values
