"""LoRA files in diffusers format as deltas: new values of the weights that they change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from resurgence.bases import Delta

PARTS = ("unet", "text_encoder")
OLDER_NAMES = {".processor.": ".", ".lora_linear_layer.down": ".lora_A", ".lora_linear_layer.up": ".lora_B"}
"""Names in LoRA files of earlier diffusers versions, beyond those that diffusers itself converts."""


def lora_scale(module: str, rank: int, alphas: Mapping[str, torch.Tensor], metadata: Mapping) -> float:
    """Return alpha / rank of one module; alpha = rank where the file does not say otherwise, as in diffusers."""
    from peft.utils.other import get_pattern_key

    if f"{module}.alpha" in alphas:
        return float(alphas[f"{module}.alpha"]) / rank
    if not metadata:
        return 1.0
    if metadata.get("use_dora"):
        raise ValueError(f"{module}: DoRA adapters cannot be merged as W + scale B A; export plain LoRA weights")
    patterns = metadata.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), metadata["lora_alpha"])
    return alpha / (rank**0.5 if metadata.get("use_rslora") else rank)


def lora_delta(pipe: StableDiffusionPipeline, path: Path) -> Delta:
    """Return W' = W + scale B A, computed in float32, for every module of a LoRA file in diffusers format.

    Raises:
        ValueError: a tensor that is no part of a plain LoRA, or a module that the base does not have.
    """
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    with safe_open(path, "pt") as file:
        header = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    weights = {f"{part}.{n}": p for part in PARTS for n, p in getattr(pipe, part).named_parameters()}
    tensors = convert_unet_state_dict_to_peft(tensors)
    for old, new in OLDER_NAMES.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    alphas = {name: t for name, t in tensors.items() if name.endswith(".alpha")}
    downs = {n.removesuffix(".lora_A.weight"): t for n, t in tensors.items() if n.endswith(".lora_A.weight")}
    expected = {f"{m}.lora_{side}.weight" for m in downs for side in "AB"} | {f"{m}.alpha" for m in downs}
    if odd := sorted(set(tensors) - expected):
        raise ValueError(f"{path}: {odd[0]} is no part of a plain LoRA (A, B, alpha); save it in diffusers format")
    delta: Delta = {}
    for module, down in downs.items():
        name = module if f"{module}.weight" in weights else module.replace("text_encoder.text_model.", "text_encoder.")
        if f"{name}.weight" not in weights:
            raise ValueError(f"{path}: the base has no module {module!r}; use the base that the LoRA was trained on")
        part, inner = module.split(".", 1)
        scale = lora_scale(inner, len(down), {n.split(".", 1)[1]: a for n, a in alphas.items()}, strip(header, part))
        weight = weights[f"{name}.weight"].detach().float().cpu()
        up = tensors[f"{module}.lora_B.weight"].float()
        product = (up.flatten(1) @ down.float().flatten(1)).reshape(weight.shape)  # convolutions: B is 1 x 1
        delta[f"{name}.weight"] = weight + scale * product
    return delta


def strip(metadata: Mapping, part: str) -> dict:
    """Return the entries of the adapter metadata that belong to one part, without its prefix."""
    return {key.removeprefix(part + "."): value for key, value in metadata.items() if key.startswith(part + ".")}
