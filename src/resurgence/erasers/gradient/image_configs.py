"""Settings of the erasers that train on noised images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from resurgence.config.erasers import Changes, Passes
from resurgence.config.fields import Captions, ConfigError, Count, Natural, NotNegative, Positive, one_place
from resurgence.config.guidance import GuidanceWeight
from resurgence.config.optimisation import Optimisation, Selection


@dataclass(frozen=True)
class ImageOptimisation(Optimisation):
    """Settings that these erasers share."""

    trains_text_encoder: ClassVar[bool] = False

    captions: Captions = ""  # ours: "" for 30 built-in templates; or a list, or a file


@dataclass(frozen=True)
class AnchorOptimisation(ImageOptimisation):
    """Settings of the erasers that read images of the anchor with two captions: c of the anchor, c* of the concept.

    Raises:
        ConfigError: `captions` with `own_captions`, `suffix` without, or a suffix without one place for the concept.
    """

    own_captions: bool = False  # c is the prompt of the image (papers and scripts), else any of `captions` (ours)
    suffix: str = ""  # of c*, whose c names no anchor: for styles " in the style of {}" (papers)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.own_captions and self.captions != "":
            raise ConfigError(
                "captions", self.captions, "has no effect with own_captions: true; leave it out, or write ''"
            )
        if self.suffix and not self.own_captions:
            raise ConfigError("suffix", self.suffix, "has no effect without own_captions: true; leave it out")
        if self.suffix:
            one_place("suffix", self.suffix)
            if self.suffix[0].isalnum() or self.suffix[0] == "{":
                remedy = (
                    "is appended to captions as it is; begin with a space or a comma, in quotes: ' in the style of {}'"
                )
                raise ConfigError("suffix", self.suffix, remedy)


@dataclass(frozen=True)
class CaConfig(AnchorOptimisation):
    """Settings; the authors' for objects and styles, written for one device, unless a comment says ours."""

    module: ClassVar[str] = "resurgence.erasers.gradient.ca"
    needs: ClassVar[frozenset[str]] = frozenset({"anchors"})

    parameters: Selection = "xattn-kv"  # the paper's choice; memorised images: full
    steps: Count = 100  # optimiser steps: script
    lr: Positive = 1.6e-5  # learning rate: script, 2e-6 scaled by 4 images on 2 GPUs
    optimiser: Literal["adam", "adamw"] = "adamw"  # script
    weight_decay: NotNegative = 0.01  # of AdamW: script
    batch: Count = 8  # samples a step: script, 4 images on 2 GPUs
    max_norm: Positive | None = 1.0  # of the gradient: script
    loss: Literal["model-based", "noise-based"] = "model-based"  # the paper finds the first better
    target_from: Literal["frozen", "current"] = "frozen"  # who predicts for c: eps_0 (as derived), eps_theta (script)
    anchor_weight: NotNegative = 0.0  # of the paper's optional term; script: 1 when the words contain the anchor's

    def step_passes(self, erased: int) -> Passes:
        """The concept, the anchor where it has a weight, and the target."""
        return Passes(1 + (self.anchor_weight > 0), self.loss == "model-based")


@dataclass(frozen=True)
class FmnConfig(ImageOptimisation):
    """Settings; the defaults are the authors' configuration without learnt tokens, unless a comment says ours."""

    module: ClassVar[str] = "resurgence.erasers.gradient.fmn"
    needs: ClassVar[frozenset[str]] = frozenset({"images"})
    changes: ClassVar[Changes] = {"use_pooler": (False,)}  # the authors lower the end of the caption too
    compares_predictions: ClassVar[bool] = False  # but attention

    parameters: Selection = "full"  # official; the authors also name the cross-attentions: xattn
    steps: Count = 35  # optimiser steps: official
    lr: Positive = 2e-6  # learning rate: official
    optimiser: Literal["adam", "adamw"] = "adamw"  # official
    weight_decay: NotNegative = 0.01  # of AdamW: official
    max_norm: Positive | None = 1.0  # of the gradient: official
    captions: Captions = ("a photo of {}",)  # official; for styles it is "a photo in the style of {}"
    use_pooler: bool = True  # also lower the attention to the end of the caption: official
    pooler_tokens: Literal["end-and-padding", "end", "same-id"] = "end-and-padding"  # ours; same-id: official

    def step_passes(self, erased: int) -> Passes:
        """One image."""
        return Passes(1, 0)


@dataclass(frozen=True)
class DocoConfig(AnchorOptimisation):
    """Settings; the paper's formulas and numbers, where it is silent the code's, or ours where a comment says so.

    `warmup` counts steps of the whole training: with `discriminators: concept` each D warms up for its share of them.
    """

    module: ClassVar[str] = "resurgence.erasers.gradient.doco"
    needs: ClassVar[frozenset[str]] = frozenset({"anchors"})
    own_meaning: ClassVar[frozenset[str]] = frozenset({"lamb"})
    changes: ClassVar[Changes] = {
        "unlearning": ("l2",),
        "surgery": ("none", "sum"),  # the paper's own ablations
        "lamb": (0.0,),
        "discriminators": ("concept",),
    }

    parameters: Selection = "xattn-kv"  # code: to_k and to_v of the cross-attentions; the paper does not say
    steps: Count = 1000  # optimiser steps, the warm-up included: paper
    lr: Positive = 4e-6  # learning rate: paper
    batch: Count = 8  # samples a step: paper
    max_norm: Positive | None = 1.0  # of the gradient: code
    unlearning: Literal["adversarial", "l2"] = "adversarial"  # G_u of Eq. 8, or of || eps(c*) - sg eps(c) ||^2
    discriminate: Literal["space", "clean"] = "space"  # what D sees: `space` (paper: noise), or predicted x_0 (code)
    generator: Literal["minimax", "non-saturating"] = "minimax"  # theta's side: Eq. 8, or (code) -log D of the concept
    anchor_from: Literal["current", "frozen"] = "current"  # who predicts for c: eps_theta (Eq. 8), or eps_0 (code)
    surgery: Literal["paper", "code", "none", "sum"] = "paper"  # Eq. 9; code: tensor by tensor; sum: G_u + lamb G_r
    lamb: NotNegative = 1.0  # lambda of Eq. 9: paper and README
    warmup: Natural = 200  # first steps, which update D alone: paper; adversarial only
    discriminators: Literal["shared", "concept"] = "shared"  # one D (paper), or (ours) one a concept, a concept a step
    discriminator_width: Count = 64  # channels of D's first layer, doubled in each further one: code
    discriminator_lr: Positive = 1e-4  # README, objects and nudity; styles 5e-4
    last_stride: Literal[2, 1] = 2  # of D's last layer: paper; code: 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unlearning == "adversarial" and self.warmup >= self.steps:
            raise ConfigError("warmup", self.warmup, f"must be less than steps ({self.steps})")
        if self.unlearning == "l2" and self.discriminators != "shared":
            raise ConfigError("discriminators", self.discriminators, "has no effect with unlearning: l2; leave it out")

    def step_passes(self, erased: int) -> Passes:
        """Concept and anchor, and a second way back through both, which costs as much as two more passes each."""
        return Passes(2, 4 + (self.anchor_from == "frozen"))


@dataclass(frozen=True)
class SalunConfig(ImageOptimisation):
    """Settings; the defaults are those of the authors' scripts for Stable Diffusion."""

    module: ClassVar[str] = "resurgence.erasers.gradient.salun"
    needs: ClassVar[frozenset[str]] = frozenset({"images", "retained"})
    changes: ClassVar[Changes] = {"target_from": ("frozen",)}

    parameters: Selection = "full"  # scripts; the mask is taken among these, with one threshold for all
    steps: Count = 500  # optimiser steps, scripts: 5 epochs over 800 images
    batch: Count = 8  # scripts; forget images of a step, and as many retained ones
    alpha: NotNegative = 0.5  # of L_remain: README; the command line's default is 0.1
    fraction: float = 0.5  # of the weights that train: paper
    mask_steps: Count = 100  # batches of the mask's gradient: the 800 images of the scripts
    mask_guidance: GuidanceWeight = 7.5  # w in (1 + w) eps(c_f) - w eps("") of the mask's loss: scripts; 0: eps(c_f)
    target_from: Literal["current", "frozen"] = "current"  # sg eps_theta (paper and scripts), or eps_0
    captions: Captions = ("an image of {}",)  # templates; the scripts: "an image of a <class>"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise ConfigError("fraction", self.fraction, "must lie above 0, and be 1 at most (no mask)")
        if self.weight_decay:
            raise ConfigError("weight_decay", self.weight_decay, "would change weights outside the mask; write 0.0")

    def step_passes(self, erased: int) -> Passes:
        """Both sides, and the target."""
        return Passes(2, 1)

    def first_passes(self, erased: int, retained: int) -> Passes:
        """The mask."""
        return Passes(self.mask_steps * self.batch * (2 if self.mask_guidance else 1), 0)


@dataclass(frozen=True)
class EraseDiffConfig(ImageOptimisation):
    """Settings; the defaults are those of the authors' scripts for classes, with the paper's lambda."""

    module: ClassVar[str] = "resurgence.erasers.gradient.erasediff"
    own_meaning: ClassVar[frozenset[str]] = frozenset({"eta"})
    needs: ClassVar[frozenset[str]] = frozenset({"images", "retained"})
    changes: ClassVar[Changes] = {
        "inner_steps": (0,),  # min L_f is 0 then: one level, not two
        "target_from": ("frozen",),
    }

    parameters: Selection = "full"  # script for classes; nudity: noxattn-official
    steps: Count = 60  # optimiser steps: script for classes; nudity: 160
    batch: Count = 16  # script for classes; forget images of a step, and as many retained ones
    multiplier: Literal[
        "gradient",  # lambda with a = eta ||grad g||^2: the paper
        "value",  # lambda with a = eta g: the dynamic barrier's other choice, in which the inner steps count
        "cosine",  # max(0, eta - cos(grad L_remain, grad g)): the authors' code for pixel models
        "fixed",  # weight: the authors' code for Stable Diffusion
    ] = "gradient"  # how lambda is set
    eta: NotNegative = 0.1  # of lambda: the authors' code for pixel models
    weight: NotNegative = 1.0  # lambda of `fixed`: scripts; the command line's default is 0.1
    inner_steps: Natural = 2  # K: command line
    inner_lr: Positive | None = None  # of Adam, begun anew in each step; null: lr, as the scripts
    inner_value: Literal["last", "mean"] = "last"  # min L_f: after the K steps (paper), or (code) their mean loss
    target_from: Literal["current", "frozen"] = "current"  # sg eps_theta (paper and code), or eps_0
    captions: Captions = ("an image of {}",)  # templates; the scripts: "an image of a <class>"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multiplier == "value" and not self.inner_steps:
            raise ConfigError("inner_steps", self.inner_steps, "multiplier: value needs at least 1, to know g")

    def step_passes(self, erased: int) -> Passes:
        """Both sides and the inner steps."""
        inner = self.inner_steps
        return Passes(2 + inner, 1 + inner + 2 * (inner > 0 and self.inner_value == "last"))


@dataclass(frozen=True)
class ScissorHandsConfig(ImageOptimisation):
    """Settings; the defaults are those of the authors' script for classes, with the paper's trimming and projection."""

    module: ClassVar[str] = "resurgence.erasers.gradient.scissorhands"
    needs: ClassVar[frozenset[str]] = frozenset({"images", "retained"})
    changes: ClassVar[Changes] = {
        "forget": ("pseudo",),
        "projection": ("none",),
    }  # together a plain sum

    parameters: Selection = "full"  # script for classes; trimmed and trained, the saliency has one threshold for all
    steps: Count = 350  # optimiser steps, script for classes: 3 epochs
    lr: Positive = 2e-5  # script for classes; nudity: 1e-5
    batch: Count = 8  # script for classes; forget images of a step, and as many retained ones; nudity: 16
    sparsity: float = 0.999  # the part of the weights that is not trimmed: script for classes; nudity: 0.995
    saliency_steps: Count = 10  # batches of the saliency's gradient: scripts
    saliency: Literal["gradient", "absolute"] = "gradient"  # of the mean loss (paper); sum of |batch gradient|: scripts
    saliency_guidance: GuidanceWeight = 0.0  # paper; w in (1 + w) eps(c) - w eps(""); classes: 7.5, script
    trim: Literal["all", "official"] = "all"  # paper; official: only self-attention in two decoder blocks
    initial: Literal["normal", "kaiming"] = "normal"  # new values, sd 0.02: script for classes; Kaiming uniform: nudity
    forget: Literal["ascent", "pseudo"] = "ascent"  # paper; pseudo (nudity): + weight times SalUn's forget loss
    weight: NotNegative = 0.1  # of the forget loss: scripts
    projection: Literal["forget", "remain", "none"] = "forget"  # the gradient m: paper; none: the scripts for SD
    margin: NotNegative = 0.0  # least multiple of m that a projection adds: paper; the authors' classifiers: 0.5
    captions: Captions = ("an image of {}",)  # templates; the scripts: "an image of a <class>"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sparsity <= 1:
            raise ConfigError("sparsity", self.sparsity, "must lie between 0 (all trimmed) and 1 (none)")
        if self.trim == "official" and self.parameters in ("xattn", "xattn-kv"):
            raise ConfigError("trim", "official", f"trims self-attention, and parameters: {self.parameters} has none")

    def step_passes(self, erased: int) -> Passes:
        """Both sides, and the target of the pseudo loss."""
        return Passes(2, self.forget == "pseudo")

    def first_passes(self, erased: int, retained: int) -> Passes:
        """The saliency."""
        return Passes(self.saliency_steps * self.batch * (2 if self.saliency_guidance else 1), 0)
