"""The device of benchmarks/on_gpu.py: remaining time, timing of calls, and models of full size."""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import StableDiffusionPipeline

from published import make_published
from resurgence.diffusion import device, speed
from tiny import make_pipeline

NO_TIME = "no time left"
RATES = yaml.safe_load((Path(__file__).parent.parent / "workflow/rates.yaml").read_text())


@dataclass(frozen=True)
class Machine:
    """A device, and the time limit of the run on it."""

    device: str
    tiny: bool  # models of a few thousand weights, to test the script
    seconds: float  # of the whole run
    start: float = field(default_factory=time.monotonic)

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.startswith("cuda")

    @property
    def kind(self) -> str:
        """The device's type, for autocast."""
        return self.device.partition(":")[0]

    @property
    def card(self) -> str | None:
        """The key of the device in workflow/rates.yaml; None for another one."""
        name = torch.cuda.get_device_name().upper() if self.cuda else ""
        return next((key for key in RATES["gpus"] if key.upper().replace("-", " ") in name), None)

    @property
    def left(self) -> float:
        """Seconds until the run should end."""
        return self.seconds - (time.monotonic() - self.start)

    def reset_peak(self) -> None:
        """Begin to measure the peak of the device's memory."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    @property
    def peak(self) -> float:
        """The peak of the device's memory since then, in GiB; 0 without a GPU."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.cuda else 0.0

    def synchronise(self) -> None:
        """Wait until the device has finished all work."""
        if self.cuda:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Release unused memory."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


@contextmanager
def arithmetic(machine: Machine, precision: str = "fp32", deterministic: bool = True) -> Iterator[None]:
    """The arithmetic of a job, `exact`, with `base.deterministic` true or false."""
    before = os.environ.get(device.VARIABLE)
    os.environ[device.VARIABLE] = str(deterministic).lower()
    try:
        with device.exact(machine.device, precision):
            yield
    finally:
        os.environ.pop(device.VARIABLE)
        os.environ |= {} if before is None else {device.VARIABLE: before}


def rates(machine: Machine, kind: str, operations: float, seconds: float) -> dict[str, float]:
    """Operations a second, and the share of the peak; nothing for tiny models, whose operations are not counted."""
    if machine.tiny:
        return {}
    rate = operations / seconds
    peak = RATES["gpus"].get(machine.card, {}).get("fp16" if kind == "bf16" else kind)
    return {"TFLOP/s": round(rate / 1e12, 1)} | ({"of peak": round(rate / 1e12 / peak, 3)} if peak else {})


def timed(machine: Machine, run: Callable[[], Any], repeats: int = 3, warm: int = 1) -> tuple[float, float]:
    """Median seconds of a call after warm-up calls, and the peak of the device's memory in GiB."""
    for _ in range(warm):
        run()
    machine.synchronise()
    machine.reset_peak()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        machine.synchronise()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), machine.peak


def driver() -> str:
    """The version of the driver; empty without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")[0]


def describe(machine: Machine) -> dict[str, Any]:
    """Versions, and the speed of matrix products and copies."""
    results: dict[str, Any] = {"torch": torch.__version__, "device": machine.device, "cpus": os.cpu_count()}
    if not machine.cuda:
        return results
    results |= {"name": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "driver": driver()}
    results["base.speed: auto"] = speed.of_card(torch.cuda.get_device_capability())
    size = 8192
    types = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
    for kind, dtype in types.items():
        a, b = (torch.randn(size, size, device=machine.device, dtype=dtype) for _ in range(2))
        torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
        seconds, _ = timed(machine, lambda a=a, b=b: a @ b, 5, 2)
        results[f"matmul {kind} TFLOP/s"] = round(2 * size**3 / seconds / 1e12, 1)
    torch.backends.cuda.matmul.allow_tf32 = False
    values = torch.randn(2**29, device=machine.device)
    seconds, _ = timed(machine, values.clone, 5, 2)
    results["copy TB/s"] = round(2 * values.numel() * 4 / seconds / 1e12, 2)
    return results


def big_pipeline(machine: Machine, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """SD 1.4 with random weights, drawn on the device, which takes seconds instead of half a minute."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if machine.tiny:
            return make_pipeline().to(machine.device, dtype)
        with torch.device(machine.device):
            return make_published("sd14").to(machine.device, dtype)


def unet_inputs(machine: Machine, pipe: StableDiffusionPipeline, batch: int, dtype: torch.dtype) -> tuple:
    """Latents, timesteps and text for one pass of the UNet."""
    cfg, options = pipe.unet.config, {"device": machine.device, "dtype": dtype}
    latents = torch.randn(batch, cfg.in_channels, cfg.sample_size, cfg.sample_size, **options)
    text = torch.randn(batch, 77, cfg.cross_attention_dim, **options)
    return latents, torch.full((batch,), 500, device=machine.device), text
