"""FMN: Forget-Me-Not (Zhang et al., CVPR 2024 workshop, arXiv 2303.17591), attention resteering.

    min || concat over cross-attentions of A[:, :, S] ||_F

A are the softmax probabilities of a cross-attention (heads, pixels, tokens) for a noised image of the concept and a
caption of it, S the concept's tokens in that caption and its end. The model learns to look away from the concept's
words; nothing says where to look instead, so few steps are enough and more of them harm what is kept.
"""

from __future__ import annotations

import torch

from resurgence.config.task import Task
from resurgence.diffusion.attention import attention_maps
from resurgence.diffusion.device import at_least_single
from resurgence.diffusion.lora_files import of_part
from resurgence.diffusion.text import fill, load_captions
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.erasure import trained
from resurgence.erasers.gradient.image_configs import FmnConfig
from resurgence.erasers.gradient.image_draws import Draw, caption_texts, concept_latents, noised
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Objective
from resurgence.erasers.token_sets import tokens_of


def attention_norm(
    student: Student, noisy: torch.Tensor, t: torch.Tensor, texts: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """|| concat of A[:, :, S] ||_F over all cross-attentions and samples, with the weights in training: a scalar.

    Gradients flow to `student.weights`.

    Args:
        noisy: (B, C, h, w). t: (B,). texts: (B, L, d). tokens: (B, L) bool, the set S of each sample.
    """

    def norm(noisy: torch.Tensor, t: torch.Tensor, texts: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        norms: list[torch.Tensor] = []

        def receive(_: str, probabilities: torch.Tensor) -> None:
            a = at_least_single(probabilities)  # (B, heads, Q, L)
            norms.append(torch.linalg.vector_norm(a * tokens[:, None, None, :]))

        attention_maps(student.unet, receive, noisy, t, texts, of_part(student.weights, "unet"))
        return torch.linalg.vector_norm(torch.stack(norms))[None]

    norms = student.limits.split(norm, noisy, t, texts, tokens)  # of each micro-batch
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(norms)


class Fmn(Objective):
    """The loss of one step, for `batch` images of erased concepts."""

    def __init__(self, student: Student, task: Task, cfg: FmnConfig, data: EraserData, seed: int) -> None:
        super().__init__(student, task, cfg, data, seed)
        student.limits.without_checkpointing()
        self.latents = concept_latents("fmn", student, dict.fromkeys(task.erase, ""), data.images, "concept")
        self.texts = caption_texts(student, task, cfg.captions, task.erase)
        templates, self.tokens = load_captions(cfg.captions, task.kind), {}  # concept -> (K, L) bool
        for concept, texts in self.texts.items():
            captions = fill(templates, concept)
            tokens = [tokens_of(student.pipe.tokenizer, text, concept, texts.shape[1], cfg) for text in captions]
            self.tokens[concept] = torch.stack(tokens).to(texts.device)

    @property
    def asks_original(self) -> bool:
        """No: attention is the model's own."""
        return False

    def loss(self, step: int) -> torch.Tensor:
        """The attention that the images pay to the concept's tokens."""
        drawn = [(s.concept, s.generator) for s in self.samples(step)]
        draws = [Draw(self.latents[c], (self.texts[c], self.tokens[c]), g) for c, g in drawn]
        x, t, _, texts, tokens = noised(self.student, draws)
        return attention_norm(self.student, x, t, texts, tokens)


erase = trained(Fmn)
