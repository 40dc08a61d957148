"""The model that an eraser trains, and its frozen original, in one set of modules.

The trained parameters are leaves of their own, put in the place of the pipeline's for one forward pass at a time. So
the pipeline is the frozen original, and no second model is held. For a method that never asks the original, what does
not run in a step is in main memory during the training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from resurgence.config.optimisation import Space
from resurgence.diffusion.deltas import parameters
from resurgence.diffusion.lora_files import of_part
from resurgence.diffusion.text import embed, encode_prompts, tokenize
from resurgence.diffusion.unet import predict
from resurgence.erasers.gradient.parameters import selected
from resurgence.training.memory import PassLimits, host_copy

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Weights = Mapping[str, torch.Tensor]


def in_space(
    prediction: torch.Tensor, x: torch.Tensor, alpha_bar: torch.Tensor, velocity: bool, space: Space
) -> torch.Tensor:
    """A prediction of noise, or of velocity, as prediction, predicted noise or predicted x_0.

    The velocity is v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022), and x_0 is computed from
    it without a division, so that it is finite where alpha_bar is 0. Squared distances of velocities are multiplied
    by alpha_bar in `noise` and by 1 - alpha_bar in `clean`, of noises by (1 - alpha_bar) / alpha_bar in `clean`.

    Args:
        prediction, x: (B, C, h, w). alpha_bar: (B,).
    """
    a = alpha_bar.view(-1, 1, 1, 1)
    signal, noise = a.sqrt(), (1 - a).sqrt()
    if space == "clean":
        return signal * x - noise * prediction if velocity else (x - noise * prediction) / signal
    return signal * prediction + noise * x if space == "noise" and velocity else prediction


class Student:
    """A model being trained: call it for its prediction in the space of the losses, `frozen` for the original's.

    Attributes:
        space: what losses compare; see optimisation.Space.
        weights: the trained parameters, float32 leaves, by the names of a delta.
        average: their moving average when the trainer keeps one, else None.
        alphas_bar: (T,) the base's noise schedule.
        captions: all that `texts` has embedded: what the training depends on, wherever it was read.
        limits: the micro-batches of its passes.
    """

    def __init__(self, pipe: StableDiffusionPipeline, selection: str, space: Space = "prediction") -> None:
        self.space = space
        self.pipe, self.unet, self.device = pipe, pipe.unet, pipe.unet.device
        dtype = torch.promote_types(pipe.unet.dtype, torch.float32)  # half-precision Adam would lose small updates
        chosen = selected(pipe, selection)
        self.weights = {n: p.detach().to(dtype, copy=True).requires_grad_() for n, p in chosen.items()}
        self.limits = PassLimits()
        self.average: dict[str, torch.Tensor] | None = None
        self.alphas_bar = pipe.scheduler.alphas_cumprod.to(self.device)
        self.captions: list[str] = []
        self.velocity = pipe.scheduler.config.prediction_type == "v_prediction"

    def raw(self, weights: Weights, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """What the UNet predicts (noise or velocity) with some of its weights replaced: (B, C, h, w) float32."""
        replaced = of_part(weights, "unet")  # float32 weights of a half-precision base are rounded for the pass alone

        def pass_of(x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            return predict(self.unet, x, t, text, replaced, self.limits.checkpointing)

        return self.limits.split(pass_of, x, t, text)

    @contextmanager
    def original_set_aside(self) -> Iterator[None]:
        """Within the block only what runs with `weights` is on the device: passes without them give NaN.

        The pipeline's values of `weights`, its autoencoder and an untrained text encoder are in main memory.
        """
        trains_text = bool(of_part(self.weights, "text_encoder"))
        replaced = [
            *(p for n, p in parameters(self.pipe).items() if n in self.weights),
            *self.pipe.vae.parameters(),
            *(() if trains_text else self.pipe.text_encoder.parameters()),
        ]
        values: list[torch.Tensor] = []
        try:
            for p in replaced:
                values.append(host_copy(p))
                p.data = torch.full((), torch.nan, dtype=p.dtype, device=p.device).expand(p.shape)
            yield
        finally:
            for p, value in zip(replaced, values, strict=False):  # fewer after an error of a copy
                p.data = value.to(self.device)

    def in_space(
        self, prediction: torch.Tensor, x: torch.Tensor, t: torch.Tensor, space: Space | None = None
    ) -> torch.Tensor:
        """What `raw` predicts at x (B, C, h, w) and t (B,) in a space, by default that of the losses."""
        return in_space(prediction, x, self.alphas_bar[t], self.velocity, space or self.space)

    def truth(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What an ideal model predicts for noised latents, in the space of the losses: (B, C, h, w)."""
        if self.space == "clean":
            return latents
        if self.space == "noise" or not self.velocity:
            return noise
        a = self.alphas_bar[t].to(latents).view(-1, 1, 1, 1)
        return a.sqrt() * noise - (1 - a).sqrt() * latents

    def predicted(self, weights: Weights, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Prediction in the space of the losses with some weights replaced, e.g. by the moving average."""
        return self.in_space(self.raw(weights, x, t, text), x, t)

    def __call__(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """eps_theta(x_t, c), or v or x_0: x (B, C, h, w), t (B,), text (B, L, d) -> (B, C, h, w), with gradients."""
        return self.predicted(self.weights, x, t, text)

    @torch.no_grad()
    def frozen(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The same of the original, eps_0(x_t, c); give several texts as one batch instead of calling again."""
        return self.predicted({}, x, t, text)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeddings of the original text encoder: (N, L, d)."""
        self.captions += prompts
        return encode_prompts(self.pipe, list(prompts))

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeddings of the trained text encoder, with gradients: (N, L, d). For `parameters = text-encoder`."""
        ids, mask = tokenize(self.pipe.tokenizer, prompts)
        return embed(self.pipe.text_encoder, ids, mask, of_part(self.weights, "text_encoder"))
