"""The text-to-image base that a job works on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from resurgence.stages.runtime import importing

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import StableDiffusionPipeline

    from resurgence.stages.job import Job


def load_pipe(
    job: Job, precision: str = "fp32", device: str | None = None, changes: Sequence[Path] = ()
) -> StableDiffusionPipeline:
    """Load the base of the settings with the changes of these folders, on the job's device or another.

    A function, and not a method of Job, so that the code version of a stage reaches it.
    """
    with importing():
        from resurgence.diffusion.pipeline import load_model

    base = job.settings["base"]
    return load_model(base["path"], changes, device or job.device, precision, base["revision"])
