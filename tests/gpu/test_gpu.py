"""A real GPU against the CPU: agreement, repeatability, resumption, memory. Marked `gpu`, and skipped without one.

Each body also runs with the CPU in the place of the GPU, for some of the cases, so that this code has run.
"""

from __future__ import annotations

import gc
import logging
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from cases import CASES, CLOSED_FORMS, FULL_TUNE, HALF, TRAININGS, WITH_CUDA, make_pipe, marks, tune
from diffusers import StableDiffusionPipeline
from short_erasures import TASK, pictures

from resurgence.config.fields import build
from resurgence.diffusion import sampling, speed
from resurgence.diffusion.device import exact
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.erasers import EraserData, eraser_config, method
from resurgence.training import finetune as f
from resurgence.training import memory

GREY_LEVELS = 2  # of a pixel: sums in another order
CLOSED_FORM = 1e-5  # of the largest value of a tensor: computed in fp64, stored in fp32
SCORE = 1e-4  # of scores, masks, moments and losses; of larger ones 1e-5 of the largest
# of trained weights, as shares of the way that the training went: Adam divides by the root of the squared gradient, so
# that a weight whose gradient is of the size of rounding may go the other way
TRAINED, TRAINED_IN_HALF = 0.05, 0.3
HALF_LOSS = 0.01  # relative; bf16 rounds by 0.004
HALF_GREY_LEVELS = 1  # on average; fp16 rounds by 0.0005 of 255 levels
HALF_PIXELS = 0.1  # share of the pixels of masks that may differ: random weights
ON_CPU = {
    *("sample", "finetune-lora", "masks-cross-attention", "moments", "scorer-recogniser"),
    *("erase-uce", "erase-time", "erase-update", "erase-esd"),
    *("sample-fp16", "masks-grounded-sam-bf16", "finetune-lora-bf16", "finetune-full-bf16"),
}
ALL = CASES | WITH_CUDA
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=GPU)]


def case_parameters(names: Collection[str]) -> list:
    return [
        *(pytest.param(name, "cpu", id=f"{name}-cpu", marks=marks(name)) for name in names if name in ON_CPU),
        *(pytest.param(name, "cuda", id=f"{name}-cuda", marks=GPU + marks(name)) for name in names),
    ]


def outcome(case: str, device: str) -> dict[str, torch.Tensor]:
    """The tensors of a case on a device, in double precision on the CPU."""
    pipe = make_pipe().to(device)
    with exact(pipe.device):
        return {name: value.cpu().double() for name, value in ALL[case](pipe).items()}


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


def moved(case: str, expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> float:
    """The difference of trained weights, as a share of the way from the base to the expected ones."""
    before = {name: value for name, value in weights_before(case).items() if name in expected}
    way = difference({name: expected[name] for name in before}, before)
    assert before and way > 0
    return difference({name: expected[name] for name in before}, found) / way


@pytest.mark.parametrize(("case", "device"), case_parameters([name for name in CASES if name not in HALF]))
def test_a_device_agrees_with_the_cpu(case: str, device: str) -> None:
    expected, found = outcome(case, "cpu"), outcome(case, device)
    assert found.keys() == expected.keys()
    if case.startswith("sample"):
        assert (found["pixels"] - expected["pixels"]).abs().max() <= GREY_LEVELS
        return
    if case in TRAININGS:
        assert moved(case, expected, found) <= TRAINED
    for name in expected.keys() - (weights_before(case).keys() if case in TRAININGS else set()):
        least = 0 if case in CLOSED_FORMS else SCORE
        assert (found[name] - expected[name]).abs().max() <= max(CLOSED_FORM * expected[name].abs().max(), least)


@pytest.mark.parametrize(("case", "device"), case_parameters(HALF))
def test_half_precision_is_near_single_precision(case: str, device: str) -> None:
    """As studies/sd14.yaml samples, finds boxes and fine-tunes, against fp32 on the CPU."""
    expected, found = outcome(HALF[case], "cpu"), outcome(case, device)
    assert found.keys() == expected.keys()
    if case.startswith("sample"):
        assert 0 < (found["pixels"] - expected["pixels"]).abs().mean() <= HALF_GREY_LEVELS
    elif case.startswith("masks"):
        assert (found["masks"] != expected["masks"]).double().mean() <= HALF_PIXELS
    else:
        assert 0 < (found["loss"] / expected["loss"] - 1).abs().max() <= HALF_LOSS
        assert moved(case, expected, found) <= TRAINED_IN_HALF


@pytest.mark.parametrize(("case", "device"), case_parameters(ALL))
def test_a_device_gives_the_same_bytes_twice(case: str, device: str) -> None:
    first, second = outcome(case, device), outcome(case, device)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("device", "name"),
    [("cpu", "graphs"), *(pytest.param("cuda", name, marks=GPU) for name in ("compiled", "graphs"))],
)
def test_a_compiled_unet_samples_what_the_eager_one_does(
    device: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a GPU by base.speed; on the CPU, where that has no effect, the traced graph runs as it is."""
    expected, counters = outcome("sample", device), torch._dynamo.utils.counters
    monkeypatch.setattr(speed, "_used", set())
    monkeypatch.setenv(speed.VARIABLE, name)
    if device == "cpu":
        compiled = torch.compile
        monkeypatch.setattr(sampling, "chosen", lambda _: speed.SPEEDS[name])
        monkeypatch.setattr(torch, "compile", lambda call, dynamic, mode=None: compiled(call, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    first, second = outcome("sample", device), outcome("sample", device)
    assert speed.used() == name and counters["stats"]["unique_graphs"] > 0
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert (first["pixels"] - expected["pixels"]).abs().max() <= GREY_LEVELS
    assert torch.equal(first["pixels"], second["pixels"])


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
    """The GPU with memory for half of what was taken before beyond the weights, since the peak was reset."""
    gc.collect()
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


class Training(NamedTuple):
    """A training whose samples of a step do not fit at once."""

    case: str  # of which it is a variant, by whose name `moved` finds the weights
    batch: int
    side: int  # of the images, pixels

    def run(self, pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
        """Its losses and weights, or its delta, in double precision on the CPU."""
        with exact(pipe.device):
            values = self.erased(pipe) if self.case == "erase-ca" else self.tuned(pipe)
        return {name: value.cpu().double() for name, value in values.items()}

    def tuned(self, pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
        full = FULL_TUNE if self.case == "finetune-full-ema" else {}
        return tune({**full, "batch": self.batch, "accumulation": 1}, pipe, self.side)

    def erased(self, pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
        cfg = build(eraser_config("ca"), {"steps": 3, "batch": self.batch}, "ca")
        images = pictures(self.side)
        anchors, retained = ({c: images[c] for c in concepts} for concepts in (("ground", "dog"), TASK.retain))
        return method("ca").erase(pipe, TASK, cfg, EraserData(anchors=anchors, retained=retained), 0)


def split(
    training: Training,
    device: str,
    limit: Callable[[StableDiffusionPipeline], AbstractContextManager],
    caplog: pytest.LogCaptureFixture,
) -> list[str]:
    """The warnings of a training that does not fit; it gives what the whole batch gives."""
    expected = training.run(make_pipe().to(device))
    assert {"micro_batch": training.batch, "checkpointing": False} == memory.USED
    pipe = make_pipe().to(device)
    with limit(pipe), caplog.at_level(logging.WARNING):
        found = training.run(pipe)
    assert memory.USED["micro_batch"] < training.batch
    assert moved(training.case, expected, found) <= TRAINED
    if "loss" in expected:
        assert torch.allclose(found["loss"], expected["loss"], rtol=0, atol=SCORE)
    return [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]


SPLIT = ["finetune-lora", "finetune-full-ema", "erase-ca"]


@pytest.mark.parametrize("case", SPLIT)
def test_a_training_that_does_not_fit_halves_its_micro_batch_here(case: str, caplog: pytest.LogCaptureFixture) -> None:
    assert split(Training(case, 8, 16), "cpu", refusing, caplog) == [
        "out of memory: the step is repeated with micro-batches of 4"
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", SPLIT)
def test_a_training_that_does_not_fit_into_the_memory_of_a_gpu_halves_its_micro_batch(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    warnings = split(Training(case, 32, 128), "cuda", less_memory, caplog)
    assert warnings[0] == "out of memory: the step is repeated with micro-batches of 16"
