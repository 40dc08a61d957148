"""Published weights: verified by SHA-256, read without executing code, loaded by exact name and shape.

Every loader of published weights uses this module, so that a wrong, truncated or unrelated file is rejected
immediately, with a message that says what was read, what was expected, and what to do.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from resurgence.files import check_weights_file, sha256
from resurgence.pretrained.finite import check_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AGAIN = "fetch it again, or make it again with a lower lr"  # remedy for a file that is not finite
SHORTEST = 8  # hexadecimal digits of a checksum: torch.hub's file names have this many
PICKLED = (".pt", ".pth", ".pkl", ".bin", ".ckpt")


def check_file(path: Path, expected: str | None, key: str, fetch: str) -> Path:
    """Return the path of a file of weights after comparing its checksum.

    Args:
        expected: the whole SHA-256 or at least its first 8 digits; None: not compared.
        key: the setting that named the file, for messages. fetch: how to get it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another checksum, naming both, or an `expected` that is not a checksum.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{key} = {str(path)!r}: no such file; {fetch}")
    if expected is None:
        return path
    wanted = expected.lower()
    if len(wanted) < SHORTEST or set(wanted) - set("0123456789abcdef"):
        raise ValueError(f"{key}: sha256 = {expected!r} is no checksum; write {SHORTEST} to 64 hexadecimal digits")
    if not (checksum := sha256(path)).startswith(wanted):
        raise ValueError(
            f"{key} = {str(path)!r} has the SHA-256 {checksum}, expected {wanted} ({path.stat().st_size} bytes): "
            f"the file is truncated or another one; {fetch}"
        )
    return path


@contextmanager
def reading(path: Path, key: str, fetch: str) -> Iterator[None]:
    """Turn what libraries raise of a file of tensors into a ValueError in one sentence."""
    try:
        yield
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"{key} = {str(path)!r}: not a file of tensors only ({reason}); {fetch}") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise ValueError(f"{key} = {str(path)!r} cannot be read ({reason}): truncated or damaged; {fetch}") from error


def read_tensors(path: Path, key: str, fetch: str) -> Any:
    """Read safetensors, or a pickle of tensors and plain containers only; nothing in the file is executed.

    Raises:
        ValueError: the file is truncated, has another format, its pickle asks for anything but tensors, or a value is
            not finite.
    """
    with reading(path, key, fetch):
        if Path(path).suffix == ".safetensors":
            check_weights_file(path)
        if Path(path).suffix in PICKLED:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        else:
            tensors = load_file(path)
    if isinstance(tensors, Mapping):
        named = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
        check_finite(named, f"{key} = {str(path)!r}", fetch)
    return tensors


def read_header(path: Path, key: str, fetch: str) -> Any:
    """As `read_tensors`, with tensors on the meta device, which have names and shapes and no values; of a safetensors
    file, only the header is read."""
    with reading(path, key, fetch):
        if Path(path).suffix in PICKLED:
            return torch.load(path, map_location="meta", weights_only=True)
        check_weights_file(path)
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        ValueError: the file is a Git LFS pointer, truncated or something else, or a value is not finite.
    """
    check_weights_file(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it or run its step again") from error
    check_finite(tensors, path, AGAIN)
    return tensors, metadata


class StoredTensors(Mapping[str, torch.Tensor]):
    """The tensors of a safetensors file by name, each read and checked when it is asked for.

    Raises:
        ValueError: as `read_safetensors`.
    """

    def __init__(self, path: Path) -> None:
        check_weights_file(path)
        self.path = path
        try:
            self.file = safe_open(path, "pt")
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); fetch it or run its step again") from error
        self.names = dict.fromkeys(self.file.keys())

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.names:
            raise KeyError(name)
        tensor = self.file.get_tensor(name)
        check_finite({name: tensor}, self.path, AGAIN)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def fill(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], key: str, fetch: str) -> None:
    """Load tensors into a model of exactly these names and shapes.

    Raises:
        ValueError: a name or shape that does not fit, naming the first and how many there are.
    """
    state = model.state_dict()
    missing = [name for name in state if name not in tensors]
    unknown = [name for name in tensors if name not in state]
    if missing or unknown:
        faults = [f"lacks {missing[0]!r} ({len(missing)} of {len(state)} tensors)"] if missing else []
        faults += [f"holds {unknown[0]!r}, which the model has not ({len(unknown)} tensors)"] if unknown else []
        raise ValueError(f"{key}: the file {' and '.join(faults)}: the weights of another architecture; {fetch}")
    for name, value in state.items():
        if value.shape != tensors[name].shape:
            raise ValueError(
                f"{key}: {name} has the shape {tuple(tensors[name].shape)}, the model {tuple(value.shape)}: "
                f"the weights of another architecture; {fetch}"
            )
    model.load_state_dict(dict(tensors))


def load_pretrained(
    kind: type[PreTrainedModel],
    name: str,
    key: str,
    revision: str | None = None,
    subfolder: str = "",
    local_files_only: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Load a complete model of transformers from a folder or hub id, in eval mode.

    transformers itself only logs which weights a file lacks, and initialises them at random.

    Args:
        key: the setting that names it, for messages. local_files_only: do not ask the hub. options: of
            from_pretrained.

    Raises:
        FileNotFoundError: no such model, or a truncated file.
        ValueError: the weights of another architecture, or weights that are not finite.
    """
    from transformers import PreTrainedConfig

    fetch = f"fetch it again (`hf download {name}{f' --revision {revision}' if revision else ''}`), or name a folder"
    if Path(name).exists():
        fetch = "copy or fetch the folder again as a whole, or name another"
    source = {"revision": revision, "subfolder": subfolder, "local_files_only": local_files_only}
    try:
        model_type = PreTrainedConfig.get_config_dict(name, **source)[0].get("model_type")
        if model_type != kind.config_class.model_type:
            raise ValueError(
                f"{key} = {name!r}: holds a model of type {model_type!r}, not {kind.__name__}; name another"
            )
        model, info = kind.from_pretrained(name, output_loading_info=True, use_safetensors=True, **source, **options)
    except (OSError, SafetensorError) as error:
        reason = f"{kind.__name__} cannot be loaded from {name!r} ({' '.join(str(error).split())[:300]})"
        raise FileNotFoundError(f"{key}: {reason}; {fetch}") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{key} = {name!r}: the weights of another architecture ({reason}); {fetch}") from error
    if missing := sorted(info["missing_keys"]):
        count = f"{len(missing)} of {len(model.state_dict())} tensors"
        raise ValueError(
            f"{key} = {name!r}: the file of weights lacks {missing[0]!r} ({count}): another architecture; {fetch}"
        )
    check_finite(model.state_dict(), f"{key} = {str(Path(name) / subfolder)!r}", fetch)
    return model.eval()


def check_complete(model: torch.nn.Module, key: str, part: str) -> None:
    """Raise ValueError for parameters without weights in the file: diffusers leaves these without values."""
    empty = [name for name, value in model.state_dict().items() if value.is_meta]
    if empty:
        count = f"{len(empty)} of {len(model.state_dict())} tensors"
        raise ValueError(f"{key}: the {part}'s file lacks {empty[0]!r} ({count}): the weights of another architecture; "
                         "fetch it again")  # fmt: skip
