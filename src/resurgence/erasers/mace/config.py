"""Settings of MACE and of its first stage alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from resurgence.config.erasers import EncoderPrecision, EraserConfig, Passes
from resurgence.config.fields import Captions, ConfigError, Count, NotNegative, Positive


@dataclass(frozen=True)
class MaceRefinementConfig(EraserConfig):
    """Settings of the closed forms; the defaults are MACE's, see there."""

    module: ClassVar[str] = "resurgence.erasers.mace.refinement_only"
    needs: ClassVar[frozenset[str]] = frozenset({"prior", "domain"})
    closed_form: ClassVar[bool] = True

    captions: Captions = ""  # templates with one {}: a list, a file, or "" for 30, ours; official 30 of 31
    train_preserve_scale: NotNegative = 1e-4  # lambda_1, weight of the corpora in the refinement: authors'
    preserve_weight: NotNegative = 8e4  # omega, domain against prior corpus: authors'; 0: no domain corpus is needed
    lamb: NotNegative = 0.0  # weight of ||W' - W||^2: authors' for celebrities and artists; objects 10 to 1,000
    scale_application: Literal["paper", "official"] = "paper"  # once, the text; official: squared, as the code
    shared_words: Literal["skip", "map"] = "skip"  # words in which concept and mapping begin or end: paper; map: code
    encoder_precision: EncoderPrecision = "fp64"  # ours: see EncoderPrecision; the sums are always float64

    def __post_init__(self) -> None:
        self._check_unique("train_preserve_scale")

    def _check_unique(self, key: str) -> None:
        """Raise ConfigError if a closed form has no unique solution with this scale of the corpora."""
        if self.lamb == 0 and getattr(self, key) == 0:
            raise ConfigError(key, 0, "is 0, and so is lamb: no unique solution; raise one of them")


@dataclass(frozen=True)
class MaceConfig(MaceRefinementConfig):
    """Settings; the defaults are those of the authors' erase_10_celebrity, unless a comment says otherwise."""

    module: ClassVar[str] = "resurgence.erasers.mace.method"
    needs: ClassVar[frozenset[str]] = frozenset({"prior", "domain", "images", "masks"})
    trains_loras: ClassVar[bool] = True
    fusion_settings: ClassVar[frozenset[str]] = frozenset(
        {"fuse_preserve_scale", "fusion", "preserve_retained", "max_relative_change"}
    )

    # LoRAs
    steps: Count = 50  # of each LoRA: authors' for celebrities and styles; explicit content 120
    lr: Positive = 1e-4  # authors' for celebrities and styles; 1e-5 for objects and explicit content
    rank: Count = 1  # of each LoRA: official
    weight_decay: NotNegative = 0.01  # official; AdamW, betas (0.9, 0.999), eps 1e-8
    max_norm: Positive = 1.0  # of each concept's gradient: official
    timesteps: Literal["window", "uniform"] = "window"  # window: about 200 to 400 of 1,000, paper and code
    use_pooler: bool = True  # also lower the attention to the end of the caption: official
    pooler_tokens: Literal["end-and-padding", "end", "same-id"] = "end-and-padding"  # ours; same-id: official
    use_masks: bool = True  # paper and code; false: the whole map, as always for styles
    chunk: Count = 10  # ours: concepts in one batch; does not change any result
    # fusion
    fuse_preserve_scale: NotNegative = 1e-4  # lambda_2, weight of the corpora: authors' configuration
    fusion: Literal["closed-form", "constrained"] = "closed-form"  # least squares, as the code; constrained: ours
    preserve_retained: bool = True  # ours, constrained: W_f e = W e for the mean embedding of each retained concept
    max_relative_change: Positive | None = None  # ours, constrained: limit of ||w_f - w|| / ||w|| of each row

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_unique("fuse_preserve_scale")
        if self.max_relative_change is not None and self.fusion != "constrained":
            raise ConfigError("max_relative_change", self.max_relative_change, "needs fusion: constrained; write that")
        if self.fusion == "constrained" and not self.preserve_retained and self.max_relative_change is None:
            raise ConfigError("fusion", self.fusion, "has no constraint; set preserve_retained or max_relative_change")

    def reads(self, kind: str) -> frozenset[str]:
        """No masks for styles, nor with `use_masks: false`."""
        return self.needs if self.use_masks and kind != "style" else self.needs - {"masks"}

    def unet_passes(self, erased: int, retained: int) -> Passes:
        """One sample a step and concept, for the LoRAs."""
        return Passes(self.steps * erased, 0)
