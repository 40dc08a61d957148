"""Settings of the erasers that train on latents sampled from noise: no images are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from resurgence.config.erasers import Changes, Passes
from resurgence.config.fields import ConfigError, Count, DdimSteps, Natural, NotNegative, Positive, Template
from resurgence.config.guidance import Guidance
from resurgence.config.optimisation import Optimisation, Selection


@dataclass(frozen=True)
class TrajectoryOptimisation(Optimisation):
    """Settings that these erasers share: how latents are sampled with DDIM; the first scripts', unless ours."""

    trains_text_encoder: ClassVar[bool] = False
    sampler: ClassVar[str] = "x_t"  # the setting that says which model samples the latents; base: once, in advance

    ddim_steps: DdimSteps = 50  # of a whole trajectory: scripts
    guidance: Guidance = 3.0  # of sampling, 0 or 1: none; scripts, and SDD's authors in their runs, 1 in their script
    trajectories: Count = 4  # ours; sampled by the base for each concept
    template: Template = "{}"  # ours: the caption of a concept

    @property
    def samples_in_advance(self) -> bool:
        """Whether the base samples all latents before the first step; else a model samples them in each step."""
        return getattr(self, self.sampler) == "base"

    @property
    def sampling_steps(self) -> int:
        """Passes for the latents of one sample in a step: half of the DDIM steps on average, guided."""
        return 0 if self.samples_in_advance else self.ddim_steps

    @property
    def repeated_captions(self) -> int:
        """The captions of a concept for which each step asks the original at its x_t."""
        return 0

    def asks_in_advance(self, concepts: int) -> bool:
        """Whether the original answers before the first step: where the steps draw more x_t than were sampled."""
        return self.samples_in_advance and self.steps * self.batch >= self.points(concepts * self.trajectories)

    def points(self, trajectories: int) -> int:
        """The x_t of so many trajectories."""
        return trajectories * self.ddim_steps

    def asked_in_steps(self, concepts: int) -> int:
        """The repeated captions that are not known before the first step."""
        return 0 if self.asks_in_advance(concepts) else self.repeated_captions

    def first_passes(self, erased: int, retained: int) -> Passes:
        """Trajectories of the base and what it answers there, where it samples the latents."""
        trajectories = erased * self.trajectories * self.samples_in_advance
        known = self.repeated_captions - self.asked_in_steps(erased)
        return Passes(0, self.base_passes(trajectories).plain + known * self.points(trajectories))

    def base_passes(self, trajectories: int) -> Passes:
        """Passes of so many trajectories of the base; the last DDIM step is not taken."""
        return Passes(0, trajectories * (self.ddim_steps - 1) * (2 if self.guidance > 1 else 1))


@dataclass(frozen=True)
class EsdConfig(TrajectoryOptimisation):
    """Settings; the defaults are ESD-x of the first script, unless a comment says ours.

    The script of 2025: 200 steps, lr 5e-5, x_t base, eta_from concept, eta 2.
    """

    module: ClassVar[str] = "resurgence.erasers.gradient.esd"

    eta: NotNegative = 1.0  # strength of the negative guidance: first script
    eta_from: Literal["empty", "concept"] = "empty"  # the target starts at eps_0(""), Eq. 7, or (2025) at eps_0(c*)
    x_t: Literal["student", "base"] = "student"  # who samples x_t: the model in training (first script), the base once

    @property
    def repeated_captions(self) -> int:
        """The empty caption and c*."""
        return 2

    def step_passes(self, erased: int) -> Passes:
        """The model on c*, the frozen one on "" and c*; its own way to x_t is half of the DDIM steps, guided."""
        return Passes(1, self.asked_in_steps(erased) + self.sampling_steps)


@dataclass(frozen=True)
class SddConfig(TrajectoryOptimisation):
    """Settings; the defaults are the authors', unless a comment says ours."""

    module: ClassVar[str] = "resurgence.erasers.gradient.sdd"
    sampler: ClassVar[str] = "z_t"

    steps: Count = 1500  # optimiser steps: script
    lr: Positive = 1e-5  # learning rate: script
    optimiser: Literal["adam", "adamw"] = "adamw"  # script
    weight_decay: NotNegative = 1e-4  # of AdamW: script
    max_norm: Positive | None = 1.0  # of the gradient: script
    ema: float | None = 0.999  # script; m of the teacher, which samples z_t and is the result; lower it for few steps
    z_t: Literal["teacher", "base"] = "teacher"  # who samples z_t: the moving average, paper; or the base once (ours)
    sampled_for: Literal["concept", "all"] = "concept"  # ours, caption of z_t: the concept's; all: joined, script

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema is None:
            raise ConfigError("ema", None, "is the teacher, which SDD needs; write its decay, e.g. 0.999")

    def step_passes(self, erased: int) -> Passes:
        """The model on c* and, without gradient, on ""; the teacher's way to z_t."""
        return Passes(1, 1 + self.sampling_steps)


@dataclass(frozen=True)
class SpmConfig(TrajectoryOptimisation):
    """Settings; the paper's, where it is silent the authors' configurations', or ours where a comment says so."""

    module: ClassVar[str] = "resurgence.erasers.gradient.spm"
    changes: ClassVar[Changes] = {
        "adapters": ("shared",),
        "anchoring": ("retained",),
        "anchors": (0,),
        "anchor_weight": (0.0,),
    }

    parameters: Selection = "full"  # paper: an adapter for each linear and convolution layer of these; xattn: attn2
    layers: Literal["all", "transformers"] = "all"  # paper; transformers: only those in transformer blocks, the code
    steps: Count = 3000  # code; each is one step of every adapter
    lr: Positive = 1e-4  # code; constant here, there a warm-up of 500 steps, then three cosine cycles
    optimiser: Literal["adam", "adamw"] = "adamw"  # code, there with 8-bit states
    weight_decay: NotNegative = 0.01  # of AdamW: the default of the code's optimiser
    adapters: Literal["concept", "shared"] = "concept"  # paper; shared: one for all, as the code for a list of concepts
    rank: Count = 1  # of an adapter: paper and code
    scale: Positive = 1.0  # of B A; alpha / rank in the code, 1 / 1
    eta: NotNegative = 1.0  # strength of the negative guidance: code
    surrogate: Literal["empty", "mapping"] = "empty"  # s: "" (code), or the task's mapping concept
    anchoring: Literal["latent", "retained"] = "latent"  # a: random embeddings (code), captions of retained concepts
    anchors: Natural = 4  # for each sample: code; 0: no anchoring
    anchor_weight: NotNegative = 1000.0  # lambda: code
    x_t: Literal["base", "student"] = "base"  # who samples x_t: the base once (ours), or the adapted model (code)
    ddim_steps: DdimSteps = 30  # of a whole trajectory: code

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anchoring != "latent" and not self.anchors:
            raise ConfigError("anchoring", self.anchoring, "has no effect with anchors: 0; leave it out")

    @property
    def repeated_captions(self) -> int:
        """The surrogate and the concept."""
        return 2

    def asks_in_advance(self, concepts: int) -> bool:
        """As for one concept, with an adapter for each: each is trained by itself."""
        return super().asks_in_advance(1 if self.adapters == "concept" else concepts)

    def step_passes(self, erased: int) -> Passes:
        """The concept and the anchors; with an adapter for each concept all of this for each of them."""
        adapters, plain = erased if self.adapters == "concept" else 1, self.asked_in_steps(erased) + self.anchors
        return Passes(adapters * (1 + self.anchors), adapters * (plain + self.sampling_steps))


@dataclass(frozen=True)
class EapConfig(TrajectoryOptimisation):
    """Settings; the paper's for objects and styles, where it is silent the script's, or ours if a comment says so."""

    module: ClassVar[str] = "resurgence.erasers.gradient.eap"
    has_words: ClassVar[bool] = True
    own_meaning: ClassVar[frozenset[str]] = frozenset({"lamb", "eta"})
    changes: ClassVar[Changes] = {"lamb": (0.0,)}  # the paper's own ablation

    lamb: NotNegative = 1.0  # lambda, weight of the preservation loss: paper
    target: Literal["neutral", "guided"] = "neutral"  # Eq. 5; guided: c_n with negative guidance, as ESD (script)
    neutral: str = ""  # c_n: script; the paper names " " and "a photo"
    negative_guidance: NotNegative = 1.0  # target guided: its strength, script
    words: str = ""  # file, a word a line (paper: Oxford 3000); "": the tokenizer's whole words (paper tries them)
    preserve: tuple[str, ...] = ()  # captions as they are instead of words, such as the fixed " " of the paper's Fig. 1
    exclude: Literal["concepts", "words", "none"] = "concepts"  # left out: concepts, paper; + their words; none: script
    closest: Count = 100  # K: paper; nudity 50
    distance: Literal["cosine", "l2"] = "cosine"  # paper; l2: script, which takes K of the 1000 closest by k-means
    search: Literal["gumbel", "pgd"] = "gumbel"  # for c_a: words; pgd: from c_e through the embeddings (Section 4)
    radius: Positive | None = None  # pgd: largest distance of c_a from c_e; ours: null, none (the paper does not say)
    search_steps: Natural = 2  # N_iter: paper
    eta: Positive = 1e-3  # step size for pi: paper; 1e-2 in the authors' runs
    ascent: Literal["gradient", "adam"] = "gradient"  # how pi is moved: Algorithm 1, or Adam (script)
    through: Literal["both", "student"] = "both"  # pi's gradient through both models, Algorithm 1; student: script
    pi: Literal["kept", "reset"] = "kept"  # from step to step: script, the paper does not say
    temperature: Positive = 2.0  # of the Gumbel-Softmax; script
    hard: bool = True  # c_a is one word, with the gradient of the soft mixture; the authors' runs
    x_t: Literal["base", "student"] = "base"  # who samples x_t: the base once (ours), or the model in training (script)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preserve and self.words:
            raise ConfigError("preserve", list(self.preserve), "stands instead of words; write one of the two")
        if self.preserve and self.closest > len(self.preserve):
            remedy = f"preserve has {len(self.preserve)} captions; write at most that many"
            raise ConfigError("closest", self.closest, remedy)
        if self.search == "pgd" and not self.search_steps:
            raise ConfigError("search_steps", 0, "search: pgd would preserve the erased concept; write 1 or more")
        if self.search != "pgd" and self.radius is not None:
            raise ConfigError("radius", self.radius, "limits search: pgd alone; leave it out")

    @property
    def repeated_captions(self) -> int:
        """c_n, and c_e for guidance."""
        return 1 + (self.target == "guided")

    def step_passes(self, erased: int) -> Passes:
        """Concept and adversarial word, and the search for it through one model or both."""
        both = self.through == "both"
        plain = 1 + self.asked_in_steps(erased) + (0 if both else self.search_steps) + self.sampling_steps
        return Passes(2 + self.search_steps * (2 if both else 1), plain)


@dataclass(frozen=True)
class AdvunlearnConfig(TrajectoryOptimisation):
    """Settings; the defaults are the authors' for nudity, unless a comment says ours."""

    module: ClassVar[str] = "resurgence.erasers.gradient.advunlearn"
    trains_text_encoder: ClassVar[bool] = True

    parameters: Selection = "text-encoder"  # the paper's choice; its UNet variants: xattn, noxattn, full
    embeddings: Literal["frozen", "trained"] = "frozen"  # of text-encoder: the token and position tables; frozen: code
    eta: NotNegative = 1.0  # strength of the negative guidance: code
    gamma: NotNegative = 0.3  # weight of the retained captions: README; script's default 1
    retain_batch: Count = 5  # retained captions a step: code
    warmup: Natural = 200  # first steps, on c itself without an attack: code
    attack_steps: Count = 30  # K, of each attack: code
    attack_lr: Positive = 1e-3  # step size of the attack: code
    attack_update: Literal["sign", "adam"] = "sign"  # along the gradient's sign, paper; adam: code
    attack_start: Literal["random", "latest"] = "random"  # a random word, README; or the concept's last prefix, script
    attack_every: Count = 1  # steps after which a concept's prefix is made anew; 1: code
    prefix_tokens: Count = 1  # length of the attack's prefix: code
    retain_trajectories: Count = 1  # ours: sampled for each retained concept, once
    retain_template: Template = "a photo of {}"  # ours: the caption of a retained concept

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup >= self.steps:
            raise ConfigError("warmup", self.warmup, f"must be less than steps ({self.steps}), or nothing is attacked")
        if self.embeddings == "trained" and self.parameters != "text-encoder":
            raise ConfigError(
                "embeddings", "trained", f"has no effect with parameters: {self.parameters}; leave it out"
            )

    @property
    def samples_in_advance(self) -> bool:
        """Yes: of erased and of retained concepts."""
        return True

    @property
    def repeated_captions(self) -> int:
        """The empty caption and c, of an erased concept; a retained one has its own alone, which is always asked."""
        return 2

    def step_passes(self, erased: int) -> Passes:
        """Erased and retained captions, and after the warm-up the attack."""
        retained = self.retain_batch / self.batch
        attack = self.attack_steps / self.attack_every * (1 - self.warmup / self.steps)
        asked = 0 if self.asks_in_advance(erased) else 2 + attack
        return Passes(1 + retained + attack, asked + retained)

    def first_passes(self, erased: int, retained: int) -> Passes:
        """Trajectories of the base for the captions of both sides, and what it answers on those of the erased."""
        of_retained = self.base_passes(retained * self.retain_trajectories)
        return Passes(0, super().first_passes(erased, retained).plain + of_retained.plain)
