"""LoRA files: read in the names of diffusers, older diffusers versions, peft and kohya, and checked against a base."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from resurgence.files import PEFT_CONFIG, read_json
from resurgence.pretrained.loading import read_safetensors

T = TypeVar("T")
ANOTHER_BASE = "use the base that the LoRA was trained on"
OLDER_NAMES = {".processor.": ".", ".lora_linear_layer.down": ".lora_A", ".lora_linear_layer.up": ".lora_B"}
"""Names in LoRA files of earlier diffusers versions, beyond those that diffusers itself converts."""
ENDS = (".lora_A.weight", ".lora_B.weight")
KOHYA_ENDS = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight", "alpha": "alpha"}
PEFT_PREFIX = "base_model.model."  # of every name in a file that peft itself wrote, of one model


class LoraPair(NamedTuple):
    """The LoRA of one module: W' = W + scale up down."""

    down: torch.Tensor  # A: (r, inputs), of a convolution (r, inputs, k, k)
    up: torch.Tensor  # B: (outputs, r), of a convolution (outputs, r, 1, 1)
    scale: float


def of_part(values: Mapping[str, T], part: str) -> dict[str, T]:
    """The entries of one part of the pipeline, such as `unet`, by their names within it."""
    return {name.removeprefix(f"{part}."): value for name, value in values.items() if name.startswith(f"{part}.")}


def kohya_modules(parameters: Iterable[str]) -> dict[str, str]:
    """Module name in kohya's files -> in this base: there every point is an underscore, lora_te_... is the encoder."""
    modules = {}
    for parameter in parameters:
        module = parameter.removesuffix(".weight")
        part, inner = module.split(".", 1)
        flat = inner.replace(".", "_")
        names = [f"lora_unet_{flat}"]
        if part == "text_encoder":
            names = [f"lora_te{number}_{prefix}{flat}" for number in ("", "1") for prefix in ("", "text_model_")]
        modules |= dict.fromkeys(names, module)
    return modules


def of_kohya(tensors: Mapping[str, torch.Tensor], parameters: Iterable[str], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of kohya's trainer by the names of peft; those of a file with other names as they are.

    Raises:
        ValueError: a module that the base does not have.
    """
    if not any(name.startswith(("lora_unet_", "lora_te")) for name in tensors):
        return dict(tensors)
    modules, renamed = kohya_modules(parameters), {}
    for name, tensor in tensors.items():
        module, _, end = name.partition(".")
        if module not in modules:
            raise ValueError(f"{path}: the base has no module {module!r}; {ANOTHER_BASE}")
        renamed[f"{modules[module]}.{KOHYA_ENDS.get(end, end)}"] = tensor
    return renamed


def of_peft(
    tensors: Mapping[str, torch.Tensor], parameters: Iterable[str], path: Path
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of peft's `save_pretrained` by the names of diffusers, and its configuration by part of the pipeline;
    those of a file with other names as they are, and nothing.

    Raises:
        ValueError: the configuration, which holds lora_alpha, is not beside the file or is no JSON.
    """
    if not any(name.startswith(PEFT_PREFIX) for name in tensors):
        return dict(tensors), {}
    config = path.with_name(PEFT_CONFIG)
    if not config.is_file():
        raise ValueError(f"{path}: {PEFT_CONFIG} is not beside it, and holds its lora_alpha; put both into one folder")
    try:
        settings = read_json(config)
    except ValueError as error:
        raise ValueError(f"{config} is not JSON ({error}); save the LoRA again") from error
    inner, weights = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in tensors.items()}, set(parameters)
    is_unet = any(f"unet.{name.partition('.lora_')[0]}.weight" in weights for name in inner)
    part = "unet" if is_unet else "text_encoder"
    renamed, header = ({f"{part}.{name}": value for name, value in values.items()} for values in (inner, settings))
    return renamed, header


def lora_scale(module: str, rank: int, alphas: Mapping[str, torch.Tensor], metadata: Mapping) -> float:
    """Return alpha / rank of one module; alpha = rank where the file does not say otherwise, as in diffusers.

    Raises:
        ValueError: an alpha that is no number, DoRA, or metadata without lora_alpha.
    """
    from peft.utils.other import get_pattern_key

    if f"{module}.alpha" in alphas:
        alpha = alphas[f"{module}.alpha"]
        if alpha.numel() != 1 or not bool(alpha.isfinite().all()):
            raise ValueError(f"{module}.alpha of shape {tuple(alpha.shape)} is no finite number; save the LoRA again")
        return float(alpha) / rank
    if not metadata:
        return 1.0
    if metadata.get("use_dora"):
        raise ValueError(f"{module}: DoRA adapters cannot be merged as W + scale B A; export plain LoRA weights")
    if "lora_alpha" not in metadata:
        raise ValueError("lora_adapter_metadata has no lora_alpha; save the LoRA again with save_lora_weights")
    patterns = metadata.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), metadata["lora_alpha"])
    return alpha / (rank**0.5 if metadata.get("use_rslora") else rank)


def check_pair(place: str, down: torch.Tensor, up: torch.Tensor, weight: torch.Tensor) -> None:
    """Raise ValueError unless up @ down has the shape of a weight.

    Args:
        place: file and module, for messages.
    """
    if min(down.ndim, up.ndim) < 2 or not len(down) or len(down) != up.flatten(1).shape[1]:
        shapes = f"lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)}"
        raise ValueError(f"{place}: {shapes} are not of one rank; fetch or save the LoRA again")
    product, wanted = (up.shape[0], down[0].numel()), (weight.shape[0], weight[0].numel())
    if product != wanted:
        raise ValueError(
            f"{place}: the LoRA is for weights of shape {product}, from lora_A {tuple(down.shape)} and lora_B "
            f"{tuple(up.shape)}, the base has {tuple(weight.shape)}; {ANOTHER_BASE}"
        )


def read_lora(path: Path, weights: Mapping[str, torch.Tensor]) -> dict[str, LoraPair]:
    """Read a LoRA of a base: name of the parameter -> its pair.

    Args:
        weights: parameters of the base, unet.... and text_encoder....

    Raises:
        ValueError: a file that is none, a tensor that is not part of a plain LoRA, half a pair, a module that the base
            does not have, or one of another shape.
    """
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    tensors, metadata = read_safetensors(path)
    try:
        header = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError as error:
        raise ValueError(f"{path}: lora_adapter_metadata is not JSON ({error}); save the LoRA again") from error
    tensors, peft_header = of_peft(tensors, weights, path)
    tensors, header = convert_unet_state_dict_to_peft(of_kohya(tensors, weights, path)), header | peft_header
    for old, new in OLDER_NAMES.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    alphas = {name: t for name, t in tensors.items() if name.endswith(".alpha")}
    ends = {
        end: {n.removesuffix(end) for n in tensors if n.endswith(end)} for end in (".lora_A.weight", ".lora_B.weight")
    }
    downs, ups = ends.values()
    expected = {f"{m}{end}" for m in downs | ups for end in (*ends, ".alpha")}
    if unknown := sorted(set(tensors) - expected):
        raise ValueError(f"{path}: {unknown[0]} is no part of a plain LoRA (A, B, alpha); save it in diffusers format")
    if not downs | ups:
        raise ValueError(f"{path} holds no tensors of a LoRA; fetch or save it again")
    if half := sorted(downs ^ ups):
        there, missing = ("lora_A", "lora_B") if half[0] in downs else ("lora_B", "lora_A")
        raise ValueError(f"{path}: {half[0]} has {there} and no {missing}; fetch or save the LoRA again")
    pairs = {}
    for module in (name.removesuffix(ENDS[0]) for name in tensors if name.endswith(ENDS[0])):
        name = module if f"{module}.weight" in weights else module.replace("text_encoder.text_model.", "text_encoder.")
        if f"{name}.weight" not in weights:
            raise ValueError(f"{path}: the base has no module {module!r}; {ANOTHER_BASE}")
        down, up = (tensors[f"{module}.lora_{side}.weight"] for side in "AB")
        check_pair(f"{path}: {module}", down, up, weights[f"{name}.weight"])
        part, inner = module.split(".", 1)
        try:
            scale = lora_scale(inner, len(down), of_part(alphas, part), of_part(header, part))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        pairs[f"{name}.weight"] = LoraPair(down, up, scale)
    return pairs
