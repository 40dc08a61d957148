"""Low-rank factors of the text projections: applied per sample of a batch, and saved as diffusers reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from resurgence.diffusion.attention import projections
from resurgence.diffusion.deltas import DIVERGED, Delta
from resurgence.pretrained.finite import check_finite
from resurgence.pretrained.loading import read_safetensors

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    from resurgence.config.task import Task
    from resurgence.erasers import EraserData

Lora = dict[str, tuple[torch.Tensor, torch.Tensor]]  # projection -> (down (r, d), up (out, r)): dW = up @ down
WEIGHTS = "pytorch_lora_weights.safetensors"
SUMS = "sums.safetensors"  # TrainedLoras.sums, beside the LoRAs


class TrainedLoras(NamedTuple):
    """What `train_loras` of a method returns and its `fuse` joins."""

    loras: dict[str, Lora]  # erased concept -> LoRA
    curves: dict[str, list[float]]  # concept -> loss of each step
    refined: Delta  # the tensors of the base that the LoRAs belong on; empty: the base itself
    refinement: dict[str, Any]  # how `refined` was solved, for closed_form.json
    sums: dict[str, torch.Tensor] = {}  # noqa: RUF012 sums over captions that `fuse` reads, in EraserData.sums


def in_two_steps(
    train_loras: Callable[..., TrainedLoras], fuse: Callable[..., tuple[Delta, dict[str, Any]]]
) -> Callable[..., Delta]:
    """Make `erase(pipe, task, cfg, data, seed, folder=None)` of the two functions of a method that trains LoRAs.

    It writes loras/<concept>/, curves.json and closed_form.json to the folder; None: nothing.
    """

    def erase(
        pipe: StableDiffusionPipeline, task: Task, cfg: Any, data: EraserData, seed: int, folder: Path | None = None
    ) -> Delta:
        loras, curves, refined, refinement, sums = train_loras(pipe, task, cfg, data, seed)
        delta, fusion = fuse(pipe, task, cfg, replace(data, sums=sums), refined, loras)
        if folder is not None:
            save_loras(loras, folder / "loras")
            (folder / "curves.json").write_text(json.dumps(curves, indent=1))
            (folder / "closed_form.json").write_text(json.dumps({"refinement": refinement, "fusion": fusion}, indent=1))
        return delta

    return erase


@contextmanager
def adapted(unet: UNet2DConditionModel, factors: Lora) -> Iterator[None]:
    """Within the block, sample b of a batch goes through its own W + up[b] down[b].

    Args:
        factors: stacked, projection -> (down (B, r, d), up (B, out, r)). All zeros leave every output bit-identical.
    """

    def hook(name: str) -> Callable[..., torch.Tensor]:
        def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            down, up = (factor.to(output.dtype) for factor in factors[name])
            return output + inputs[0] @ down.mT @ up.mT  # (B, L, d) (B, d, r) (B, r, out)

        return add

    modules = projections(unet)
    handles = [modules[name].register_forward_hook(hook(name)) for name in factors]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def unstack(factors: Lora, index: int) -> Lora:
    """One concept's factors out of a batch."""
    return {name: (down[index].detach().clone(), up[index].detach().clone()) for name, (down, up) in factors.items()}


def slug(concept: str) -> str:
    """The concept as a folder name."""
    return re.sub(r"\W+", "-", concept.lower()).strip("-") or "concept"


def slugs(concepts: Iterable[str]) -> list[str]:
    """The folder names of several concepts.

    Raises:
        ValueError: if two concepts have the same.
    """
    names = [slug(concept) for concept in concepts]
    if len(set(names)) < len(names):
        raise ValueError(f"concepts {sorted(concepts)} give equal folder names {sorted(names)}; rename one of them")
    return names


def save_loras(loras: Mapping[str, Lora], folder: Path) -> None:
    """Write folder/<slug>/pytorch_lora_weights.safetensors for each concept, for `pipe.load_lora_weights`.

    They belong on the refined UNet, at scale 1.

    Raises:
        ValueError: if two concepts have the same slug, or a LoRA is not finite.
    """
    from diffusers import StableDiffusionPipeline

    names = slugs(loras)
    for name, lora in zip(names, loras.values(), strict=True):
        layers = {f"{n}.lora_A.weight": down.cpu().contiguous() for n, (down, _) in lora.items()}
        layers |= {f"{n}.lora_B.weight": up.cpu().contiguous() for n, (_, up) in lora.items()}
        check_finite(layers, Path(folder) / name / WEIGHTS, DIVERGED)
        StableDiffusionPipeline.save_lora_weights(Path(folder) / name, unet_lora_layers=layers, weight_name=WEIGHTS)


def load_loras(folder: Path, concepts: Sequence[str]) -> dict[str, Lora]:
    """Read what `save_loras` wrote.

    Raises:
        FileNotFoundError: naming the concept whose file is missing.
        ValueError: a LoRA that is damaged, not whole or not finite.
    """
    loras = {}
    for concept in concepts:
        path = Path(folder) / slug(concept) / WEIGHTS
        if not path.is_file():
            raise FileNotFoundError(f"LoRA of {concept!r}: {str(path)!r} does not exist; train the LoRAs first")
        tensors, _ = read_safetensors(path)
        names = [key.removeprefix("unet.").removesuffix(".lora_A.weight") for key in tensors if ".lora_A." in key]
        sides = {f"unet.{name}.lora_{side}.weight" for name in names for side in "AB"}
        if not names or (wrong := sorted(sides ^ set(tensors))):
            what = f"{wrong[0]} has no partner" if names else "no LoRA is in it"
            raise ValueError(f"{path}: {what}; it is not a file that an eraser wrote: train the LoRAs again")
        pairs = ((name, tuple(tensors[f"unet.{name}.lora_{side}.weight"] for side in "AB")) for name in names)
        loras[concept] = dict(pairs)
    return loras
