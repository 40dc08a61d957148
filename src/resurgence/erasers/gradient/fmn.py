"""FMN: Forget-Me-Not (Zhang et al., CVPR 2024 workshop, arXiv 2303.17591), attention resteering.

    min || concat over cross-attentions of A[:, :, S] ||_F

A are the softmax probabilities of a cross-attention (heads, pixels, tokens) for a noised image of the concept and a
caption of it, S the concept's tokens in that caption and its end. The model learns to look away from the concept's
words; nothing says where to look instead, so few steps are enough and more of them harm what is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from resurgence.diffusion.attention import attention_maps
from resurgence.diffusion.deltas import of_part
from resurgence.diffusion.latents import add_noise, latents_of
from resurgence.diffusion.text import fill, load_captions
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.erasure import trained
from resurgence.erasers.gradient.image_configs import FmnConfig
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Objective, Sample, samples
from resurgence.erasers.token_sets import tokens_of

if TYPE_CHECKING:
    from resurgence.config.task import Task


def attention_norm(
    student: Student, noisy: torch.Tensor, t: torch.Tensor, texts: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """|| concat of A[:, :, S] ||_F over all cross-attentions and samples, with the weights in training: a scalar.

    Gradients flow to `student.weights`.

    Args:
        noisy: (B, C, h, w). t: (B,). texts: (B, L, d). tokens: (B, L) bool, the set S of each sample.
    """
    norms: list[torch.Tensor] = []

    def receive(_: str, probabilities: torch.Tensor) -> None:
        a = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))  # (B, heads, Q, L)
        norms.append(torch.linalg.vector_norm(a * tokens[:, None, None, :]))

    attention_maps(student.unet, receive, noisy, t, texts, of_part(student.weights, "unet"))
    return torch.linalg.vector_norm(torch.stack(norms))


class Fmn(Objective):
    """The loss of one step, for `batch` images of erased concepts."""

    def __init__(self, student: Student, task: Task, cfg: FmnConfig, data: EraserData, seed: int) -> None:
        super().__init__(student)
        self.task, self.cfg, self.seed = task, cfg, seed
        templates, pipe = load_captions(cfg.captions, task.kind), student.pipe
        self.latents, self.texts, self.tokens = {}, {}, {}  # concept -> (N, C, h, w), (K, L, d), (K, L) bool
        for concept in task.erase:
            if not len(data.images.get(concept, ())):
                raise ValueError(f"fmn: no images of {concept!r}; make the concept images first")
            captions = fill(templates, concept)
            texts = student.texts(captions)
            tokens = [tokens_of(pipe.tokenizer, caption, concept, texts.shape[1], cfg) for caption in captions]
            self.latents[concept] = latents_of(pipe, data.images[concept]).float()
            self.texts[concept], self.tokens[concept] = texts, torch.stack(tokens).to(texts.device)

    def draw(self, sample: Sample) -> tuple[torch.Tensor, ...]:
        """Latents and noise (C, h, w), t (), embeddings (L, d) and token set (L,) of one sample."""
        concept, draws = sample.concept, sample.generator
        latents, texts = self.latents[concept], self.texts[concept]
        image = int(torch.randint(len(latents), (), generator=draws))
        caption = int(torch.randint(len(texts), (), generator=draws))
        t = torch.randint(len(self.student.alphas_bar), (), generator=draws)
        noise = torch.randn(latents.shape[1:], generator=draws)
        device = latents.device
        return latents[image], noise.to(device), t.to(device), texts[caption], self.tokens[concept][caption]

    def loss(self, step: int) -> torch.Tensor:
        """The attention that the images pay to the concept's tokens."""
        drawn = [self.draw(sample) for sample in samples(self.task.erase, self.cfg.batch, self.seed, step)]
        latents, noise, t, texts, tokens = (torch.stack(column) for column in zip(*drawn, strict=True))
        noisy = add_noise(latents, noise, self.student.alphas_bar[t])
        return attention_norm(self.student, noisy, t, texts, tokens)


erase = trained(Fmn)
