"""Erased models and LoRAs checked against their base by the headers of their files, before time is spent.

Names and shapes are read as tensors on the meta device, which have no data: a few kilobytes of a model of any size.
"""

from __future__ import annotations

from pathlib import Path

from resurgence.diffusion.deltas import PARTS, Delta
from resurgence.diffusion.lora_files import read_lora
from resurgence.diffusion.model_files import (
    BUFFERS,
    FETCH,
    changed_file,
    check_beginning,
    check_names,
    file_of,
    is_lora,
    named,
    table_of,
)
from resurgence.files import read_json
from resurgence.pretrained.loading import read_header


def folder_header(folder: Path, key: str) -> Delta:
    """The parameters of UNet and text encoder of a diffusers folder, named as in a delta, without their values.

    Raises:
        ValueError: a file that is damaged or no safetensors; names `key`.
    """
    read: Delta = {}
    for part in PARTS:
        for file in sorted((folder / part).glob("*.safetensors")):
            tensors = read_header(file, key, FETCH)
            read |= {f"{part}.{name.removeprefix('text_model.')}": value for name, value in tensors.items()
                     if not name.endswith(BUFFERS)}  # fmt: skip
    return read


def check_model(base: Path, model: Path, key: str) -> None:
    """Check an erased model against its base, as far as headers say; its values are read when it is.

    Args:
        base: a diffusers folder. model: a file or folder that `read_erased_model` reads. key: option, for messages.

    Raises:
        FileNotFoundError, ValueError: as `read_erased_model`, but for values.
    """
    weights = folder_header(base, "--original")
    if (model / "model_index.json").is_file():
        check_names(weights, folder_header(model, key), str(model))
        return
    file = changed_file(model)
    tensors = table_of(read_header(file, key, FETCH), file)
    if is_lora(tensors, file):
        read_lora(file, weights)
        check_beginning(file)
    else:
        config = read_json(base / "unet/config.json")
        check_names(weights, named(tensors, config, weights, str(model))[1], str(model))


def check_lora(base: Path, lora: Path, key: str) -> None:
    """Check a LoRA against its base; raise ValueError as `read_lora`, and of a file that is no safetensors."""
    file = file_of(lora)
    if file.suffix != ".safetensors":
        raise ValueError(f"{key} = {str(lora)!r} is no .safetensors file; save the LoRA as one")
    read_lora(file, folder_header(base, key))
    check_beginning(file)
