"""NegGrad+: its loss."""

from __future__ import annotations

import torch

from neggrad import NeggradConfig
from resurgence.config.task import Task
from resurgence.erasers import EraserData
from resurgence.erasers.toolkit import Objective, Student, add_noise, latents_of, trained


class Neggrad(Objective):
    """One image of an erased and one of a retained concept a sample."""

    def __init__(self, student: Student, task: Task, cfg: NeggradConfig, data: EraserData, seed: int) -> None:
        super().__init__(student, task, cfg, data, seed)
        images = {**data.images, **data.retained}
        names = [*task.erase, *task.retain]
        if missing := [name for name in names if name not in images]:
            raise ValueError(f"neggrad: no images of {missing[0]!r}; make the concept images first")
        self.latents = {name: latents_of(student.pipe, images[name]) for name in names}
        captions = [cfg.template.replace("{}", name) for name in names]
        self.texts = dict(zip(names, student.texts(captions), strict=True))

    def errors(self, names: list[str], draws: list[torch.Generator]) -> torch.Tensor:
        """Mean squared error of the prediction on an image of each concept."""
        count, device = len(self.student.alphas_bar), self.student.device
        which = [int(torch.randint(len(self.latents[n]), (), generator=g)) for n, g in zip(names, draws, strict=True)]
        x0 = torch.stack([self.latents[name][i] for name, i in zip(names, which, strict=True)]).float()
        t = torch.tensor([int(torch.randint(count, (), generator=g)) for g in draws], device=device)
        noise = torch.stack([torch.randn(x0.shape[1:], generator=g) for g in draws]).to(device)
        x = add_noise(x0, noise, self.student.alphas_bar[t])
        text = torch.stack([self.texts[name] for name in names])
        return (self.student(x, t, text) - self.student.truth(x0, noise, t)).square().mean()

    def loss(self, step: int) -> torch.Tensor:
        """Descent on the retained concepts, ascent on the erased ones."""
        drawn = self.samples(step)
        draws = [sample.generator for sample in drawn]
        kept = [self.task.retain[int(torch.randint(len(self.task.retain), (), generator=g))] for g in draws]
        retain, forget = self.errors(kept, draws), self.errors([sample.concept for sample in drawn], draws)
        return self.cfg.alpha * retain - (1 - self.cfg.alpha) * forget


erase = trained(Neggrad)
