"""DoCo: Domain Correction with concept-preserving gradient (Wu et al., AAAI 2025, arXiv 2405.15304), Eq. 8 and 9.

    min_theta max_D  E log D(eps_theta(x_t, c)) + E log(1 - D(eps_theta(x_t, c*)))                (8)
    G = G_u if G_u . G_r >= 0, else G_u - lamb (G_u . G_r / ||G_r||^2) G_r                        (9)

x_t are noised images of the anchor, here the task's mapping concept; c is a caption of it, c* the same caption with
the erased concept in its place. A discriminator D learns to tell from the predicted noise which caption was read, the
model learns to remove the difference. G_u is the gradient of (8), G_r that of the anchor's diffusion loss.
Several concepts: each step trains `batch` of them, in turn, against one D; or with a D for each concept, all samples of
a step are of one concept, in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from resurgence.config.task import Task
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.anchor_images import AnchorObjective
from resurgence.erasers.gradient.erasure import trained
from resurgence.erasers.gradient.image_configs import DocoConfig
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Sample, inner, samples
from resurgence.seeds import generator, seed_of
from resurgence.training.loop import load_optimiser

HALVINGS = 4  # most layers of stride 2 in a discriminator, the authors' for latents of 64 x 64


def discriminator(channels: int, side: int, last_stride: int, seed: int, width: int = 64) -> nn.Sequential:
    """A PatchGAN over latents (B, channels, side, side): logits (B, 1, h, w), positive for the anchor.

    Layers of stride 2 halve the latents to 4 x 4, at most four: one for a side of 8, four for 64 as in the authors'
    code; the first has `width` channels, each further one twice as many. The last layer makes the logits, 2 x 2 of
    them, or 3 x 3 with a last stride of 1.

    Raises:
        ValueError: latents smaller than 4 x 4.
    """
    if side < 4:
        raise ValueError(f"doco: latents of {side} x {side} are too small for the discriminator; it needs 4 x 4")
    widths = [width * 2**i for i in range(max(1, min(HALVINGS, (side // 4).bit_length() - 1)))]
    layers: list[nn.Module] = []
    with torch.device("meta"):  # no draws from the global generator
        for before, after in zip((channels, *widths), widths, strict=False):
            norm = [nn.BatchNorm2d(after, track_running_stats=False)] if layers else []
            layers += [nn.Conv2d(before, after, 4, 2, 1), *norm, nn.LeakyReLU(0.2)]
        net = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, last_stride, 1)).to_empty(device="cpu")
    for name, module in net.named_children():
        if isinstance(module, nn.Conv2d):  # PyTorch's own distribution: uniform up to 1 / sqrt(inputs)
            bound = module.weight[0].numel() ** -0.5
            for parameter, p in module.named_parameters():
                nn.init.uniform_(p, -bound, bound, generator("doco discriminator", name, parameter, seed))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return net


def log_likelihood(logits: torch.Tensor, anchor: bool) -> torch.Tensor:
    """Mean of log D (`anchor`), or of log(1 - D), of logits; a scalar of at most 0."""
    return F.logsigmoid(logits if anchor else -logits).mean()


def adversarial_loss(concept: torch.Tensor, anchor: torch.Tensor | None, kind: str) -> torch.Tensor:
    """What theta minimises, of D's logits for c* and, where theta makes them, for c: Eq. 8, or with labels swapped."""
    sign, truth = (1, True) if kind == "minimax" else (-1, False)
    value = sign * log_likelihood(concept, anchor=not truth)
    return value if anchor is None else value + sign * log_likelihood(anchor, anchor=truth)


def paper_surgery(unlearn: list[torch.Tensor], retain: list[torch.Tensor], lamb: float) -> list[torch.Tensor]:
    """Eq. 9 on the gradient as one vector over all tensors."""
    product = inner(unlearn, retain)
    scale = torch.where(product < 0, lamb * product / inner(retain, retain), 0.0)  # decided without waiting for a GPU
    return [u - scale * r for u, r in zip(unlearn, retain, strict=True)]


def code_surgery(
    unlearn: list[torch.Tensor], retain: list[torch.Tensor], lamb: float, max_norm: float | None
) -> list[torch.Tensor]:
    """The authors' code: tensor by tensor, G_u - lamb cos(G_u, G_r) G_r / ||G_r||, without the factor ||G_u||.

    G_u is clipped to max_norm over all tensors before. Small tensors are corrected too far, even past orthogonality.
    """
    clip = 1.0 if max_norm is None else (max_norm / (inner(unlearn, unlearn).sqrt() + 1e-6)).clamp(max=1)
    corrected = []
    for u, r in zip(unlearn, retain, strict=True):
        unit = r / (r.norm() + 1e-8)
        cosine = (u / (u.norm() + 1e-8) * unit).sum()
        corrected.append(clip * u - lamb * cosine.clamp(max=0) * unit)
    return corrected


class Judge:
    """A discriminator D and its optimiser."""

    def __init__(self, net: nn.Sequential, lr: float) -> None:
        self.net = net
        self.optimiser = torch.optim.Adam(net.parameters(), lr, (0.5, 0.999))  # betas: code

    def train(self, concept: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        """One step of D up the value of Eq. 8; its loss, the value with its sign changed."""
        of_anchor, of_concept = self.net(anchor.detach()), self.net(concept.detach())
        loss = -log_likelihood(of_anchor, anchor=True) - log_likelihood(of_concept, anchor=False)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.detach()


class Doco(AnchorObjective):
    """The gradient of one step, for `batch` pairs of an erased concept and an image of its anchor; and D's own step."""

    def __init__(self, student: Student, task: Task, cfg: DocoConfig, data: EraserData, seed: int) -> None:
        super().__init__(student, task, cfg, data, seed)
        channels, *sides = next(iter(self.latents.values())).shape[1:]
        apart = cfg.discriminators == "concept"
        seeds = {c: seed_of("doco concept", c, seed) for c in task.erase} if apart else {"": seed}
        self.judges: dict[str, Judge] = {}  # erased concept -> its D, or "" -> that of all
        for name, draws in seeds.items():
            net = discriminator(channels, min(sides), cfg.last_stride, draws, cfg.discriminator_width)
            self.judges[name] = Judge(net.to(student.device), cfg.discriminator_lr)

    def samples(self, step: int) -> list[Sample]:
        """The samples of a step; with a D for each concept all of one concept, the concepts in turn."""
        if self.cfg.discriminators == "shared":
            return super().samples(step)
        [turn] = samples(self.task.erase, 1, self.seed, step)
        return samples((turn.concept,), self.cfg.batch, self.seed, step)

    def judge(self, step: int) -> Judge:
        """The discriminator of the samples of a step."""
        return self.judges["" if self.cfg.discriminators == "shared" else self.samples(step)[0].concept]

    @property
    def clips(self) -> bool:
        """True for the surgery of the code, which clips G_u before it and nothing behind it."""
        return self.cfg.surgery == "code"

    @property
    def asks_original(self) -> bool:
        """Whether the original predicts for the anchor."""
        return self.cfg.anchor_from == "frozen"

    def gradient(self, step: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """G of Eq. 9; in the warm-up no gradients at all, so that the optimiser leaves every weight as it is."""
        cfg, student, judge = self.cfg, self.student, self.judge(step)
        x, t, truth, text, anchor_text = self.pairs(step)
        adversarial, weights = cfg.unlearning == "adversarial", list(student.weights.values())
        warm = adversarial and step < cfg.warmup

        with torch.set_grad_enabled(not warm):
            points, times = torch.cat([x, x]), torch.cat([t, t])
            concept, anchor = student.raw(student.weights, points, times, torch.cat([text, anchor_text])).chunk(2)
            retaining = F.mse_loss(student.in_space(anchor, x, t), truth)  # the anchor's diffusion loss
            if cfg.anchor_from == "frozen":
                with torch.no_grad():
                    anchor = student.raw({}, x, t, anchor_text)
            space = "clean" if cfg.discriminate == "clean" and adversarial else student.space
            concept, anchor = student.in_space(concept, x, t, space), student.in_space(anchor, x, t, space)
            if adversarial:
                logits = judge.net(anchor) if cfg.anchor_from == "current" else None
                loss = adversarial_loss(judge.net(concept), logits, cfg.generator)
            else:
                loss = F.mse_loss(concept, anchor.detach())
        gradient = [None] * len(weights) if warm else self.combined_gradient(loss, retaining, weights)
        values = {"loss": loss.detach(), "retain": retaining.detach()}
        if adversarial:
            values["discriminator"] = judge.train(concept, anchor)
        return gradient, values

    def combined_gradient(
        self, loss: torch.Tensor, retaining: torch.Tensor, weights: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """G of the losses of unlearning and retaining, by the surgery of the settings."""
        cfg, needed = self.cfg, self.cfg.surgery != "none"
        unlearn = torch.autograd.grad(loss, weights, retain_graph=needed, materialize_grads=True)
        if not needed:
            return list(unlearn)
        retain = torch.autograd.grad(retaining, weights, materialize_grads=True)
        if cfg.surgery == "sum":
            return [u + cfg.lamb * r for u, r in zip(unlearn, retain, strict=True)]
        if cfg.surgery == "code":
            return code_surgery(list(unlearn), list(retain), cfg.lamb, cfg.max_norm)
        return paper_surgery(list(unlearn), list(retain), cfg.lamb)

    def state(self) -> dict[str, Any]:
        """Every D and its optimiser."""
        return {n: {"net": j.net.state_dict(), "optimiser": j.optimiser.state_dict()} for n, j in self.judges.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore every D and its optimiser."""
        for name, judge in self.judges.items():
            judge.net.load_state_dict(state[name]["net"])
            load_optimiser(judge.optimiser, state[name]["optimiser"])


erase = trained(Doco)
