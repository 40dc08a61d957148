"""A real GPU against the CPU: agreement, repeatability, resumption, memory. Marked `gpu`, and skipped without one.

Each body also runs with the CPU in the place of the GPU, for some of the cases, so that this code has run.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cases import CASES, make_pipe, marks
from diffusers import StableDiffusionPipeline
from short_erasures import pictures

from resurgence.diffusion.device import exact
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.training import finetune as f

GREY_LEVELS = 2  # of a pixel: sums in another order
CLOSED_FORM = 1e-5  # of the largest value
TRAINED = (
    0.05  # of the way that training went: Adam divides by the root of the squared gradient, so that a weight whose
)
# gradient is of the size of rounding may go the other way
ON_CPU = {"sample", "finetune-lora", "masks-cross-attention", "moments", "scorer-recogniser", "erase-uce", "erase-esd"}
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=GPU)]


def case_parameters() -> list:
    return [
        *(pytest.param(name, "cpu", id=f"{name}-cpu") for name in CASES if name in ON_CPU),
        *(pytest.param(name, "cuda", id=f"{name}-cuda", marks=GPU + marks(name)) for name in CASES),
    ]


def outcome(case: str, device: str) -> dict[str, torch.Tensor]:
    """The tensors of a case on a device, in double precision on the CPU."""
    pipe = make_pipe().to(device)
    with exact(pipe.device):
        return {name: value.cpu().double() for name, value in CASES[case](pipe).items()}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all tensors, as one vector."""
    return float(torch.cat([(a[name] - b[name]).flatten() for name in a]).norm())


def weights_before(case: str) -> dict[str, torch.Tensor]:
    """The base's parameters by the names of a delta and by those of the UNet."""
    pipe = make_pipe()
    parameters = {
        f"{part}.{n}": p for part in ("unet", "text_encoder") for n, p in getattr(pipe, part).named_parameters()
    }
    parameters |= dict(pipe.unet.named_parameters())
    return {name: p.detach().double() for name, p in parameters.items()}


@pytest.mark.parametrize(("case", "device"), case_parameters())
def test_a_device_agrees_with_the_cpu(case: str, device: str) -> None:
    expected, found = outcome(case, "cpu"), outcome(case, device)
    assert found.keys() == expected.keys()
    if case.startswith("sample"):
        assert (found["pixels"] - expected["pixels"]).abs().max() <= GREY_LEVELS
        return
    before = {name: value for name, value in weights_before(case).items() if name in expected}
    if before:
        moved = difference({name: expected[name] for name in before}, before)
        assert moved > 0 and difference({name: expected[name] for name in before}, found) <= TRAINED * moved
    for name in expected.keys() - before.keys():
        assert (found[name] - expected[name]).abs().max() <= max(CLOSED_FORM * expected[name].abs().max(), 1e-4)


@pytest.mark.parametrize(("case", "device"), case_parameters())
def test_a_device_gives_the_same_bytes_twice(case: str, device: str) -> None:
    first, second = outcome(case, device), outcome(case, device)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- SIGTERM in the middle of a training

CFG = f.FinetuneConfig(steps=5, checkpoints=(2, 5), lr=5e-3, batch=2, accumulation=2, rank=2)
FULL = f.FinetuneConfig(steps=5, checkpoints=(2, 5), lr=1e-3, batch=2, accumulation=2, algorithm="full", ema=True)


def tuned(device: str, cfg: f.FinetuneConfig, folder: Path, state: Path | None = None) -> tuple[list, dict[str, bytes]]:
    """The curve and the files of a fine-tune."""
    images = torch.cat([pictures()["bird"], pictures()["queen"]])
    captions = ["a photo of the bird"] * 3 + ["a photo of the queen"] * 3
    curve = f.finetune(make_pipe().to(device), images, captions, cfg, 0, folder, state)
    return curve, {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("cfg", [CFG, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_training_resumes_after_sigterm_with_the_same_bytes(
    device: str, cfg: f.FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, loss, passes = tuned(device, cfg, tmp_path / "whole"), f.diffusion_loss, []

    def signalled(*args: object) -> torch.Tensor:
        passes.append(None)
        if len(passes) == 7:  # in step 4
            signal.raise_signal(signal.SIGTERM)
        return loss(*args)

    monkeypatch.setattr(f, "diffusion_loss", signalled)
    with pytest.raises(SystemExit, match="143"):
        tuned(device, cfg, tmp_path / "ended", tmp_path / "state")
    assert tuned(device, cfg, tmp_path / "again", tmp_path / "state") == expected
    assert len(passes) == 8 + 2  # four steps, then the fifth


# --- out of memory


@contextmanager
def refusing(pipe: StableDiffusionPipeline) -> Iterator[None]:
    """The CPU in the place of a GPU: passes of more than 4 samples do not fit."""

    def check(module: torch.nn.Module, inputs: tuple) -> None:
        if len(inputs[0]) > 4:
            raise torch.OutOfMemoryError("pretended")

    handle = pipe.unet.register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def less_memory(pipe: StableDiffusionPipeline) -> Iterator[None]:
    """The GPU with memory for half of what the large batch takes beyond the weights."""
    torch.cuda.empty_cache()
    held, peak = torch.cuda.memory_reserved(), torch.cuda.max_memory_reserved()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((held + (peak - held) / 2) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def halved(
    device: str,
    count: int,
    size: int,
    limit: Callable[[StableDiffusionPipeline], AbstractContextManager],
    caplog: pytest.LogCaptureFixture,
) -> list[str]:
    """The warnings of a batch of `count` images that does not fit; the images are those of one that does."""
    pipe, cfg = make_pipe().to(device), SamplingConfig(steps=2, batch=count, size=size)
    rows = pd.DataFrame({"prompt": ["a photo of the ship"] * count, "seed": range(count)})
    expected = [np.asarray(image).astype(int) for _, image in sample(pipe, rows, cfg)]
    with limit(pipe), caplog.at_level(logging.WARNING):
        images = [np.asarray(image).astype(int) for _, image in sample(pipe, rows, cfg)]
    assert len(images) == count
    assert max(abs(a - b).max() for a, b in zip(images, expected, strict=True)) <= 1  # as for another batch
    return [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]


def test_a_batch_that_does_not_fit_is_halved_here(caplog: pytest.LogCaptureFixture) -> None:
    assert halved("cpu", 8, 16, refusing, caplog) == [
        f"out of memory on cpu; continuing with batches of {n}" for n in (4, 2)
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_that_does_not_fit_into_the_memory_of_a_gpu_is_halved(caplog: pytest.LogCaptureFixture) -> None:
    torch.cuda.reset_peak_memory_stats()
    told = halved("cuda", 32, 256, less_memory, caplog)
    assert told and told[0].endswith("continuing with batches of 16")
