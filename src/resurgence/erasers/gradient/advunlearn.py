"""AdvUnlearn: defensive unlearning with adversarial training (Zhang et al., NeurIPS 2024, arXiv 2405.15234).

    min_theta  || eps_theta(x_t, c_adv) - [ eps_0(x_t, "") - eta (eps_0(x_t, c) - eps_0(x_t, "")) ] ||^2
               + gamma || eps_theta(x_t, r) - eps_0(x_t, r) ||^2
    where c_adv = argmin || eps_theta(x_t, c_adv) - eps_0(x_t, c) ||^2

ESD's loss (its Eq. 7) on an adversarial caption, and a term for retained captions r. The attacker writes a few tokens
of free embedding in front of the erased concept's caption c, by projected gradient descent, so that the model shows
what the original shows for c. theta is the text encoder: fine-tuning the UNet leaves the erasure where it is. Several
concepts: each step trains `batch` of them, in turn, each with a prefix of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from resurgence.config.task import Task
from resurgence.diffusion.device import at_least_single
from resurgence.diffusion.lora_files import of_part
from resurgence.diffusion.text import embed, token_ids, tokenize
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.erasure import trained
from resurgence.erasers.gradient.esd import esd_target
from resurgence.erasers.gradient.student import Student, Weights
from resurgence.erasers.gradient.trainer import Objective, samples
from resurgence.erasers.gradient.trajectories import Asked, Original, Points, Trajectories
from resurgence.erasers.gradient.trajectory_configs import AdvunlearnConfig
from resurgence.seeds import generator, seed_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def per_sample(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of each sample: (B, C, h, w) -> (B,)."""
    return (a - b).square().flatten(1).mean(1)


def encode(student: Student, weights: Weights, captions: Sequence[str], prefixes: torch.Tensor) -> torch.Tensor:
    """Embeddings of captions, each behind a prefix of free token embeddings: (B, k, d) -> (B, L, d), with gradients.

    A hook on the table of token embeddings puts the rows after the beginning token; what follows moves up by k.
    """
    encoder, k = student.pipe.text_encoder, prefixes.shape[1]
    inputs = tokenize(student.pipe.tokenizer, captions)
    # the ids at the places of the prefix have no effect, those cut off at the end are padding
    ids, mask = (torch.cat([v[:, :1].expand(-1, k), v], 1)[:, : v.shape[1]] for v in inputs)

    def insert(module: torch.nn.Module, args: tuple, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows[:, :1], prefixes.to(rows.dtype), rows[:, 1 + k :]], 1)

    with encoder.get_input_embeddings().register_forward_hook(insert):
        return embed(encoder, ids, mask, of_part(weights, "text_encoder"))


class Advunlearn(Objective):
    """The loss of one step: `batch` erased concepts behind adversarial prefixes, and `retain_batch` retained ones."""

    def __init__(self, student: Student, task: Task, cfg: AdvunlearnConfig, data: EraserData, seed: int) -> None:
        super().__init__(student, task, cfg, data, seed)
        self.captions = {c: cfg.template.replace("{}", c) for c in task.erase}
        self.captions |= {c: cfg.retain_template.replace("{}", c) for c in task.retain}
        limit = student.pipe.tokenizer.model_max_length
        for caption in self.captions.values():
            if len(token_ids(student.pipe.tokenizer, caption)) + cfg.prefix_tokens > limit:
                raise ValueError(f"advunlearn: caption {caption!r} leaves no room for prefix_tokens in {limit} tokens")
        self.texts = dict(zip(self.captions, student.texts(list(self.captions.values())), strict=True))  # (L, d) each
        self.empty = student.texts([""])  # (1, L, d)
        self.pools: dict[str, Trajectories] = {}
        for concepts, count in ((task.erase, cfg.trajectories), (task.retain, cfg.retain_trajectories)):
            texts = {c: self.texts[c] for c in concepts}
            options = (count, cfg.ddim_steps, cfg.guidance, seed, student.limits)
            pool = Trajectories(student.pipe, texts, self.empty, *options)
            self.pools |= dict.fromkeys(concepts, pool)
        self.original = Original(student.frozen)
        if cfg.asks_in_advance(len(task.erase)):
            empty = dict.fromkeys(task.erase, self.empty[0])
            for kind, texts in (("empty", empty), ("concept", {c: self.texts[c] for c in task.erase})):
                self.original.known[kind] = self.pools[task.erase[0]].answers(student.frozen, texts, student.limits)
        self.prefixes: dict[str, torch.Tensor] = {}  # erased concept -> (k, d), its last adversarial prefix
        self.steps: dict[str, int] = {}  # erased concept -> step of its last attack

    def noisy(self, drawn: Sequence[tuple[str, torch.Generator]]) -> Points:
        """x_t and t of concepts, all erased or all retained ones, on trajectories of the frozen base."""
        pool = self.pools[drawn[0][0]]
        return pool.at([pool.place(concept, draws) for concept, draws in drawn])

    def attack(self, concepts: Sequence[str], step: int) -> torch.Tensor:
        """Adversarial prefixes (B, k, d) of these concepts, by gradient descent on the distance to eps_0(c)."""
        cfg, student = self.cfg, self.student
        weights = {name: w.detach() for name, w in student.weights.items()}
        draws = [generator("advunlearn attack", concept, self.seed, step) for concept in concepts]
        table, starts = at_least_single(student.pipe.text_encoder.get_input_embeddings().weight.detach()), []
        for concept, g in zip(concepts, draws, strict=True):
            words = torch.randint(len(table), (cfg.prefix_tokens,), generator=g).to(table.device)
            latest = self.prefixes.get(concept) if cfg.attack_start == "latest" else None
            starts.append(table[words] if latest is None else latest)
        prefix = torch.stack(starts).clone().requires_grad_()
        optimiser = torch.optim.Adam([prefix], cfg.attack_lr)
        text = torch.stack([self.texts[concept] for concept in concepts])
        for _ in range(cfg.attack_steps):
            points = self.noisy(list(zip(concepts, draws, strict=True)))
            (target,) = self.original(Asked(points, text, "concept"))
            predicted = student.predicted(weights, points.x, points.t, self.behind(concepts, prefix, weights))
            prefix.grad = torch.autograd.grad(per_sample(predicted, target).sum(), prefix)[0]
            if cfg.attack_update == "sign":
                prefix.data -= cfg.attack_lr * prefix.grad.sign()
            else:
                optimiser.step()
        return prefix.detach()

    def behind(self, concepts: Sequence[str], prefixes: torch.Tensor, weights: Weights) -> torch.Tensor:
        """Embeddings (B, L, d) of the captions of concepts, each behind its prefix of (B, k, d)."""
        return encode(self.student, weights, [self.captions[c] for c in concepts], prefixes)

    def adversarial(self, concepts: Sequence[str], step: int) -> torch.Tensor:
        """Prefixes (B, k, d) of these concepts, after an attack for those that are missing or old."""
        every = self.cfg.attack_every
        old = [c for c in dict.fromkeys(concepts) if c not in self.steps or step - self.steps[c] >= every]
        if old:
            self.prefixes |= dict(zip(old, self.attack(old, step), strict=True))
            self.steps |= dict.fromkeys(old, step)
        return torch.stack([self.prefixes[c] for c in concepts])

    def encoded(self, concepts: Sequence[str]) -> torch.Tensor:
        """Embeddings (B, L, d) of the plain captions by the model in training."""
        if self.cfg.parameters != "text-encoder":
            return torch.stack([self.texts[c] for c in concepts])
        return self.student.encode([self.captions[c] for c in concepts])

    def loss(self, step: int) -> torch.Tensor:
        """ESD's loss behind the prefixes plus gamma times the distance to the original for retained captions."""
        cfg, student = self.cfg, self.student
        drawn = self.samples(step)
        of_retained = samples(self.task.retain, cfg.retain_batch, seed_of("retained", self.seed), step)
        concepts, retained = [s.concept for s in drawn], [s.concept for s in of_retained]
        if step < cfg.warmup:
            text = self.encoded(concepts + retained)
        else:
            prefixes = self.adversarial(concepts, step)
            text = torch.cat([self.behind(concepts, prefixes, student.weights), self.encoded(retained)])
        n, points, others = len(drawn), self.noisy(drawn), self.noisy(of_retained)
        plain, kept = (torch.stack([self.texts[c] for c in side]) for side in (concepts, retained))
        asked = Asked(points, self.empty.expand_as(plain), "empty"), Asked(points, plain, "concept")
        empty, concept, same = self.original(*asked, Asked(others, kept))
        target = torch.cat([esd_target(empty, concept, cfg.eta), same])
        distances = per_sample(student(torch.cat([points.x, others.x]), torch.cat([points.t, others.t]), text), target)
        return distances[:n].mean() + cfg.gamma * distances[n:].mean()

    def state(self) -> dict[str, Any]:
        """The prefixes and the steps of their attacks."""
        return {"prefixes": self.prefixes, "steps": self.steps}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `state`."""
        self.prefixes, self.steps = dict(state["prefixes"]), dict(state["steps"])


def student_of(pipe: StableDiffusionPipeline, task: Task, cfg: AdvunlearnConfig, seed: int) -> Student:
    """The selected parameters, without the tables of embeddings if those are frozen."""
    student = Student(pipe, cfg.parameters, cfg.space)
    if cfg.embeddings == "frozen":
        student.weights = {n: w for n, w in student.weights.items() if ".embeddings." not in n}
    return student


erase = trained(Advunlearn, student_of)
