"""Settings of the erasers that train on latents sampled from noise: no images are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from resurgence.config.erasers import Passes
from resurgence.config.fields import ConfigError, at_least, one_place
from resurgence.config.optimisation import Optimisation, Selection


def sampling_passes(trajectories: int, steps: int, guidance: float) -> int:
    """UNet passes of so many trajectories of the frozen base; the last DDIM step is not taken."""
    return trajectories * (steps - 1) * (2 if guidance > 1 else 1)


@dataclass(frozen=True)
class EsdConfig(Optimisation):
    """Settings; the defaults are ESD-x of the first script, unless a comment says ours.

    The script of 2025: 200 steps, lr 5e-5, x_t base, eta_from concept, eta 2.
    """

    module: ClassVar[str] = "resurgence.erasers.gradient.esd"

    eta: float = 1.0  # strength of the negative guidance: first script
    eta_from: Literal["empty", "concept"] = "empty"  # the target starts at eps_0(""), Eq. 7, or (2025) at eps_0(c*)
    x_t: Literal["student", "base"] = "student"  # who samples x_t: the model in training (first script), the base once
    ddim_steps: int = 50  # of a whole trajectory: first script
    guidance: float = 3.0  # of sampling x_t: both scripts
    trajectories: int = 4  # ours; x_t base: sampled for each concept
    template: str = "{}"  # ours: the caption of a concept

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("ddim_steps", "trajectories"):
            at_least(key, getattr(self, key), 1)
        for key in ("eta", "guidance"):
            at_least(key, getattr(self, key), 0)
        if self.parameters == "text-encoder":
            raise ConfigError("parameters", self.parameters, "esd trains the UNet; choose another, e.g. xattn")
        one_place("template", self.template)

    def step_passes(self, erased: int) -> Passes:
        """The model on c*, the frozen one on "" and c*; its own way to x_t is half of the DDIM steps, guided."""
        return Passes(1, 2 + (0 if self.x_t == "base" else self.ddim_steps))

    def first_passes(self, erased: int, retained: int) -> Passes:
        """Trajectories of the base, where it samples x_t."""
        count = erased * self.trajectories if self.x_t == "base" else 0
        return Passes(0, sampling_passes(count, self.ddim_steps, self.guidance))


@dataclass(frozen=True)
class SddConfig(Optimisation):
    """Settings; the defaults are the authors', unless a comment says ours."""

    module: ClassVar[str] = "resurgence.erasers.gradient.sdd"

    steps: int = 1500  # optimiser steps: script
    lr: float = 1e-5  # learning rate: script
    optimiser: Literal["adam", "adamw"] = "adamw"  # script
    weight_decay: float = 1e-4  # of AdamW: script
    max_norm: float | None = 1.0  # of the gradient: script
    ema: float | None = 0.999  # script; m of the teacher, which samples z_t and is the result; lower it for few steps
    z_t: Literal["teacher", "base"] = "teacher"  # who samples z_t: the moving average, paper; or the base once (ours)
    sampled_for: Literal["concept", "all"] = "concept"  # ours, caption of z_t: the concept's; all: joined, script
    ddim_steps: int = 50  # of a whole trajectory: script
    guidance: float = 3.0  # of sampling z_t; 3 in the authors' runs, 1 in the script
    trajectories: int = 4  # ours; z_t base: sampled for each concept
    template: str = "{}"  # ours: the caption of a concept

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("ddim_steps", "trajectories"):
            at_least(key, getattr(self, key), 1)
        at_least("guidance", self.guidance, 0)
        if self.parameters == "text-encoder":
            raise ConfigError("parameters", self.parameters, "sdd trains the UNet; choose another, e.g. xattn")
        if self.ema is None:
            raise ConfigError("ema", None, "is the teacher, which SDD needs; write its decay, e.g. 0.999")
        one_place("template", self.template)

    def step_passes(self, erased: int) -> Passes:
        """The model on c* and, without gradient, on ""; the teacher's way to z_t."""
        return Passes(1, 1 + (0 if self.z_t == "base" else self.ddim_steps))

    def first_passes(self, erased: int, retained: int) -> Passes:
        """Trajectories of the base, where it samples z_t."""
        count = erased * self.trajectories if self.z_t == "base" else 0
        return Passes(0, sampling_passes(count, self.ddim_steps, self.guidance))


@dataclass(frozen=True)
class SpmConfig(Optimisation):
    """Settings; the paper's, where it is silent the authors' configurations', or ours where a comment says so."""

    module: ClassVar[str] = "resurgence.erasers.gradient.spm"

    parameters: Selection = "full"  # paper: an adapter for each linear and convolution layer of these; xattn: attn2
    layers: Literal["all", "transformers"] = "all"  # paper; transformers: only those in transformer blocks, the code
    steps: int = 3000  # code; each is one step of every adapter
    lr: float = 1e-4  # code; constant here, there a warm-up of 500 steps, then three cosine cycles
    optimiser: Literal["adam", "adamw"] = "adamw"  # code, there with 8-bit states
    weight_decay: float = 0.01  # of AdamW: the default of the code's optimiser
    adapters: Literal["concept", "shared"] = "concept"  # paper; shared: one for all, as the code for a list of concepts
    rank: int = 1  # of an adapter: paper and code
    scale: float = 1.0  # of B A; alpha / rank in the code, 1 / 1
    eta: float = 1.0  # strength of the negative guidance: code
    surrogate: Literal["empty", "mapping"] = "empty"  # s: "" (code), or the task's mapping concept
    anchors: int = 4  # random embeddings for each sample: code; 0: no anchoring
    anchor_weight: float = 1000.0  # lambda: code
    x_t: Literal["base", "student"] = "base"  # who samples x_t: the base once (ours), or the adapted model (code)
    ddim_steps: int = 30  # of a whole trajectory: code
    guidance: float = 3.0  # of sampling x_t: code
    trajectories: int = 4  # ours; x_t base: sampled for each concept
    template: str = "{}"  # ours: the caption of a concept

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("rank", "ddim_steps", "trajectories"):
            at_least(key, getattr(self, key), 1)
        for key in ("eta", "guidance", "anchors", "anchor_weight"):
            at_least(key, getattr(self, key), 0)
        if not self.scale > 0:
            raise ConfigError("scale", self.scale, "must be positive")
        if self.parameters == "text-encoder":
            raise ConfigError("parameters", self.parameters, "spm adapts the UNet; choose another, e.g. full or xattn")
        one_place("template", self.template)

    def step_passes(self, erased: int) -> Passes:
        """The concept and the anchors; with an adapter for each concept all of this for each of them."""
        adapters = erased if self.adapters == "concept" else 1
        walked = 0 if self.x_t == "base" else self.ddim_steps
        return Passes(adapters * (1 + self.anchors), adapters * (2 + self.anchors + walked))

    def first_passes(self, erased: int, retained: int) -> Passes:
        """Trajectories of the base, where it samples x_t."""
        count = erased * self.trajectories if self.x_t == "base" else 0
        return Passes(0, sampling_passes(count, self.ddim_steps, self.guidance))


@dataclass(frozen=True)
class EapConfig(Optimisation):
    """Settings; the paper's for objects and styles, where it is silent the script's, or ours if a comment says so."""

    module: ClassVar[str] = "resurgence.erasers.gradient.eap"
    has_words: ClassVar[bool] = True

    lamb: float = 1.0  # lambda, weight of the preservation loss: paper
    target: Literal["neutral", "guided"] = "neutral"  # Eq. 5; guided: c_n with negative guidance, as ESD (script)
    neutral: str = ""  # c_n: script; the paper names " " and "a photo"
    negative_guidance: float = 1.0  # target guided: its strength, script
    compare: Literal["noise", "clean"] = "noise"  # what is compared: predicted noise (Eq. 5), or x_0 (script)
    words: str = ""  # file, a word a line (paper: Oxford 3000); "": the tokenizer's whole words (paper tries them)
    exclude: Literal["concepts", "words", "none"] = "concepts"  # left out: concepts, paper; + their words; none: script
    closest: int = 100  # K: paper; nudity 50
    distance: Literal["cosine", "l2"] = "cosine"  # paper; l2: script, which takes K of the 1000 closest by k-means
    search_steps: int = 2  # N_iter: paper
    eta: float = 1e-3  # step size for pi: paper; 1e-2 in the authors' runs
    ascent: Literal["gradient", "adam"] = "gradient"  # how pi is moved: Algorithm 1, or Adam (script)
    through: Literal["both", "student"] = "both"  # pi's gradient through both models, Algorithm 1; student: script
    pi: Literal["kept", "reset"] = "kept"  # from step to step: script, the paper does not say
    temperature: float = 2.0  # of the Gumbel-Softmax; script
    hard: bool = True  # c_a is one word, with the gradient of the soft mixture; the authors' runs
    x_t: Literal["base", "student"] = "base"  # who samples x_t: the base once (ours), or the model in training (script)
    ddim_steps: int = 50  # of a whole trajectory: script
    guidance: float = 3.0  # of sampling x_t: script
    trajectories: int = 4  # ours; x_t base: sampled for each concept
    template: str = "{}"  # ours: the caption of a concept or word

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("closest", "search_steps", "ddim_steps", "trajectories"):
            at_least(key, getattr(self, key), int(key != "search_steps"))
        for key in ("lamb", "negative_guidance", "guidance"):
            at_least(key, getattr(self, key), 0)
        for key in ("eta", "temperature"):
            if not getattr(self, key) > 0:
                raise ConfigError(key, getattr(self, key), "must be positive")
        if self.parameters == "text-encoder":
            raise ConfigError("parameters", self.parameters, "eap trains the UNet; choose another, e.g. xattn")
        one_place("template", self.template)

    def step_passes(self, erased: int) -> Passes:
        """Concept and adversarial word, and the search for it through one model or both."""
        both = self.through == "both"
        walked = 0 if self.x_t == "base" else self.ddim_steps
        plain = 2 + (self.target == "guided") + (0 if both else self.search_steps) + walked
        return Passes(2 + self.search_steps * (2 if both else 1), plain)

    def first_passes(self, erased: int, retained: int) -> Passes:
        """Trajectories of the base, where it samples x_t."""
        count = erased * self.trajectories if self.x_t == "base" else 0
        return Passes(0, sampling_passes(count, self.ddim_steps, self.guidance))


@dataclass(frozen=True)
class AdvunlearnConfig(Optimisation):
    """Settings; the defaults are the authors' for nudity, unless a comment says ours."""

    module: ClassVar[str] = "resurgence.erasers.gradient.advunlearn"

    parameters: Selection = "text-encoder"  # the paper's choice; its UNet variants: xattn, noxattn, full
    embeddings: Literal["frozen", "trained"] = "frozen"  # of text-encoder: the token and position tables; frozen: code
    eta: float = 1.0  # strength of the negative guidance: code
    gamma: float = 0.3  # weight of the retained captions: README; script's default 1
    retain_batch: int = 5  # retained captions a step: code
    warmup: int = 200  # first steps, on c itself without an attack: code
    attack_steps: int = 30  # K, of each attack: code
    attack_lr: float = 1e-3  # step size of the attack: code
    attack_update: Literal["sign", "adam"] = "sign"  # along the gradient's sign, paper; adam: code
    attack_start: Literal["random", "latest"] = "random"  # a random word, README; or the concept's last prefix, script
    attack_every: int = 1  # steps after which a concept's prefix is made anew; 1: code
    prefix_tokens: int = 1  # length of the attack's prefix: code
    ddim_steps: int = 50  # of a whole trajectory: code
    guidance: float = 3.0  # of sampling x_t: code
    trajectories: int = 4  # ours: sampled for each erased concept, once
    retain_trajectories: int = 1  # ours: sampled for each retained concept, once
    template: str = "{}"  # the caption of an erased concept: code
    retain_template: str = "a photo of {}"  # ours: the caption of a retained concept

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("retain_batch", "attack_steps", "attack_every", "prefix_tokens", "ddim_steps")
        for key in (*counts, "trajectories", "retain_trajectories"):
            at_least(key, getattr(self, key), 1)
        for key in ("eta", "gamma", "warmup", "guidance"):
            at_least(key, getattr(self, key), 0)
        if self.warmup >= self.steps:
            raise ConfigError("warmup", self.warmup, f"must be less than steps ({self.steps}), or nothing is attacked")
        if self.embeddings == "trained" and self.parameters != "text-encoder":
            raise ConfigError(
                "embeddings", "trained", f"has no effect with parameters: {self.parameters}; leave it out"
            )
        if not self.attack_lr > 0:
            raise ConfigError("attack_lr", self.attack_lr, "must be positive")
        for key in ("template", "retain_template"):
            one_place(key, getattr(self, key))

    def step_passes(self, erased: int) -> Passes:
        """Erased and retained captions, and after the warm-up the attack."""
        retained = self.retain_batch / self.batch
        attack = self.attack_steps / self.attack_every * (1 - self.warmup / self.steps)
        return Passes(1 + retained + attack, 2 + retained + attack)

    def first_passes(self, erased: int, retained: int) -> Passes:
        """Trajectories of the base for the captions of both sides."""
        count = erased * self.trajectories + retained * self.retain_trajectories
        return Passes(0, sampling_passes(count, self.ddim_steps, self.guidance))
