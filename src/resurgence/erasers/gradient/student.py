"""The model that an eraser trains, and its frozen original, in one set of modules.

The trained parameters are leaves of their own, put in the place of the pipeline's for one forward pass at a time. So
the pipeline is never changed, it is the frozen original, and no second model is held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from resurgence.diffusion.lora_files import of_part
from resurgence.diffusion.text import embed, encode_prompts, tokenize
from resurgence.diffusion.unet import predict
from resurgence.erasers.gradient.parameters import selected

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Weights = Mapping[str, torch.Tensor]


def noise_of(prediction: torch.Tensor, x: torch.Tensor, alpha_bar: torch.Tensor, velocity: bool) -> torch.Tensor:
    """The predicted noise: the prediction itself, or sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x of a velocity v.

    Args:
        prediction, x: (B, C, h, w). alpha_bar: (B,).
    """
    if not velocity:
        return prediction
    a = alpha_bar.view(-1, 1, 1, 1)
    return a.sqrt() * prediction + (1 - a).sqrt() * x


def clean_of(noise: torch.Tensor, x: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """The predicted x_0 = (x_t - sqrt(1 - alpha_bar) noise) / sqrt(alpha_bar); (B, C, h, w), alpha_bar (B,)."""
    a = alpha_bar.view(-1, 1, 1, 1)
    return (x - (1 - a).sqrt() * noise) / a.sqrt()


class Student:
    """A model being trained: call it for its predicted noise, `frozen` for that of the original.

    Attributes:
        weights: the trained parameters, float32 leaves, by the names of a delta.
        average: their moving average when the trainer keeps one, else None.
        alphas_bar: (T,) the base's noise schedule.
        captions: all that `texts` has embedded: what the training depends on, wherever it was read.
    """

    def __init__(self, pipe: StableDiffusionPipeline, parameters: str) -> None:
        self.pipe, self.unet, self.device = pipe, pipe.unet, pipe.unet.device
        dtype = torch.promote_types(pipe.unet.dtype, torch.float32)  # half-precision Adam would lose small updates
        chosen = selected(pipe, parameters)
        self.weights = {n: p.detach().to(dtype, copy=True).requires_grad_() for n, p in chosen.items()}
        self.average: dict[str, torch.Tensor] | None = None
        self.alphas_bar = pipe.scheduler.alphas_cumprod.to(self.device)
        self.captions: list[str] = []
        self.velocity = pipe.scheduler.config.prediction_type == "v_prediction"

    def raw(self, weights: Weights, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """What the UNet predicts (noise or velocity) with some of its weights replaced: (B, C, h, w) float32."""
        # float32 weights of a half-precision base are rounded for the pass, not in memory
        return predict(self.unet, x, t, text, of_part(weights, "unet"))

    def noise(self, weights: Weights, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Predicted noise with some weights replaced, e.g. by the moving average."""
        return noise_of(self.raw(weights, x, t, text), x, self.alphas_bar[t], self.velocity)

    def __call__(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """eps_theta(x_t, c): x (B, C, h, w), t (B,), text (B, L, d) -> (B, C, h, w), with gradients."""
        return self.noise(self.weights, x, t, text)

    @torch.no_grad()
    def frozen(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """eps_0(x_t, c) of the original; give several texts as one batch instead of calling again."""
        return self.noise({}, x, t, text)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeddings of the original text encoder: (N, L, d)."""
        self.captions += prompts
        return encode_prompts(self.pipe, list(prompts))

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeddings of the trained text encoder, with gradients: (N, L, d). For `parameters = text-encoder`."""
        ids, mask = tokenize(self.pipe.tokenizer, prompts)
        return embed(self.pipe.text_encoder, ids, mask, of_part(self.weights, "text_encoder"))
