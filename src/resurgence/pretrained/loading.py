"""Weights that come from elsewhere: checked by SHA-256, read without executing code, fitted by name and shape.

Every loader of published weights goes through here, so that a wrong, cut or foreign file is told at once: what was
read, what was expected, and what to do.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from resurgence.files import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHORTEST = 8  # hexadecimal digits of a checksum: torch.hub's file names have this many
PICKLED = (".pt", ".pth", ".pkl", ".bin", ".ckpt")


def check_file(path: Path, expected: str | None, key: str, fetch: str) -> Path:
    """Return the path of a file of weights after comparing its checksum.

    Args:
        expected: the whole SHA-256 or at least its first 8 digits; None: not compared.
        key: the setting that named the file, for messages. fetch: how to get it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another checksum, naming both, or one that is no checksum.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{key} = {str(path)!r}: no such file; {fetch}")
    if expected is None:
        return path
    wanted = expected.lower()
    if len(wanted) < SHORTEST or set(wanted) - set("0123456789abcdef"):
        raise ValueError(f"{key}: sha256 = {expected!r} is no checksum; write {SHORTEST} to 64 hexadecimal digits")
    if not (seen := sha256(path)).startswith(wanted):
        raise ValueError(
            f"{key} = {str(path)!r} has the SHA-256 {seen}, expected {wanted} ({path.stat().st_size} bytes): "
            f"the file is cut or another one; {fetch}"
        )
    return path


def read_tensors(path: Path, key: str, fetch: str) -> Any:
    """Read safetensors, or a pickle of tensors and plain containers only; nothing in the file is executed.

    Raises:
        ValueError: the file is cut, is of another format, or its pickle asks for anything but tensors.
    """
    try:
        if Path(path).suffix in PICKLED:
            return torch.load(path, map_location="cpu", weights_only=True)
        return load_file(path)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"{key} = {str(path)!r}: not a file of tensors only ({reason}); {fetch}") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise ValueError(f"{key} = {str(path)!r} cannot be read ({reason}): cut or damaged; {fetch}") from error


def fill(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], key: str, fetch: str) -> None:
    """Load tensors into a model of exactly these names and shapes.

    Raises:
        ValueError: a name or shape that does not fit, naming the first and how many there are.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in tensors]
    foreign = [name for name in tensors if name not in own]
    if missing or foreign:
        told = [f"lacks {missing[0]!r} ({len(missing)} of {len(own)} tensors)"] if missing else []
        told += [f"holds {foreign[0]!r}, which the model has not ({len(foreign)} tensors)"] if foreign else []
        raise ValueError(f"{key}: the file {' and '.join(told)}: the weights of another architecture; {fetch}")
    for name, value in own.items():
        if value.shape != tensors[name].shape:
            raise ValueError(
                f"{key}: {name} has the shape {tuple(tensors[name].shape)}, the model {tuple(value.shape)}: "
                f"the weights of another architecture; {fetch}"
            )
    model.load_state_dict(dict(tensors))


def load_pretrained(
    kind: type[PreTrainedModel], name: str, key: str, revision: str | None = None, subfolder: str = "", **options: Any
) -> PreTrainedModel:
    """Load a model of transformers from a folder or hub id, all of it: transformers itself only logs what is missing in
    the file and draws it at random.

    Args:
        key: the setting that named it, for messages. options: of from_pretrained.

    Raises:
        FileNotFoundError: not there, or a file that is cut. ValueError: the weights of another architecture.
    """
    from transformers import PreTrainedConfig

    fetch = f"fetch it again (`hf download {name}{f' --revision {revision}' if revision else ''}`), or name a folder"
    place = {"revision": revision, "subfolder": subfolder}
    try:
        seen = PreTrainedConfig.get_config_dict(name, **place)[0].get("model_type")
        if seen != kind.config_class.model_type:
            raise ValueError(f"{key} = {name!r}: holds a model of type {seen!r}, not {kind.__name__}; name another")
        found = kind.from_pretrained(name, output_loading_info=True, use_safetensors=True, **place, **options)
    except (OSError, SafetensorError) as error:
        told = f"{kind.__name__} cannot be loaded from {name!r} ({' '.join(str(error).split())[:300]})"
        raise FileNotFoundError(f"{key}: {told}; {fetch}") from error
    except RuntimeError as error:
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"{key} = {name!r}: the weights of another architecture ({told}); {fetch}") from error
    model, info = found
    if missing := sorted(info["missing_keys"]):
        told = f"lacks {missing[0]!r} ({len(missing)} of {len(model.state_dict())} tensors)"
        raise ValueError(f"{key} = {name!r}: the file of weights {told}: another architecture; {fetch}")
    return model.eval()


def check_complete(model: torch.nn.Module, key: str, part: str) -> None:
    """Raise ValueError for parameters that diffusers found no weights for: it leaves them without values."""
    empty = [name for name, value in model.state_dict().items() if value.is_meta]
    if empty:
        count = f"{len(empty)} of {len(model.state_dict())} tensors"
        raise ValueError(f"{key}: the {part}'s file lacks {empty[0]!r} ({count}): the weights of another architecture; "
                         "fetch it again")  # fmt: skip
