"""EAP: Erasing with Adversarial Preservation (Bui et al., NeurIPS 2024, arXiv 2410.15618), Eq. 5, Algorithms 1 and 2.

    min_theta max_pi  || eps_theta(x_t, c_e) - eps_0(x_t, c_n) ||^2                              erasing
                      + lambda || eps_theta(x_t, c_a) - eps_0(x_t, c_a) ||^2,  c_a = G(pi) R     preservation

c_e is the erased concept, c_n a neutral caption, R the embeddings of the K vocabulary words closest to c_e, G the
Gumbel-Softmax. Each step first moves pi `search_steps` times up the second term, so that c_a is the word that the
erasure has changed most, and then the UNet once down the sum. Several concepts: each has its own R and pi; a step
trains `batch` of them, in turn. With `search: pgd`, c_a is no word but a point of the space of embeddings, which starts
at c_e and moves up the second term by projected gradient steps; what is written of pi here then holds for c_a.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from resurgence.config.fields import ConfigError
from resurgence.config.task import Task
from resurgence.diffusion.device import at_least_single
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.erasure import trained
from resurgence.erasers.gradient.esd import TrajectoryObjective, esd_target
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Sample
from resurgence.erasers.gradient.trajectories import Asked
from resurgence.erasers.gradient.trajectory_configs import EapConfig
from resurgence.files import read_lines
from resurgence.seeds import generator
from resurgence.training.loop import load_optimiser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 256  # words embedded at a time


def whole_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens that end a word and are at least three letters, in alphabetical order: word ends are among them."""
    ends = (token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>"))
    return sorted({word for word in ends if len(word) >= 3 and word.isascii() and word.isalpha()})


def vocabulary(cfg: EapConfig, tokenizer: PreTrainedTokenizerBase, erased: Sequence[str]) -> list[str]:
    """The words to search, without those that `exclude` names; or the captions of `preserve`, all of them.

    Raises:
        ConfigError: no such file, or fewer words than `closest`.
    """
    if cfg.preserve:
        return list(cfg.preserve)
    words = whole_words(tokenizer)
    if cfg.words:
        if not Path(cfg.words).is_file():
            raise ConfigError("words", cfg.words, "does not exist; name a file with one word a line")
        words = list(dict.fromkeys(read_lines(Path(cfg.words))))
    concepts = [concept.lower() for concept in erased]
    left_out = {"none": [], "concepts": concepts, "words": [*concepts, *" ".join(concepts).split()]}[cfg.exclude]
    words = [word for word in words if word.lower() not in left_out]
    if len(words) < cfg.closest:
        raise ConfigError("closest", cfg.closest, f"the vocabulary has {len(words)} words; lower it, or add words")
    return words


def similarity(a: torch.Tensor, b: torch.Tensor, distance: str) -> torch.Tensor:
    """How near embeddings are, all tokens in a row: cosine or negative distance; (N, L, d), (M, L, d) -> (N, M)."""
    a, b = a.flatten(1), b.flatten(1)
    return -torch.cdist(a, b) if distance == "l2" else F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def gumbel_noise(size: int, draws: torch.Generator) -> torch.Tensor:
    """Standard Gumbel noise -log E of exponential E, on the CPU."""
    return -torch.empty(size).exponential_(generator=draws).log()


def gumbel_softmax(pi: torch.Tensor, noise: torch.Tensor, temperature: float, hard: bool) -> torch.Tensor:
    """softmax((pi + noise) / temperature) over the last dimension; hard: its one-hot maximum with the soft gradient.

    pi are logits: a hard draw is word k with probability softmax(pi)_k, at any temperature.
    """
    soft = ((pi + noise) / temperature).softmax(-1)
    if not hard:
        return soft
    one_hot = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
    return one_hot - soft.detach() + soft


class Eap(TrajectoryObjective):
    """The two losses of one step, for `batch` concepts (x_t and captions as for ESD), and the search before it."""

    def __init__(self, student: Student, task: Task, cfg: EapConfig, data: EraserData, seed: int) -> None:
        words = vocabulary(cfg, student.pipe.tokenizer, task.erase)  # first: the rest takes minutes
        super().__init__(student, task, cfg, data, seed)
        self.neutral = student.texts([cfg.neutral])  # (1, L, d)
        self.ask_in_advance("neutral", dict.fromkeys(task.erase, self.neutral[0]))
        if cfg.target == "guided":
            self.ask_in_advance("concept", self.texts)
        captions = words if cfg.preserve else [cfg.template.replace("{}", word) for word in words]
        erased = torch.stack(list(self.texts.values()))
        chunks = [captions[start : start + CHUNK] for start in range(0, len(words), CHUNK)]
        near = torch.cat([similarity(erased, student.texts(chunk), cfg.distance) for chunk in chunks], 1)
        closest = near.topk(cfg.closest).indices  # (concepts, K)
        in_use, rows = closest.unique(return_inverse=True)
        self.every = at_least_single(
            student.texts([captions[k] for k in in_use.tolist()])
        )  # embeddings of the words in use
        self.rows = dict(zip(task.erase, rows, strict=True))  # concept -> (K,) rows of `every`
        self.words = {c: [words[k] for k in row.tolist()] for c, row in zip(task.erase, closest, strict=True)}
        logits, start = torch.zeros(cfg.closest).to(self.every), dict(zip(task.erase, erased, strict=True))
        self.start = {c: start[c].to(self.every) if cfg.search == "pgd" else logits for c in task.erase}
        self.pi = {c: self.start[c].clone() for c in task.erase}
        optimiser = torch.optim.SGD if cfg.ascent == "gradient" else torch.optim.Adam
        self.ascent = optimiser([pi.requires_grad_() for pi in self.pi.values()], lr=cfg.eta, maximize=True)

    def reset(self, concepts: Iterable[str]) -> None:
        """Every word of these concepts equally likely again, without the state of the optimiser of pi."""
        for pi, start in [(self.pi[concept], self.start[concept]) for concept in concepts]:
            pi.data.copy_(start)
            self.ascent.state.pop(pi, None)

    def adversarial(self, drawn: Sequence[Sample], step: int, turn: int) -> torch.Tensor:
        """c_a = G(pi) R of each sample, (B, L, d), with gradients to pi; `turn` numbers the draws within a step."""
        if self.cfg.search == "pgd":
            return torch.stack([self.pi[sample.concept] for sample in drawn])
        mixtures = []
        for number, sample in enumerate(drawn):
            noise = gumbel_noise(self.cfg.closest, generator("eap gumbel", self.seed, step, number, turn))
            pi = self.pi[sample.concept]
            chosen = gumbel_softmax(pi, noise.to(pi), self.cfg.temperature, self.cfg.hard)
            mixtures.append(torch.einsum("k,kld->ld", chosen, self.every[self.rows[sample.concept]]))
        return torch.stack(mixtures)

    def search(self, drawn: Sequence[Sample], x: torch.Tensor, t: torch.Tensor, step: int) -> None:
        """Algorithm 1: pi moves `search_steps` times up the preservation loss of its samples.

        The loss of a sample is the sum over its elements, or with `ascent: adam` the mean, as in the script: Adam's
        epsilon makes a difference where gradients are small.
        """
        if self.cfg.pi == "reset":
            self.reset({sample.concept for sample in drawn})
        for turn in range(self.cfg.search_steps):
            c_a = self.adversarial(drawn, step, turn)
            student = self.student
            retained = student.predicted({}, x, t, c_a) if self.cfg.through == "both" else student.frozen(x, t, c_a)
            squares = (student(x, t, c_a) - retained).square().flatten(1)  # (B, CHW)
            change = (squares.sum(1) if self.cfg.ascent == "gradient" else squares.mean(1)).sum()
            moved = [self.pi[c] for c in {sample.concept: None for sample in drawn}]
            self.ascent.zero_grad()
            for pi, g in zip(moved, torch.autograd.grad(change, moved), strict=True):
                pi.grad = g
            self.ascent.step()
            if self.cfg.radius is not None:
                self.project({sample.concept for sample in drawn}, self.cfg.radius)

    def project(self, concepts: Iterable[str], radius: float) -> None:
        """Move c_a of these concepts to the nearest point within the radius of c_e; norms over all tokens."""
        for concept in concepts:
            away = self.pi[concept].data - self.start[concept]
            self.pi[concept].data.copy_(self.start[concept] + away * (radius / away.norm()).clamp(max=1))

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        """Algorithm 2: the losses after the search; one pass of the frozen model, one of the student."""
        drawn, cfg, student = self.samples(step), self.cfg, self.student
        text, points = self.texts_of(drawn, self.texts), self.noisy(drawn)
        x, t, _ = points
        self.search(drawn, x, t, step)
        c_a = self.adversarial(drawn, step, cfg.search_steps).detach()
        asked = [Asked(points, self.neutral.expand_as(text), "neutral"), Asked(points, c_a)]
        guided = [Asked(points, text, "concept")] if cfg.target == "guided" else []
        target, retained, *concept = self.original(*asked, *guided)
        if concept:
            target = esd_target(target, concept[0], cfg.negative_guidance)
        erased, adversarial = student(torch.cat([x, x]), torch.cat([t, t]), torch.cat([text, c_a])).chunk(2)
        erasing, preservation = F.mse_loss(erased, target), F.mse_loss(adversarial, retained)
        return {"loss": erasing + cfg.lamb * preservation, "erasing": erasing, "preservation": preservation}

    def sensitive(self) -> dict[str, list[tuple[str, float]]]:
        """Concept -> its K words and their probabilities, the most sensitive first; of `pgd` their cosines to c_a."""
        chances = {c: self.weights_of(c, pi.detach()).tolist() for c, pi in self.pi.items()}
        return {c: sorted(zip(self.words[c], chances[c], strict=True), key=lambda pair: -pair[1]) for c in chances}

    def weights_of(self, concept: str, pi: torch.Tensor) -> torch.Tensor:
        """What `sensitive` says of the K words of a concept, (K,)."""
        if self.cfg.search == "pgd":
            return similarity(pi[None], self.every[self.rows[concept]], "cosine")[0]
        return pi.softmax(0)

    def state(self) -> dict[str, Any]:
        """pi of every concept and its optimiser's state."""
        return {"pi": {c: pi.detach() for c, pi in self.pi.items()}, "ascent": self.ascent.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `state`."""
        for concept, pi in self.pi.items():
            pi.data.copy_(state["pi"][concept])
        load_optimiser(self.ascent, state["ascent"])


def write_words(objective: Eap, delta: dict[str, torch.Tensor], folder: Path | None) -> dict[str, torch.Tensor]:
    """Write sensitive.json: concept -> [word, probability], the most sensitive first; of `pgd` [word, cosine]."""
    if folder is not None:
        (folder / "sensitive.json").write_text(json.dumps(objective.sensitive(), indent=1))
    return delta


erase = trained(Eap, finish=write_words)
