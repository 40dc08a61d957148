"""Whether a whole model differs from its base in nothing but UNet and text encoder, of which a delta is made.

An erased model is sampled as its delta on the base, so whatever else it has, it would be sampled with the base's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SETTINGS = {
    "unet": ("act_fn", "attention_head_dim", "center_input_sample", "flip_sin_to_cos", "freq_shift",
             "mid_block_scale_factor", "norm_eps", "norm_num_groups", "resnet_time_scale_shift"),
    "text_encoder": ("hidden_act", "layer_norm_eps", "num_attention_heads"),
    "vae": ("act_fn", "norm_num_groups", "scaling_factor", "shift_factor"),
}  # fmt: skip
"""Part of the pipeline -> settings that change what the same weights compute."""
ROUNDINGS = (torch.float16, torch.bfloat16)
BASE = "give the base that the model was made from"


def check_same_base(base: StableDiffusionPipeline, model: StableDiffusionPipeline, path: str) -> None:
    """Check that a model can be sampled as a delta of its base.

    Args:
        path: of the model, for messages.

    Raises:
        ValueError: another prediction, noise schedule, tokenizer or VAE than the base's, or another setting by which
            the same weights compute something else.
    """
    kinds = [pipe.scheduler.config.prediction_type for pipe in (base, model)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{path}: its scheduler has prediction_type = {kinds[1]!r}, that of the base {kinds[0]!r}; "
                         f"{BASE}")  # fmt: skip
    of_base, own = (pipe.scheduler.alphas_cumprod for pipe in (base, model))
    if len(of_base) != len(own) or not torch.allclose(of_base, own, rtol=1e-4, atol=0):
        raise ValueError(f"{path}: its noise schedule ends at alpha_bar = {own[-1]:.4g} after {len(own)} timesteps, "
                         f"that of the base at {of_base[-1]:.4g} after {len(of_base)}; {BASE}")  # fmt: skip
    for name, ours, theirs in settings(base, model):
        if ours != theirs:
            raise ValueError(f"{path}: {name} = {theirs!r}, in the base {ours!r}; {BASE}")
    if base.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise ValueError(f"{path}: its tokenizer is not the base's; {BASE}")
    check_same_vae(base, model.vae.state_dict(), path)


def settings(base: StableDiffusionPipeline, model: StableDiffusionPipeline) -> Iterator[tuple[str, Any, Any]]:
    """Name, value of the base and of the model, of every setting of SETTINGS."""
    for part, names in SETTINGS.items():
        configs = [getattr(pipe, part).config for pipe in (base, model)]
        for name in names:
            yield f"{part}.{name}", *(setting(config, name) for config in configs)


def setting(config: Any, name: str) -> Any:
    """A setting of a part; of the UNet's heads that for each block, whether one number stands for all or not."""
    value = getattr(config, name)
    if name == "attention_head_dim" and isinstance(value, int):
        return (value,) * len(config.down_block_types)
    return tuple(value) if isinstance(value, list) else value


def check_same_vae(base: StableDiffusionPipeline, weights: Mapping[str, torch.Tensor], path: str) -> None:
    """Raise ValueError for a VAE of other weights than the base's, up to the rounding of half precision."""
    ours = base.vae.state_dict()
    for name, value in weights.items():
        if name not in ours or ours[name].shape != value.shape or differs(ours[name].cpu(), value.float().cpu()):
            raise ValueError(f"{path}: its VAE is not the base's (vae.{name}), which would decode its images; save the "
                             "model with the VAE of the base, or give a base with that of the model")  # fmt: skip


def differs(base: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether a tensor differs from the base's, and from what is left of it in half precision."""
    rounded = (base.float(), *(base.to(kind).float() for kind in ROUNDINGS))
    return not any(torch.equal(kept, value) for kept in rounded)
