"""SPM: concept-SemiPermeable Membrane (Lyu et al., CVPR 2024, arXiv 2312.16145).

    min  || eps_{W + B A}(x_t, c*) - [ eps_0(x_t, s) - eta (eps_0(x_t, c*) - eps_0(x_t, s)) ] ||^2      erasing
         + anchor_weight E_a || eps_{W + B A}(x_t, a) - eps_0(x_t, a) ||^2                              anchoring

A membrane is a rank-1 adapter B A on the weight W of every linear and convolution layer. s is the surrogate of the
erased concept c*, "" by default; a are random embeddings, or captions of the retained concepts, of probabilities
proportional to 1 - cos(c*, a). Several concepts: each has a separate adapter, trained independently; they are merged by
summing, W' = W + scale sum B A.
Separate adapters can be scaled by how near a prompt is to their concept (spm_transport.py).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from resurgence.config.task import Task, TaskPart
from resurgence.diffusion.deltas import DELTA_FILE, load_delta, parameters, save_delta
from resurgence.diffusion.device import at_least_single
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.erasure import trained
from resurgence.erasers.gradient.esd import TrajectoryObjective, esd_target
from resurgence.erasers.gradient.student import Student, Weights
from resurgence.erasers.gradient.trainer import Objective, Sample, final_weights, in_precision_of_base, samples
from resurgence.erasers.gradient.trajectories import Asked, Points
from resurgence.erasers.gradient.trajectory_configs import SpmConfig
from resurgence.erasers.lora import Lora, save_loras, slugs
from resurgence.seeds import generator, seed_of
from resurgence.training.checkpoint import checkpoint_name

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def product(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """B A as one weight: (out, r) (r, in), or for a convolution (out, r, 1, 1) after (r, in, k, k)."""
    return (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])


def anchor(text: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """A random embedding (L, d), 0.8 to 1.2 times as long as `text`, accepted with probability 1 - cos (at most 1)."""
    text = text.cpu()
    while True:
        noise = torch.randn(text.shape, generator=draws)
        near = F.cosine_similarity(text.flatten(), noise.flatten(), dim=0)
        if torch.rand((), generator=draws) < 1 - near:
            break
    length = 0.8 + 0.4 * torch.rand((), generator=draws)
    return noise * (length * text.norm() / noise.norm())


def retained_anchors(text: torch.Tensor, retained: torch.Tensor, count: int, draws: torch.Generator) -> torch.Tensor:
    """Draw `count` of the embeddings `retained` (N, L, d), each with probability proportional to 1 - cos to text."""
    near = F.cosine_similarity(text.flatten()[None], retained.flatten(1)).cpu()
    return retained[torch.multinomial((1 - near).clamp(1e-6, 1), count, replacement=True, generator=draws)]


def groups_of(task: Task, cfg: SpmConfig) -> dict[str, tuple[str, ...]]:
    """Adapter -> the concepts that it erases."""
    return {concept: (concept,) for concept in task.erase} if cfg.adapters == "concept" else {"shared": task.erase}


class Adapted(Student):
    """A student whose weights are the factors of adapters, `<adapter>|<parameter>|down` and `|up`; B A is 0 at first.

    Attributes:
        base: the adapted parameters as they are in the base.
    """

    def __init__(self, pipe: StableDiffusionPipeline, cfg: SpmConfig, adapters: Sequence[str], seed: int) -> None:
        super().__init__(pipe, cfg.parameters, cfg.space)
        kinds = {f"unet.{n}.weight": m for n, m in pipe.unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        names = [n for n in self.weights if n in kinds and (cfg.layers == "all" or ".attentions." in n)]
        if not names:
            raise ValueError(f"spm: no linear or convolution layer in parameters = {cfg.parameters!r}; choose full")
        plain = parameters(pipe)
        self.base = {name: at_least_single(plain[name].detach()) for name in names}
        self.scale, self.weights = cfg.scale, {}
        for adapter in adapters:
            for name, w in self.base.items():
                bound = w[0].numel() ** -0.5
                draws = generator("spm down", adapter, name, seed)
                down = torch.empty(cfg.rank, *w.shape[1:]).uniform_(-bound, bound, generator=draws)
                up = torch.zeros(len(w), cfg.rank, *[1] * (w.ndim - 2))
                for side, factor in (("down", down), ("up", up)):
                    self.weights[f"{adapter}|{name}|{side}"] = factor.to(w).requires_grad_()

    def only(self, adapter: str) -> Adapted:
        """The same with one of the adapters; its factors are the same tensors."""
        student = copy.copy(self)
        student.weights = {name: w for name, w in self.weights.items() if name.rsplit("|", 2)[0] == adapter}
        return student

    def lora(self, factors: Weights) -> Lora:
        """Factors of one adapter as module -> (down, up), the scale inside: W' = W + up down."""
        names = {name.split("|")[1]: name.rpartition("|")[0] for name in factors}
        pairs = {w: (factors[f"{n}|down"].detach(), self.scale * factors[f"{n}|up"].detach()) for w, n in names.items()}
        return {w.removeprefix("unet.").removesuffix(".weight"): pair for w, pair in pairs.items()}

    def merged(self, factors: Weights) -> dict[str, torch.Tensor]:
        """W' = W + scale sum B A of every adapted parameter, with gradients; nothing for no factors."""
        weights: dict[str, torch.Tensor] = {}
        for key in [key for key in factors if key.endswith("|down")]:
            name = key.rsplit("|", 2)[1]
            change = self.scale * product(factors[key.removesuffix("down") + "up"], factors[key])
            weights[name] = weights.get(name, self.base[name]) + change
        return weights

    def raw(self, weights: Weights, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """What the UNet predicts with adapters merged in."""
        return super().raw(self.merged(weights), x, t, text)


class Spm(TrajectoryObjective):
    """The loss of one adapter, for `batch` samples of its concepts (x_t and captions as for ESD)."""

    def __init__(self, student: Adapted, task: Task | TaskPart, cfg: SpmConfig, data: EraserData, seed: int) -> None:
        super().__init__(student, task, cfg, data, seed)
        words = [cfg.template.replace("{}", task.mapping[c]) if cfg.surrogate == "mapping" else "" for c in task.erase]
        self.surrogates = dict(zip(task.erase, student.texts(words), strict=True))
        self.ask_in_advance("surrogate", self.surrogates)
        self.ask_in_advance("concept", self.texts)
        if cfg.anchoring == "retained":
            self.retained = student.texts([cfg.template.replace("{}", concept) for concept in task.retain])  # (N, L, d)

    def samples(self, step: int) -> list[Sample]:
        """The samples of a step; each adapter of one concept has draws of its own."""
        cfg, concepts = self.cfg, self.task.erase
        seed = self.seed if cfg.adapters == "shared" else seed_of("spm adapter", *concepts, self.seed)
        return samples(concepts, cfg.batch, seed, step)

    def anchors(self, text: torch.Tensor, drawn: Sequence[Sample]) -> torch.Tensor:
        """The anchors of the samples, of which text (B, L, d) are the captions: (B * anchors, L, d)."""
        count = self.cfg.anchors
        if not count:
            return text[:0]
        if self.cfg.anchoring == "retained":
            each = [retained_anchors(e, self.retained, count, s.generator) for e, s in zip(text, drawn, strict=True)]
            return torch.cat(each)
        near = [anchor(e, s.generator) for e, s in zip(text, drawn, strict=True) for _ in range(count)]
        return torch.stack(near).to(text)

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        """Erasing and anchoring term, and their weighted sum: one pass of the frozen model, one of the adapted."""
        drawn, cfg = self.samples(step), self.cfg
        text, surrogate = self.texts_of(drawn, self.texts), self.texts_of(drawn, self.surrogates)
        points, anchors = self.noisy(drawn), self.anchors(text, drawn)
        (x, t, _), each = points, Points(*(part.repeat_interleave(cfg.anchors, 0) for part in points[:2]))
        asked = Asked(points, surrogate, "surrogate"), Asked(points, text, "concept"), Asked(each, anchors)
        start, concept, retained = self.original(*asked)
        adapted = self.student(torch.cat([x, each.x]), torch.cat([t, each.t]), torch.cat([text, anchors]))
        erased, anchored = adapted.split([len(x), len(each.x)])
        erasing = F.mse_loss(erased, esd_target(start, concept, cfg.eta))
        anchoring = F.mse_loss(anchored, retained) if cfg.anchors else torch.zeros_like(erasing)
        return {"loss": erasing + cfg.anchor_weight * anchoring, "erasing": erasing, "anchoring": anchoring}


class Membranes(Objective):
    """All adapters, each by its own loss: only one of them is in memory with its gradients at a time."""

    def __init__(self, student: Adapted, task: Task, cfg: SpmConfig, data: EraserData, seed: int) -> None:
        super().__init__(student, task, cfg, data, seed)
        self.parts, self.groups = [], groups_of(task, cfg)
        for adapter, concepts in self.groups.items():
            mapping = {concept: task.mapping[concept] for concept in concepts}
            fields = {"kind": task.kind, "erase": concepts, "retain": task.retain, "mapping": mapping}
            part = TaskPart(fields, f"the adapter {adapter}")
            self.parts.append(Spm(student.only(adapter), part, cfg, data, seed))

    def gradient(self, step: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """The gradients of all adapters, and the mean of their curves."""
        gradients, values = zip(*[part.gradient(step) for part in self.parts], strict=True)
        means = {name: torch.stack([v[name] for v in values]).mean() for name in values[0]}
        return [g for gradient in gradients for g in gradient], means


def adapted(pipe: StableDiffusionPipeline, task: Task, cfg: SpmConfig, seed: int) -> Adapted:
    """The student of all adapters; their names are checked before the training, not after it."""
    groups = groups_of(task, cfg)
    slugs(groups)
    return Adapted(pipe, cfg, list(groups), seed)


def merge(objective: Membranes, factors: Mapping[str, torch.Tensor], folder: Path | None) -> dict[str, torch.Tensor]:
    """The delta of the merged adapters.

    Args:
        folder: where adapters/<concept>/ go (LoRA files as diffusers reads them); the trainer has written the
            factors of its checkpoints there, which are merged too.
    """
    student = objective.student

    def delta(weights: Weights) -> dict[str, torch.Tensor]:
        return in_precision_of_base(student, student.merged({n: w.to(student.device) for n, w in weights.items()}))

    final = final_weights(student)
    if folder is not None:
        parts = {name: {n: w for n, w in final.items() if n.startswith(f"{name}|")} for name in objective.groups}
        save_loras({name: student.lora(weights) for name, weights in parts.items()}, folder / "adapters")
        for file in [folder / checkpoint_name(step) / DELTA_FILE for step in objective.cfg.checkpoints]:
            save_delta(delta(load_delta(file)), file)
    return delta(final)


erase = trained(Membranes, adapted, merge)
