"""Deltas: the tensors of a base that a step changed; saved, applied, and read from LoRA files.

A delta holds the new values of the parameters that changed, and only those. All later steps read the stored delta, so
its precision is a setting of the study: bf16 keeps 8 bits of each value, fp16 11 bits for values between 6e-5 and
65504.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from resurgence.diffusion.device import DTYPES
from resurgence.diffusion.lora_files import LoraPair, read_lora
from resurgence.files import atomic_file
from resurgence.pretrained.finite import check_finite
from resurgence.pretrained.loading import StoredTensors, read_safetensors

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Delta = dict[str, torch.Tensor]
"""'unet.<parameter>' or 'text_encoder.<parameter>' -> the parameter's new value."""
PARTS = ("unet", "text_encoder")
DELTA_FILE = "delta.safetensors"
LORA_FILE = "pytorch_lora_weights.safetensors"
OVERFLOW = "use precision fp32 or bf16, or make the weights again"
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
    check_fits(weights, delta, source)
    values = {name: value.to(weights[name].dtype) for name, value in delta.items()}
    check_finite(values, source, OVERFLOW)
    for name, value in values.items():
        weights[name].copy_(value)


def check_fits(weights: Mapping[str, torch.Tensor], delta: Mapping[str, torch.Tensor], source: object) -> None:
    """Raise ValueError for a tensor of a delta that the parameters do not have, or have in another shape."""
    for name, value in delta.items():
        if name not in weights:
            raise ValueError(f"{source}: {name} is not in this base; apply it to the base that it belongs to")
        if value.shape != weights[name].shape:
            raise ValueError(
                f"{source}: {name} has shape {tuple(value.shape)}, the base has {tuple(weights[name].shape)}; "
                "apply it to the base that it belongs to"
            )


def apply_folder(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Apply a step's folder: its delta.safetensors, then its pytorch_lora_weights.safetensors merged into the weights.

    Raises:
        FileNotFoundError: the folder has neither file; the message names the folders below it that have one.
    """
    delta, lora = files_of(folder)
    if delta is not None:
        apply_delta(pipe, load_delta(delta), delta)
    if lora is not None:
        apply_delta(pipe, lora_delta(pipe, lora), lora)


def files_of(folder: Path) -> tuple[Path | None, Path | None]:
    """The delta and the LoRA of a step's folder, each None where it has none.

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
    return delta if delta.exists() else None, lora if lora.exists() else None


class ChangedWeights(Mapping[str, torch.Tensor]):
    """The parameters of a model after the step of a folder, each computed when it is read: what `apply_folder` sets.

    So two models are compared without holding either beside the base.

    Args:
        weights: the parameters before the step, named as in a delta.

    Raises:
        FileNotFoundError, ValueError: as `apply_folder`; a value that is not finite when it is read.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
        self.weights = weights
        self.delta_file, self.lora_file = files_of(folder)
        self.delta = StoredTensors(self.delta_file) if self.delta_file else {}
        check_fits(weights, self.delta, self.delta_file)
        self.lora = read_lora(self.lora_file, weights) if self.lora_file else {}

    def __getitem__(self, name: str) -> torch.Tensor:
        weight = self.weights[name].detach()
        if name in self.delta:
            weight = self.delta[name].to(weight.dtype)
            check_finite({name: weight}, self.delta_file, OVERFLOW)
        if name in self.lora:
            weight = merged(weight, self.lora[name]).to(weight.dtype)
            check_finite({name: weight}, self.lora_file, OVERFLOW)
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


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
    weights = parameters(pipe)
    return {name: merged(weights[name], pair) for name, pair in read_lora(path, weights).items()}


def merged(weight: torch.Tensor, pair: LoraPair) -> torch.Tensor:
    """W + scale B A in float32, on the CPU."""
    weight = weight.detach().float().cpu()
    # `pipe.fuse_lora()` gives the same bytes in fp32, but rounds A and B first in a half-precision base
    product = (pair.up.float().flatten(1) @ pair.down.float().flatten(1)).reshape(weight.shape)  # convolutions: B 1 x 1
    return weight + pair.scale * product
