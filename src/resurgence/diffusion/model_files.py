"""Erased models that others made, read as the delta from their base.

Read are a diffusers folder, a hub id, a single file in the names of diffusers or of CompVis (Stable Diffusion's first
code), tensors of the UNet alone (what UCE, ESD, RECE and others publish), a delta of ours, a LoRA in the names of
diffusers, peft or kohya, and SPM's adapters, which have kohya's names and are merged without its transport. Pickles are
read as tensors only. Erasers that act while sampling (SLD, SAFREE, Receler, ...) change no weight, so nothing of theirs
can be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from resurgence.diffusion.base_checks import AT_SAMPLING
from resurgence.diffusion.deltas import DELTA_FILE, LORA_FILE, PARTS, Delta, load_delta, lora_delta, parameters
from resurgence.diffusion.pipeline import load_base
from resurgence.files import PEFT_CONFIG, check_weights_file, read_json
from resurgence.pretrained.loading import PICKLED, read_safetensors, read_tensors

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

COMPVIS = "model.diffusion_model."
NESTED = ("state_dict", "unet", "model")  # names below which published files hold their tensors
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
MOVING = ("pissa", "olora", "corda", "loftq", "lora_ga")  # init_lora_weights of peft that change the base as well
ROUNDINGS = (torch.float16, torch.bfloat16)
FETCH = "give a diffusers folder, a .safetensors file of a UNet, a delta or a LoRA"


def read_erased_model(
    pipe: StableDiffusionPipeline, path: str, revision: str | None = None, scale: float = 1.0
) -> tuple[str, Delta]:
    """Read an erased model of a base.

    Args:
        pipe: the base, unchanged. path: file, folder or hub id. revision: of a hub id.
        scale: by which the change of a LoRA or of adapters is multiplied.

    Returns:
        What was read (pipeline, unet, delta or lora), and the tensors in which the model differs from the base. One
        that is the base's, rounded to fp16 or bf16, does not differ.

    Raises:
        FileNotFoundError, ValueError: nothing there, a file that is damaged, not of tensors only or of no erased model,
            a tensor that the base does not have or has in another shape, one that is not finite, or a scale for what is
            no LoRA.
    """
    place = Path(path)
    if place.is_file():
        kind, read = read_file(pipe, place)
    elif (place / DELTA_FILE).is_file():
        kind, read = "delta", load_delta(place / DELTA_FILE)
    elif (place / LORA_FILE).is_file():
        kind, read = "lora", plain_lora_delta(pipe, place / LORA_FILE)
    elif place.is_dir() and not (place / "model_index.json").is_file():
        kind, read = read_file(pipe, file_of(place))
    else:
        kind, read = "pipeline", parameters(load_base(path, revision=revision))
    weights = parameters(pipe)
    check_names(weights, read, path)
    if kind != "lora" and scale != 1:
        raise ValueError(f"{path} is a {kind}: scale = {scale:g} multiplies LoRAs and adapters alone; leave it out")
    if kind == "lora" and scale != 1:
        read = {name: torch.lerp(weights[name].float().cpu(), value, scale) for name, value in read.items()}
    changed = {name: value.detach().float().cpu() for name, value in sorted(read.items())}
    return kind, {name: value for name, value in changed.items() if differs(weights[name].detach().cpu(), value)}


def file_of(place: Path) -> Path:
    """A file itself; the .safetensors file of a folder that is no pipeline, of its UNet if it has a folder `unet`.

    Raises:
        FileNotFoundError: there is none, or several.
    """
    if place.is_file():
        return place
    if (place / UNET_FILE).is_file():
        return place / UNET_FILE
    files = sorted(place.glob("*.safetensors"))
    if len(files) != 1:
        raise FileNotFoundError(f"{place} holds {len(files)} .safetensors files and no model_index.json; name one "
                                f"file, or {FETCH}")  # fmt: skip
    return files[0]


def read_file(pipe: StableDiffusionPipeline, file: Path) -> tuple[str, Delta]:
    """Read a file of weights, whatever it holds: (kind, tensors in the names of a delta)."""
    if file.suffix == ".safetensors":
        check_weights_file(file)
    elif file.suffix not in PICKLED:
        raise ValueError(f"{file} is no file of weights; {FETCH}")
    tensors = table_of(read_tensors(file, "checkpoint", FETCH), file)
    if is_lora(tensors, file):
        return "lora", plain_lora_delta(pipe, file)
    return named(tensors, pipe.unet.config, parameters(pipe))


def table_of(content: Any, file: Path) -> dict[str, torch.Tensor]:
    """The tensors by name of what a file holds: as they are, below one of NESTED, or by part of the pipeline.

    Raises:
        ValueError: the file holds something else.
    """
    parts = content if isinstance(content, Mapping) and content and set(content) <= {*PARTS} else {}
    if all(isinstance(value, Mapping) for value in parts.values()):
        content = {f"{part}.{name}": value for part, of in parts.items() for name, value in of.items()} or content
    nested = [content[name] for name in NESTED if name in content] if isinstance(content, Mapping) else []
    table = nested[0] if nested and isinstance(nested[0], Mapping) else content
    if not isinstance(table, Mapping) or not all(isinstance(value, torch.Tensor) for value in table.values()):
        raise ValueError(f"{file} is not a table of tensors by name; {FETCH}")
    return dict(table)


def is_lora(tensors: Mapping[str, torch.Tensor], file: Path) -> bool:
    """Whether tensors are those of a LoRA; raise ValueError where they are pickled."""
    if not any("lora" in name for name in tensors):
        return False
    if file.suffix != ".safetensors":
        raise ValueError(f"{file} is a pickled LoRA; save it as .safetensors")
    return True


def plain_lora_delta(pipe: StableDiffusionPipeline, file: Path) -> Delta:
    """`lora_delta` of a LoRA from elsewhere, which is one of the base's own weights."""
    delta = lora_delta(pipe, file)
    check_beginning(file)
    return delta


def check_beginning(file: Path) -> None:
    """Raise ValueError for a LoRA that was trained on other weights than the base's, so that W + scale B A is no model.

    PiSSA (Meng et al. 2024, arXiv 2404.02948) and its like take the first B A out of W, and peft does so again when it
    loads the file. Its configuration says so.
    """
    beside = file.with_name(PEFT_CONFIG)
    header = json.loads(read_safetensors(file)[1].get("lora_adapter_metadata", "{}"))
    for name, value in (header | (read_json(beside) if beside.is_file() else {})).items():
        if name.rpartition(".")[2] == "init_lora_weights" and str(value).startswith(MOVING):
            raise ValueError(f"{file}: began as {value}, which changes the weights of the base too; save it by peft "
                             "with path_initial_model_for_weight_conversion")  # fmt: skip


def named(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], weights: Iterable[str]) -> tuple[str, Delta]:
    """Tensors of a file that is no LoRA: (kind, the same in the names of a delta).

    Args:
        config: of the UNet. weights: names of the parameters of the base.
    """
    if any(name.startswith(COMPVIS) for name in tensors):
        return of_compvis(tensors, config, weights)
    if all(name.startswith(tuple(f"{part}." for part in PARTS)) for name in tensors):
        return "delta", dict(tensors)
    return "unet", {f"unet.{name}": value for name, value in tensors.items()}


def of_compvis(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], weights: Iterable[str]
) -> tuple[str, Delta]:
    """The UNet, and the text encoder if it is there, of tensors in the names of CompVis, by those of diffusers."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    unet = convert_ldm_unet_checkpoint(dict(tensors), dict(config))
    read = {f"unet.{name}": value for name, value in unet.items()}
    names = {name.removeprefix("text_encoder."): name for name in weights if name.startswith("text_encoder.")}
    for name, full in names.items():
        for prefix in ("cond_stage_model.transformer.", "cond_stage_model.transformer.text_model."):
            if f"{prefix}{name}" in tensors:
                read[full] = tensors[f"{prefix}{name}"]
    return "pipeline" if len(read) > len(unet) else "unet", read


def check_names(weights: Mapping[str, torch.Tensor], read: Mapping[str, torch.Tensor], path: str) -> None:
    """Raise ValueError naming a tensor that the base does not have, or has in another shape."""
    if not read:
        raise ValueError(f"{path} holds no tensors; {FETCH}")
    for name, value in read.items():
        if name not in weights:
            unknown = sum(other not in weights for other in read)
            raise ValueError(f"{path}: {name} is not in the base ({unknown} of {len(read)} tensors); give the base "
                             f"that the model was made from; {AT_SAMPLING}")  # fmt: skip
        if value.shape != weights[name].shape:
            raise ValueError(f"{path}: {name} has the shape {tuple(value.shape)}, in the base "
                             f"{tuple(weights[name].shape)}; give the base that the model was made from")  # fmt: skip


def differs(base: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether a tensor differs from the base's, and from what is left of it in half precision."""
    rounded = (base.float(), *(base.to(kind).float() for kind in ROUNDINGS))
    return not any(torch.equal(kept, value) for kept in rounded)
