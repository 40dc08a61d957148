"""Deltas: the tensors of a base that a step changed; saved, applied, and read from LoRA files.

A delta holds the new values of the parameters that changed, and only those. All later steps read the stored delta, so
its precision is a setting of the study: bf16 keeps 8 bits of each value, fp16 11 bits for values between 6e-5 and
65504.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from resurgence.diffusion.device import DTYPES
from resurgence.files import atomic_file
from resurgence.pretrained.finite import check_finite

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

T = TypeVar("T")
Delta = dict[str, torch.Tensor]
"""'unet.<parameter>' or 'text_encoder.<parameter>' -> the parameter's new value."""
PARTS = ("unet", "text_encoder")
DELTA_FILE = "delta.safetensors"
LORA_FILE = "pytorch_lora_weights.safetensors"
AGAIN = "fetch it again, or make it again with a lower lr"  # remedy for a file that is not finite
DIVERGED = "the step diverged: lower its lr, or raise lamb in a closed form"


def changed(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], prefix: str) -> Delta:
    """Return the tensors of `after` that differ from `before`, named `<prefix>.<name>`, on the CPU."""
    if unpaired := sorted(set(before) ^ set(after)):
        raise ValueError(f"{prefix}: parameters {unpaired[:3]} exist on one side only; compare one module with itself")
    return {
        f"{prefix}.{name}": after[name].detach().to("cpu", copy=True).contiguous()
        for name in sorted(after)
        if not torch.equal(before[name].to(after[name].device), after[name])
    }


def of_part(values: Mapping[str, T], part: str) -> dict[str, T]:
    """The entries of one part of the pipeline, such as `unet`, by their names within it."""
    return {name.removeprefix(f"{part}."): value for name, value in values.items() if name.startswith(f"{part}.")}


def parameters(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """The parameters of UNet and text encoder, named as in a delta."""
    return {f"{part}.{name}": p for part in PARTS for name, p in getattr(pipe, part).named_parameters()}


def save_delta(delta: Delta, path: Path) -> None:
    """Write a delta as safetensors, atomically; raise ValueError naming a tensor that is not finite."""
    check_finite(delta, path, DIVERGED)
    with atomic_file(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(delta.items())}, temporary)


def load_delta(path: Path) -> Delta:
    """Read a delta; raise FileNotFoundError or ValueError naming the file that is missing, damaged or not finite."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing; run the step that writes it (resurgence erase or finetune)")
    try:
        delta = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run the step that writes it again") from error
    check_finite(delta, path, AGAIN)
    return delta


@torch.no_grad()
def apply_delta(pipe: StableDiffusionPipeline, delta: Delta, source: object = "delta") -> None:
    """Overwrite the pipeline's parameters by the delta's values, all or none.

    Args:
        source: the file of the delta, for messages.

    Raises:
        ValueError: a name that the pipeline does not have, another shape, or a value that is not finite in the
            pipeline's precision.
    """
    weights = parameters(pipe)
    for name, value in delta.items():
        if name not in weights:
            raise ValueError(f"{source}: {name} is not in this base; apply it to the base that it belongs to")
        if value.shape != weights[name].shape:
            raise ValueError(
                f"{source}: {name} has shape {tuple(value.shape)}, the base has {tuple(weights[name].shape)}; "
                "apply it to the base that it belongs to"
            )
    values = {name: value.to(weights[name].dtype) for name, value in delta.items()}
    check_finite(values, source, "use precision fp32 or bf16, or make the weights again")
    for name, value in values.items():
        weights[name].copy_(value)


def apply_folder(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Apply a step's folder: its delta.safetensors, then its pytorch_lora_weights.safetensors merged into the weights.

    Raises:
        FileNotFoundError: the folder has neither file; the message names the folders below it that have one.
    """
    folder = Path(folder)
    delta, lora = folder / DELTA_FILE, folder / LORA_FILE
    if not (delta.exists() or lora.exists()):
        steps = sorted({str(p.parent) for name in (DELTA_FILE, LORA_FILE) for p in folder.glob(f"*/{name}")})
        hint = f"give one of {', '.join(steps)}" if steps else "give a folder written by resurgence erase or finetune"
        raise FileNotFoundError(f"{folder} holds neither {DELTA_FILE} nor {LORA_FILE}; {hint}")
    if delta.exists():
        apply_delta(pipe, load_delta(delta), delta)
    if lora.exists():
        apply_delta(pipe, lora_delta(pipe, lora), lora)


def in_precision(delta: Delta, precision: str) -> Delta:
    """The delta in this precision.

    Raises:
        ValueError: a value that becomes infinite, naming the tensor.
    """
    rounded = {name: value.to(DTYPES[precision]) for name, value in delta.items()}
    for name, value in delta.items():
        if value.isfinite().all() and not rounded[name].isfinite().all():
            raise ValueError(f"delta: {name} holds {float(value.abs().max()):g}, too large for {precision}; "
                             "set base.delta_precision to bf16")  # fmt: skip
    return rounded


def round_deltas(folder: Path, precision: str) -> None:
    """Rewrite every delta below a folder in this precision; they are in fp32."""
    if precision == "fp32":
        return
    for file in sorted(Path(folder).rglob(DELTA_FILE)):
        save_delta(in_precision(load_delta(file), precision), file)


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
        ValueError: a tensor that is not finite or not part of a plain LoRA, or a module that the base does not have.
    """
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    with safe_open(path, "pt") as file:
        header = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    check_finite(tensors, path, AGAIN)
    weights = parameters(pipe)
    tensors = convert_unet_state_dict_to_peft(tensors)
    for old, new in OLDER_NAMES.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    alphas = {name: t for name, t in tensors.items() if name.endswith(".alpha")}
    downs = {n.removesuffix(".lora_A.weight"): t for n, t in tensors.items() if n.endswith(".lora_A.weight")}
    expected = {f"{m}.lora_{side}.weight" for m in downs for side in "AB"} | {f"{m}.alpha" for m in downs}
    if unknown := sorted(set(tensors) - expected):
        raise ValueError(f"{path}: {unknown[0]} is no part of a plain LoRA (A, B, alpha); save it in diffusers format")
    delta: Delta = {}
    for module, down in downs.items():
        name = module if f"{module}.weight" in weights else module.replace("text_encoder.text_model.", "text_encoder.")
        if f"{name}.weight" not in weights:
            raise ValueError(f"{path}: the base has no module {module!r}; use the base that the LoRA was trained on")
        part, inner = module.split(".", 1)
        scale = lora_scale(inner, len(down), of_part(alphas, part), of_part(header, part))
        weight = weights[f"{name}.weight"].detach().float().cpu()
        up = tensors[f"{module}.lora_B.weight"].float()
        # `pipe.fuse_lora()` gives the same bytes in fp32, but rounds A and B first in a half-precision base
        product = (up.flatten(1) @ down.float().flatten(1)).reshape(weight.shape)  # convolutions: B is 1 x 1
        delta[f"{name}.weight"] = weight + scale * product
    return delta
