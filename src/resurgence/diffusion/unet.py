"""The UNet of a base and its DDIM sampler (Song et al. 2021, eta 0). Nothing else calls a UNet.

A base with another network or another signature is added here and in text.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from resurgence.config.fields import ConfigError
from resurgence.diffusion.device import at_least_single

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, SchedulerMixin, UNet2DConditionModel

Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # (x, t, text) -> prediction


@contextmanager
def checkpointed(unet: UNet2DConditionModel, enabled: bool) -> Iterator[None]:
    """Within the block a forward pass saves the inputs of the UNet's blocks alone; the backward pass runs them again.

    They run again with the parameters of the first pass, also where `predict` has put others in the UNet's place.
    """

    def run(module: torch.nn.Module, *inputs: object) -> torch.Tensor:
        parameters = dict(module.named_parameters())

        def again(*values: object) -> torch.Tensor:
            return functional_call(module, parameters, values)

        return checkpoint(again, *inputs, use_reentrant=False, preserve_rng_state=False)

    if not enabled:
        yield
        return
    unet.enable_gradient_checkpointing(run)
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()


def predict(
    unet: UNet2DConditionModel,
    x: torch.Tensor,
    t: torch.Tensor,
    text: torch.Tensor,
    parameters: Mapping[str, torch.Tensor] | None = None,
    checkpointing: bool = False,
) -> torch.Tensor:
    """The UNet's prediction for noisy latents, noise or velocity as its base was trained: (B, C, h, w).

    The pass runs in the UNet's own dtype; the result is float32, or float64 of a UNet in float64.

    Args:
        x: (B, C, h, w). t: (B,), timesteps. text: (B, L, d).
        parameters: replace the UNet's of these names, in this pass only; gradients flow to them.
        checkpointing: compute activations again in the backward pass: less memory, more time.
    """
    dtype = unet.dtype
    inputs = (x.to(dtype), t, text.to(dtype))
    with checkpointed(unet, checkpointing):
        if not parameters:
            return at_least_single(unet(*inputs, return_dict=False)[0])
        cast = {name: value.to(dtype) for name, value in parameters.items()}
        # this UNet ties no weights; to look for tied ones takes milliseconds, in which a GPU gets no work
        return at_least_single(functional_call(unet, cast, inputs, {"return_dict": False}, tie_weights=False)[0])


@contextmanager
def text_projected_once(unet: UNet2DConditionModel) -> Iterator[None]:
    """Within the block, keys and values of the cross-attentions are computed once for a text, not in each step.

    They depend on the text alone, and the products are the same, so results are bit-identical. Of small images, where
    the text has more tokens than the latent pixels, they are much of the work. The weights must not change within the
    block. A compiled UNet is left as it is.
    """
    layers = [] if unet._compiled_call_impl is not None else [
        layer for name, part in unet.named_modules() if name.endswith(".attn2") for layer in (part.to_k, part.to_v)
    ]  # fmt: skip
    for layer in layers:
        layer.forward = _Once(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # that of the class again


class _Once:
    """A function of one tensor that is not computed again for the same tensor object."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.function = function
        self.argument: torch.Tensor | None = None
        self.value: torch.Tensor | None = None

    def __call__(self, argument: torch.Tensor) -> torch.Tensor:
        if self.value is None or argument is not self.argument:
            self.argument, self.value = argument, self.function(argument)
        return self.value


def ddim_of(scheduler: SchedulerMixin) -> DDIMScheduler:
    """Return a new DDIM scheduler with the noise schedule, spacing, offset and prediction type of another scheduler.

    Samples are not clipped: clipping is for pixel models, and StableDiffusionPipeline disables it too.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(scheduler.config, clip_sample=False)


@torch.no_grad()
def ddim(
    scheduler: SchedulerMixin,
    predict: Predict,
    x: torch.Tensor,
    text: torch.Tensor,
    empty: torch.Tensor,
    steps: int,
    guidance: float,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (t, x_t) before each of the DDIM steps with classifier-free guidance, and finally (0, x_0).

    Both branches of the guidance are computed in one pass of the UNet. Steps are computed lazily.

    Args:
        scheduler: the base's. predict: of the UNet. x: (B, C, h, w), noise. text: (B, L, d).
        empty: (1, L, d), the embedding of "". guidance: 0 or 1: none.

    Raises:
        ConfigError: more steps than the base was trained with.
    """
    scheduler = ddim_of(scheduler)
    if steps > (trained := scheduler.config.num_train_timesteps):
        raise ConfigError("steps", steps, f"the base was trained with {trained} timesteps; write at most {trained}")
    scheduler.set_timesteps(steps)
    guided = guidance > 1
    context = torch.cat([empty.expand_as(text), text]) if guided else text
    for t in scheduler.timesteps:
        yield int(t), x
        doubled = torch.cat([x, x]) if guided else x
        times = torch.full((len(doubled),), int(t), device=x.device)  # not copied to a GPU, which waits for its queue
        prediction = predict(doubled, times, context)
        if guided:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance * (conditional - unconditional)
        x = scheduler.step(prediction, t, x, return_dict=False)[0]
    yield 0, x
