"""Erased models that others made, read as the delta from their base.

Read are a diffusers folder, a hub id, a single file in the names of diffusers or of CompVis (Stable Diffusion's first
code), tensors of the UNet alone (what UCE, ESD, RECE and others publish), a delta of ours, a LoRA in the names of
diffusers, peft or kohya, and SPM's adapters, which have kohya's names and are merged without its transport. Pickles are
read as tensors only. Erasers that act while sampling (SLD, SAFREE, Receler, ...) change no weight, so nothing of theirs
can be read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from resurgence.diffusion.deltas import DELTA_FILE, LORA_FILE, PARTS, Delta, load_delta, lora_delta, parameters
from resurgence.diffusion.pipeline import load_base
from resurgence.diffusion.same_base import check_same_base, check_same_vae, differs
from resurgence.files import PEFT_CONFIG, check_weights_file, read_json
from resurgence.pretrained.checksums import locate
from resurgence.pretrained.loading import PICKLED, read_safetensors, read_tensors

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

COMPVIS, ENCODER, DECODER = "model.diffusion_model.", "cond_stage_model.", "first_stage_model."
NESTED = ("state_dict", "unet", "model")  # names below which published files hold their tensors
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
MOVING = ("pissa", "olora", "corda", "loftq", "lora_ga")  # init_lora_weights of peft that change the base as well
BUFFERS = ("position_ids",)  # in files of older text encoders
ADAPTER = re.compile(r"(^|\.)((adapter|eraser)(\.(down|up)\.(weight|bias))?|[Wb]_(enc|dec)|pre_bias|latent_bias)$")
"""Names of Receler's adapters, and in the sparse autoencoders of SAeUron and Concept Steerers."""
OF_ADAPTER = (
    "is of an adapter as Receler has, or an autoencoder as SAeUron has, which acts at inference, so there are no "
    "changed weights to audit; give a model whose own weights were changed"
)
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
            no LoRA; a whole model that lacks a tensor of the base, or has another VAE, schedule or setting.
    """
    place = locate(path, revision) or Path(path)
    if place.is_file():
        kind, read = read_file(pipe, place)
    elif not place.is_dir() or (place / "model_index.json").is_file():  # whatever else lies there, as diffusers does
        kind, read = "pipeline", parameters(model := load_base(path, revision=revision))
        check_whole(parameters(pipe), read, path)
        check_same_base(pipe, model, path)
    elif (file := changed_file(place)).name == LORA_FILE:
        kind, read = "lora", plain_lora_delta(pipe, file)
    elif file.name == DELTA_FILE:
        kind, read = "delta", load_delta(file)
    else:
        kind, read = read_file(pipe, file)
    weights = parameters(pipe)
    check_names(weights, read, path)
    if kind != "lora" and scale != 1:
        raise ValueError(f"{path} is a {kind}: scale = {scale:g} multiplies LoRAs and adapters alone; leave it out")
    if kind == "lora" and scale != 1:
        read = {name: torch.lerp(weights[name].float().cpu(), value, scale) for name, value in read.items()}
    changed = {name: value.detach().float().cpu() for name, value in sorted(read.items())}
    return kind, {name: value for name, value in changed.items() if differs(weights[name].detach().cpu(), value)}


def changed_file(place: Path) -> Path:
    """The delta or the LoRA of a step's folder, else as `file_of`.

    Raises:
        ValueError: it has both, of which one would be left out. FileNotFoundError: see `file_of`.
    """
    there = [place / name for name in (DELTA_FILE, LORA_FILE) if (place / name).is_file()]
    if len(there) > 1:
        raise ValueError(f"{place} holds {DELTA_FILE} and {LORA_FILE}; name one of them, or export both as one model")
    return there[0] if there else file_of(place)


def file_of(place: Path) -> Path:
    """A file itself; the .safetensors file of a folder that is no pipeline, of its UNet if it has a folder `unet`.

    Raises:
        FileNotFoundError: there is none, or several. ValueError: a text encoder beside the UNet, and no pipeline.
    """
    if place.is_file():
        return place
    if (place / UNET_FILE).is_file():
        if (place / "text_encoder").is_dir():
            raise ValueError(f"{place} holds unet and text_encoder, and no model_index.json; complete it by the other "
                             "files of its base, or name the folder unet alone")  # fmt: skip
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
    if vae := {name: value for name, value in tensors.items() if name.startswith(DECODER)}:
        check_same_vae(pipe, vae_of_compvis(vae, pipe.vae.config), str(file))
    return named(tensors, pipe.unet.config, parameters(pipe), str(file))


def table_of(content: Any, file: Path) -> dict[str, torch.Tensor]:
    """The tensors by name of what a file holds: as they are, below one of NESTED, or by part of the pipeline.

    Raises:
        ValueError: the file holds something else.
    """
    parts = {part: content[part] for part in PARTS if part in content} if isinstance(content, Mapping) else {}
    if 0 < len(parts) < len(PARTS) and set(content) > set(parts):  # a UNet beside the number of steps, say
        parts = {}
    if all(isinstance(value, Mapping) for value in parts.values()):
        content = {f"{part}.{name}": value for part, of in parts.items() for name, value in of.items()} or content
    nested = [content[name] for name in NESTED if name in content] if isinstance(content, Mapping) else []
    table = nested[0] if nested and isinstance(nested[0], Mapping) else content
    if not isinstance(table, Mapping) or not all(isinstance(value, torch.Tensor) for value in table.values()):
        if adapter := adapter_name(table if isinstance(table, Mapping) else ()):
            raise ValueError(f"{file}: {adapter} {OF_ADAPTER}")
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


def named(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], weights: Iterable[str], path: str
) -> tuple[str, Delta]:
    """Tensors of a file that is no LoRA: (kind, the same in the names of a delta).

    Args:
        config: of the UNet. weights: names of the parameters of the base. path: of the file, for messages.

    Raises:
        ValueError: see `of_compvis`.
    """
    if any(name.startswith(COMPVIS) for name in tensors):
        return of_compvis(tensors, config, weights, path)
    if all(name.startswith("text_model.") for name in tensors):
        tensors = {f"text_encoder.{name}": value for name, value in tensors.items()}
    if all(name.startswith(tuple(f"{part}." for part in PARTS)) for name in tensors):
        known = set(weights)
        return "delta", {
            name if name in known else name.replace("text_encoder.text_model.", "text_encoder."): value
            for name, value in tensors.items() if not name.endswith(BUFFERS)
        }  # fmt: skip
    return "unet", {f"unet.{name}": value for name, value in tensors.items()}


def of_compvis(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], weights: Iterable[str], path: str
) -> tuple[str, Delta]:
    """The UNet, and the text encoder if it is there, of tensors in the names of CompVis, by those of diffusers.

    Raises:
        ValueError: a part that is there, but not whole; diffusers passes over what it does not expect.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    names = list(weights)
    unet = convert_ldm_unet_checkpoint(dict(tensors), dict(config))
    read = {f"unet.{name}": value for name, value in unet.items()}
    if not any(name.startswith(ENCODER) for name in tensors):
        check_whole([name for name in names if name.startswith("unet.")], read, path)
        return "unet", read
    encoder = text_of_compvis(tensors)
    inner = {name: name.removeprefix("text_encoder.") for name in names if name.startswith("text_encoder.")}
    read |= {name: encoder[short] for name, short in inner.items() if short in encoder}
    check_whole(names, read, path)
    return "pipeline", read


def text_of_compvis(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The text encoder of tensors in the names of CompVis, by the names within that of diffusers: CLIP of Stable
    Diffusion 1, OpenCLIP of Stable Diffusion 2."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    inner = {name.removeprefix(f"{ENCODER}transformer."): value for name, value in tensors.items()}
    if (norm := f"{ENCODER}model.ln_final.weight") in tensors:
        width = SimpleNamespace(config=SimpleNamespace(hidden_size=len(tensors[norm])))
        inner = convert_open_clip_checkpoint(width, dict(tensors), prefix=f"{ENCODER}model.")
    return {name.removeprefix("text_model."): value for name, value in inner.items()}


def vae_of_compvis(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The VAE of tensors in the names of CompVis by those of diffusers, given its configuration."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    return dict(convert_ldm_vae_checkpoint(dict(tensors), dict(config)))


def check_whole(names: Iterable[str], read: Mapping[str, torch.Tensor], path: str) -> None:
    """Raise ValueError for a whole model that lacks a tensor of its base, in whose place the base's would be taken."""
    wanted = set(names)
    if lacking := sorted(wanted - read.keys()):
        raise ValueError(
            f"{path} lacks {lacking[0]}, which the base has ({len(lacking)} of {len(wanted)} tensors); "
            "give the base that the model was made from, or all of the model as a diffusers folder"
        )


def check_names(weights: Mapping[str, torch.Tensor], read: Mapping[str, torch.Tensor], path: str) -> None:
    """Raise ValueError naming a tensor that the base does not have, or has in another shape."""
    if not read:
        raise ValueError(f"{path} holds no tensors; {FETCH}")
    for name, value in read.items():
        if name not in weights:
            unknown = sum(other not in weights for other in read)
            if adapter := adapter_name(other for other in read if other not in weights):
                raise ValueError(f"{path}: {adapter} {OF_ADAPTER}")
            raise ValueError(f"{path}: {name} is not in the base ({unknown} of {len(read)} tensors), so it is of "
                             "another base; give the base that the model was made from")  # fmt: skip
        if value.shape != weights[name].shape:
            raise ValueError(f"{path}: {name} has the shape {tuple(value.shape)}, in the base "
                             f"{tuple(weights[name].shape)}; give the base that the model was made from")  # fmt: skip


def adapter_name(names: Iterable[Any]) -> str | None:
    """The first of some names that is of a part which an eraser adds while it samples; None: there is none."""
    return next((name for name in map(str, names) if ADAPTER.search(name)), None)
