"""The parameters of a UNet that fine-tuning changes: a LoRA in its attentions, or all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from resurgence.diffusion.deltas import DELTA_FILE, DIVERGED, LORA_FILE, changed, save_delta
from resurgence.files import atomic_folder
from resurgence.pretrained.finite import check_finite
from resurgence.seeds import generator

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

Tensors = dict[str, torch.Tensor]
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # of all attentions, self and cross


def prepare(unet: UNet2DConditionModel, rank: int | None, seed: int, gradient_checkpointing: bool = False) -> Tensors:
    """Make a LoRA of this rank trainable, or with None the whole UNet; return the trainable parameters by name.

    alpha is the rank, so the scale is 1. A is Gaussian with deviation 1/rank (peft's `gaussian`), B zero.
    """
    from peft import LoraConfig

    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train().requires_grad_(rank is None)
    if rank is not None:
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)))
        for name, p in unet.named_parameters():
            if "lora_A" in name:  # peft draws from the global generator of the device; here devices agree
                p.data.copy_(torch.randn(p.shape, generator=generator("lora init", seed, name)) / rank)
    return {name: p for name, p in unet.named_parameters() if p.requires_grad}


def restore(unet: UNet2DConditionModel, before: Mapping[str, torch.Tensor]) -> None:
    """Remove the LoRA, or restore the weights of a full fine-tune."""
    unet.disable_gradient_checkpointing()
    if before:
        unet.load_state_dict(before)
    else:
        unet.unload_lora()
    unet.eval().requires_grad_(False)


def save_checkpoint(
    unet: UNet2DConditionModel, values: Mapping[str, torch.Tensor], before: Tensors, folder: Path
) -> None:
    """Write the LoRA in diffusers format, or the delta of a full fine-tune, atomically.

    Args:
        values: of the trainable parameters. before: all parameters before a full fine-tune; {}: a LoRA.

    Raises:
        ValueError: a value that is not finite.
    """
    from diffusers import StableDiffusionPipeline
    from peft import get_peft_model_state_dict

    with atomic_folder(folder) as temporary:
        if before:
            save_delta(changed({name: before[name] for name in values}, values, "unet"), temporary / DELTA_FILE)
        else:
            layers = get_peft_model_state_dict(unet)
            check_finite(layers, folder / LORA_FILE, DIVERGED)
            StableDiffusionPipeline.save_lora_weights(temporary, unet_lora_layers=layers, weight_name=LORA_FILE)
