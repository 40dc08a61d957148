"""Latents x_t on the way from noise to images of a prompt: what the erasers that need no images train on.

DDIM with guidance, by the frozen base once for all steps of the training (`Trajectories`, cheap), or anew at each step
by the model in training (`walked`, as the first scripts of ESD and SDD). Of the few x_t of `Trajectories` a training
draws each many times, so what the original predicts there for the captions of every step is computed once, too
(`Original`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch

from resurgence.diffusion.device import exact
from resurgence.diffusion.unet import Predict, ddim, predict
from resurgence.seeds import generator
from resurgence.training.memory import PassLimits

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Pairs = list[tuple[torch.Tensor, torch.Tensor]]  # x_t (B, C, h, w) and t (B,)
CHUNK = 64  # samples a pass, before the first step


class Place(NamedTuple):
    """One x_t of `Trajectories`: the name of its prompt, the number of its DDIM step and that of its trajectory."""

    name: str
    step: int
    trajectory: int


class Points(NamedTuple):
    """Noised latents: x (B, C, h, w), t (B,), and the place of each sample if they are of `Trajectories`."""

    x: torch.Tensor
    t: torch.Tensor
    places: tuple[Place, ...] = ()


def stops(draws: Sequence[torch.Generator], steps: int, timesteps: int) -> tuple[list[int], list[int]]:
    """Where each sample leaves its trajectory: after how many DDIM steps, and how far t lies above the t of that step.

    t is uniform over the interval between this DDIM step and the one before it, timesteps / steps wide, as in the
    first scripts of ESD and SDD.
    """
    ends = [int(torch.randint(steps, (), generator=g)) for g in draws]
    return ends, [int(torch.randint(timesteps // steps, (), generator=g)) for g in draws]


def walked(
    pipe: StableDiffusionPipeline,
    predict: Predict,
    draws: Sequence[torch.Generator],
    text: torch.Tensor,
    empty: torch.Tensor,
    steps: int,
    guidance: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t (B, C, h, w) and t (B,) after a random number of DDIM steps, a number for each sample, from its generator.

    Args:
        text: (B, L, d). empty: (1, L, d). The others as in `ddim`.
    """
    side, timesteps = pipe.unet.config.sample_size, len(pipe.scheduler.alphas_cumprod)
    shape = (pipe.unet.config.in_channels, side, side)
    noise = torch.stack([torch.randn(shape, generator=g) for g in draws]).to(text.device)
    ends, shifts = stops(draws, steps, timesteps)
    x, t = noise.clone(), torch.zeros(len(draws), dtype=torch.long, device=text.device)
    for step, (now, latents) in enumerate(ddim(pipe.scheduler, predict, noise, text, empty, steps, guidance)):
        for b in [b for b, end in enumerate(ends) if end == step]:
            x[b], t[b] = latents[b], now + shifts[b]
        if step == max(ends):
            break
    return x, t.clamp(max=timesteps - 1)


class Trajectories:
    """x_t of `count` trajectories of each prompt at every DDIM step, made by the frozen base.

    Costs count * (steps - 1) UNet passes a prompt once (twice that with guidance), and count * steps latents of memory.

    Args:
        texts: name -> embedding (L, d) of its prompt. limits: of the UNet's passes.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        texts: Mapping[str, torch.Tensor],
        empty: torch.Tensor,
        count: int,
        steps: int,
        guidance: float,
        seed: int,
        limits: PassLimits | None = None,
    ) -> None:
        unet, limits = pipe.unet, limits or PassLimits()
        side = unet.config.sample_size
        shape = (unet.config.in_channels, side, side)
        rows = [(name, k) for name in texts for k in range(count)]
        parts = []
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            noise = torch.stack([torch.randn(shape, generator=generator("trajectory", n, k, seed)) for n, k in chunk])
            text = torch.stack([texts[name] for name, _ in chunk])

            def sampled(noise: torch.Tensor = noise, text: torch.Tensor = text) -> list[tuple[int, torch.Tensor]]:
                split = partial(limits.split, partial(predict, unet))
                run = ddim(pipe.scheduler, split, noise.to(unet.device), text, empty, steps, guidance)
                return list(islice(run, steps))  # without x_0, whose pass is not run

            with exact(unet.device):  # a run that goes on makes the same again
                seen = limits.fitting(sampled)
            parts.append(torch.stack([x for _, x in seen]))  # (steps, B, C, h, w)
            self.timesteps = [t for t, _ in seen]
        every = torch.cat(parts, 1)
        self.latents = {name: every[:, i * count : (i + 1) * count] for i, name in enumerate(texts)}

    def place(self, name: str, draws: torch.Generator) -> Place:
        """The place of one x_t of a prompt, uniform over the steps and the trajectories."""
        steps, count = self.latents[name].shape[:2]
        step = int(torch.randint(steps, (), generator=draws))
        return Place(name, step, int(torch.randint(count, (), generator=draws)))

    def draw(self, name: str, draws: torch.Generator) -> tuple[torch.Tensor, int]:
        """One x_t (C, h, w) of a prompt and its t, by `place`."""
        place = self.place(name, draws)
        return self.latents[name][place.step, place.trajectory], self.timesteps[place.step]

    def at(self, places: Sequence[Place]) -> Points:
        """x_t and t of places."""
        x = torch.stack([self.latents[place.name][place.step, place.trajectory] for place in places])
        return Points(x, torch.tensor([self.timesteps[place.step] for place in places], device=x.device), (*places,))

    def answers(
        self, original: Predict, texts: Mapping[str, torch.Tensor], limits: PassLimits
    ) -> dict[str, torch.Tensor]:
        """What the original predicts at every x_t, in the base's precision: name -> (steps, count, C, h, w).

        Args:
            texts: name -> embedding (L, d) of the caption, those of the trajectories or others.
        """
        found = {}
        for name, text in texts.items():
            latents = self.latents[name]
            t = torch.tensor(self.timesteps, device=latents.device).repeat_interleave(latents.shape[1])
            pairs: Pairs = list(zip(latents.flatten(0, 1).split(CHUNK), t.split(CHUNK), strict=True))

            def asked(pairs: Pairs = pairs, text: torch.Tensor = text) -> torch.Tensor:
                return torch.cat([original(x, t, text.expand(len(x), -1, -1)) for x, t in pairs])

            with exact(latents.device):  # a run that goes on computes the same again
                found[name] = limits.fitting(asked).view_as(latents)
        return found


class Asked(NamedTuple):
    """A question to the original: its predictions at points for text (B, L, d).

    kind names the caption, one for each name of a place, where it is asked again and again.
    """

    points: Points
    text: torch.Tensor
    kind: str = ""


class Original:
    """What the frozen original predicts in a step: looked up where it is known, else in one pass.

    Args:
        frozen: its pass. known: kind -> answers of `Trajectories`.
    """

    def __init__(self, frozen: Predict, known: Mapping[str, Mapping[str, torch.Tensor]] | None = None) -> None:
        self.frozen, self.known = frozen, dict(known or {})

    def __call__(self, *asked: Asked) -> list[torch.Tensor]:
        """The answers (B, C, h, w) to each question."""
        passes = [question for question in asked if question.kind not in self.known and len(question.text)]
        fresh: list[torch.Tensor] = []
        if passes:
            inputs = [(q.points.x, q.points.t, q.text) for q in passes]
            joined = self.frozen(*(torch.cat(tensors) for tensors in zip(*inputs, strict=True)))
            fresh = list(joined.split([len(q.text) for q in passes]))
        left = iter(fresh)
        return [next(left) if any(q is p for p in passes) else self.recalled(q) for q in asked]

    def recalled(self, question: Asked) -> torch.Tensor:
        """The answer to a question of a known kind, or to an empty one."""
        points = question.points
        if not len(question.text):
            return points.x
        known = self.known[question.kind]
        return torch.stack([known[place.name][place.step, place.trajectory] for place in points.places])
