"""Deltas: the tensors of a base that a step changed; saved, applied, and read from LoRA files.

A delta holds the new values of the parameters that changed, and only those. All later steps read the stored delta, so
its precision is a setting of the study: bf16 keeps 8 bits of each value, fp16 11 bits for values between 6e-5 and
65504.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from resurgence.diffusion.device import DTYPES
from resurgence.diffusion.lora_files import read_lora
from resurgence.files import atomic_file
from resurgence.pretrained.finite import check_finite
from resurgence.pretrained.loading import read_safetensors

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Delta = dict[str, torch.Tensor]
"""'unet.<parameter>' or 'text_encoder.<parameter>' -> the parameter's new value."""
PARTS = ("unet", "text_encoder")
DELTA_FILE = "delta.safetensors"
LORA_FILE = "pytorch_lora_weights.safetensors"
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
    return read_safetensors(path)[0]


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
    if folder.is_file():
        raise FileNotFoundError(f"{folder} is a file; put it into a folder, as {DELTA_FILE} or, a LoRA, as {LORA_FILE}")
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


def lora_delta(pipe: StableDiffusionPipeline, path: Path) -> Delta:
    """Return W' = W + scale B A, computed in float32, for every module of a LoRA file (`read_lora`).

    Raises:
        ValueError: a file that is no LoRA of this base, or a tensor that is not finite.
    """
    weights, delta = parameters(pipe), {}
    for name, (down, up, scale) in read_lora(path, weights).items():
        weight = weights[name].detach().float().cpu()
        # `pipe.fuse_lora()` gives the same bytes in fp32, but rounds A and B first in a half-precision base
        product = (up.float().flatten(1) @ down.float().flatten(1)).reshape(weight.shape)  # convolutions: B is 1 x 1
        delta[name] = weight + scale * product
    return delta
