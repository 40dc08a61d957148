"""Second moments of text embeddings over a corpus: C = sum e e^T, all token positions (MACE, section 3 and 4.1).

The preservation terms of the closed forms need a corpus only through this one d x d matrix, which no layer enters
(their targets W e are W C), so any number of captions is read once, in a stream, for every experiment on a base.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors.torch import load_file, save_file

from resurgence.diffusion.text import Encoder
from resurgence.progress import Progress

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def second_moment(
    pipe: StableDiffusionPipeline,
    captions: Iterable[str],
    batch: int = 64,
    precision: Literal["float64", "float32"] = "float64",
) -> torch.Tensor:
    """Sum of e e^T over all captions and all token positions, padding included: (d, d) float64, on the CPU.

    Args:
        captions: any iterable; read once and never held in memory as a whole. A repeated caption counts each time.
        batch: captions a forward pass. The result does not depend on it beyond 1e-10 in float64.
        precision: of the text encoder. float32 is much faster on consumer GPUs, and then the batch size shows at 1e-7;
            the sum is float64 either way.

    Raises:
        ValueError: for an empty corpus.
    """
    return moment_and_count(pipe, captions, batch, precision)[0]


def moment_and_count(
    pipe: StableDiffusionPipeline, captions: Iterable[str], batch: int = 64, precision: str = "float64"
) -> tuple[torch.Tensor, int]:
    """Return `second_moment` and the number of captions."""
    if precision not in ("float32", "float64"):
        raise ValueError(f"precision = {precision!r}: write float64 or float32")
    encoder = Encoder(pipe, getattr(torch, precision), batch)
    moment, stream, progress = None, iter(captions), Progress("second moment", None, "captions")
    while part := list(itertools.islice(stream, batch)):
        rows = encoder(part).flatten(0, 1).double()  # (B * L, d)
        moment = rows.T @ rows if moment is None else moment.addmm_(rows.T, rows)
        progress.add(len(part))
    if moment is None:
        raise ValueError("second moment of an empty corpus; give at least one caption")
    return moment.cpu(), progress.done


def save_moments(path: Path, moment: torch.Tensor, count: int) -> None:
    """Write {"C", "count"} under a temporary name, then rename."""
    temporary = Path(path).with_suffix(".tmp")
    save_file({"C": moment.contiguous(), "count": torch.tensor(count)}, temporary)
    temporary.rename(path)


def load_moments(path: Path) -> tuple[torch.Tensor, int]:
    """Read C (d, d) float64 and the number of captions.

    Raises:
        FileNotFoundError, ValueError: for a file that is missing or holds something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"moments {str(path)!r}: no such file; run the moments stage first")
    tensors = load_file(path)
    if set(tensors) != {"C", "count"}:
        raise ValueError(f"moments {str(path)!r} holds {sorted(tensors)}, expected C and count; make it again")
    return tensors["C"], int(tensors["count"])
