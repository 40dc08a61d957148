"""The text-to-image base that a job works on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resurgence.stages.runtime import importing

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from resurgence.stages.job import Job


def load_pipe(job: Job, precision: str = "fp32", device: str | None = None) -> StableDiffusionPipeline:
    """Load the base of the settings, on the job's device or another.

    A function, and not a method of Job, so that the code version of a stage reaches it.
    """
    with importing():
        import torch

        from resurgence.diffusion.device import resolve_device
        from resurgence.diffusion.pipeline import load_base

    torch.set_flush_denormal(True)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    base = job.settings["base"]
    return load_base(base["path"], resolve_device(device or job.device), dtype, base["revision"])
