"""NegGrad+ (Kurmanji et al., NeurIPS 2023, arXiv 2302.09880, Eq. 1) for diffusion models.

    min  alpha E ||eps_theta(x_t, c_retain) - noise||^2 - (1 - alpha) E ||eps_theta(x_t, c*) - noise||^2

Gradient ascent on images of the erased concepts, descent on images of the retained ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from resurgence.config.fields import ConfigError
from resurgence.config.optimisation import Optimisation
from resurgence.diffusion.latents import add_noise, latents_of
from resurgence.erasers import Eraser, EraserData
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Objective, samples, train

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from resurgence.config.task import Task


@dataclass(frozen=True)
class NeggradConfig(Optimisation):
    """Settings; the paper's alpha is tuned for each data set."""

    alpha: float = 0.9  # weight of the retained concepts
    template: str = "a photo of the {}"  # the caption of an image

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ConfigError("alpha", self.alpha, "must lie between 0 and 1")


class Neggrad(Objective):
    """One image of an erased and one of a retained concept a sample."""

    def __init__(self, student: Student, task: Task, cfg: NeggradConfig, data: EraserData, seed: int) -> None:
        super().__init__(student)
        self.task, self.cfg, self.seed = task, cfg, seed
        images = {**data.images, **data.retained}
        names = [*task.erase, *task.retain]
        if missing := [name for name in names if name not in images]:
            raise ValueError(f"neggrad: no images of {missing[0]!r}; make the concept images first")
        self.latents = {name: latents_of(student.pipe, images[name]) for name in names}
        captions = [cfg.template.replace("{}", name) for name in names]
        self.texts = dict(zip(names, student.texts(captions), strict=True))

    def errors(self, names: list[str], draws: list[torch.Generator]) -> torch.Tensor:
        """Mean squared error of the predicted noise on an image of each concept."""
        count, device = len(self.student.alphas_bar), self.student.device
        which = [int(torch.randint(len(self.latents[n]), (), generator=g)) for n, g in zip(names, draws, strict=True)]
        x0 = torch.stack([self.latents[name][i] for name, i in zip(names, which, strict=True)]).float()
        t = torch.tensor([int(torch.randint(count, (), generator=g)) for g in draws], device=device)
        noise = torch.stack([torch.randn(x0.shape[1:], generator=g) for g in draws]).to(device)
        x = add_noise(x0, noise, self.student.alphas_bar[t])
        text = torch.stack([self.texts[name] for name in names])
        return (self.student(x, t, text) - noise).square().mean()

    def loss(self, step: int) -> torch.Tensor:
        """Descent on the retained concepts, ascent on the erased ones."""
        drawn = samples(self.task.erase, self.cfg.batch, self.seed, step)
        draws = [sample.generator for sample in drawn]
        kept = [self.task.retain[int(torch.randint(len(self.task.retain), (), generator=g))] for g in draws]
        retain, forget = self.errors(kept, draws), self.errors([sample.concept for sample in drawn], draws)
        return self.cfg.alpha * retain - (1 - self.cfg.alpha) * forget


def erase(
    pipe: StableDiffusionPipeline,
    task: Task,
    cfg: NeggradConfig,
    data: EraserData,
    seed: int,
    folder: Path | None = None,
) -> dict[str, torch.Tensor]:
    """Train; the pipeline is left as it was."""
    student = Student(pipe, cfg.parameters)
    return train(student, Neggrad(student, task, cfg, data, seed), task, cfg, data, seed, folder)


ERASER = Eraser(NeggradConfig, erase, frozenset({"images", "retained"}))
