"""Second moments of text embeddings over a corpus: C = sum e e^T, all token positions (MACE, section 3 and 4.1).

The preservation terms of the closed forms depend on a corpus only through this d x d matrix, which is the same for all
layers (their targets W e are W C), so any number of captions is read once, in a stream, for all experiments on a base.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from resurgence.diffusion.text import PRECISIONS, Encoder
from resurgence.files import atomic_file
from resurgence.pretrained.finite import check_finite
from resurgence.progress import Progress

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def precision_of(name: str, device: torch.device) -> str:
    """The precision of the text encoder, fp64 or fp32: of `auto` fp32 on a GPU, most of which are slow in fp64.

    In fp32 it is not TF32. The sum is float64 in any case, and the rounding of single rows nearly cancels in it.
    """
    if name != "auto":
        return name
    return "fp32" if device.type == "cuda" else "fp64"


def moment_and_count(
    pipe: StableDiffusionPipeline,
    captions: Iterable[str],
    batch: int = 64,
    precision: str = "fp64",
    start: tuple[torch.Tensor, int] | None = None,
    save: Callable[[torch.Tensor, int], None] = lambda moment, count: None,
) -> tuple[torch.Tensor, int]:
    """Sum of e e^T over all captions and all token positions, padding included, and the number of captions.

    Args:
        captions: read once, in batches. A repeated caption counts each time.
        batch: captions a forward pass; the result does not depend on it beyond 1e-10.
        precision: of the text encoder, fp64 or fp32.
        start: what an interrupted run gave to `save` last, changed in place: its captions are passed over, and the
            result is bit-identical to that of one run.
        save: is called after each batch with the sum so far, on the pipeline's device, and its number of captions.

    Returns:
        (d, d) float64, on the CPU; the number.

    Raises:
        ValueError: for an empty corpus.
    """
    encoder = Encoder(pipe, PRECISIONS[precision], batch, torch.float64)
    moment, count = start or (None, 0)
    progress, stream = Progress("second moment", None, "captions", count), itertools.islice(captions, count, None)
    while part := list(itertools.islice(stream, batch)):
        rows = encoder(part).flatten(0, 1)  # (B * L, d)
        moment = rows.T @ rows if moment is None else moment.addmm_(rows.T, rows)
        progress.add(len(part))
        save(moment, progress.done)
    if moment is None:
        raise ValueError("second moment of an empty corpus; give at least one caption")
    return moment.cpu(), progress.done


def second_moment(
    pipe: StableDiffusionPipeline, captions: Iterable[str], batch: int = 64, precision: str = "fp64"
) -> torch.Tensor:
    """The matrix of `moment_and_count`."""
    return moment_and_count(pipe, captions, batch, precision)[0]


def save_moments(path: Path, moment: torch.Tensor, count: int) -> None:
    """Write {"C": (d, d), "count": number of captions}, atomically; raise ValueError if it is not finite."""
    check_finite({"C": moment}, path, "check the base's text encoder")
    with atomic_file(path) as temporary:
        save_file({"C": moment.contiguous(), "count": torch.tensor(count)}, temporary)


def load_moments(path: Path) -> tuple[torch.Tensor, int]:
    """Read C (d, d) float64 and the number of captions.

    Raises:
        FileNotFoundError, ValueError: for a missing file, or one with other tensors or values that are not finite.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"moments {str(path)!r}: no such file; run the moments stage first")
    tensors = load_file(path)
    if set(tensors) != {"C", "count"}:
        raise ValueError(f"moments {str(path)!r} holds {sorted(tensors)}, expected C and count; run its stage again")
    check_finite(tensors, f"moments {str(path)!r}", "run its stage again")
    return tensors["C"], int(tensors["count"])
