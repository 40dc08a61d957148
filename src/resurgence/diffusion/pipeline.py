"""Load text-to-image bases, and save, apply and export what a step changed in them.

A base is a diffusers folder, a hub id with a revision, or a single-file checkpoint. A delta holds the new values of
the parameters that changed, and only those: key/value projections of SD 1.4 are tens of megabytes instead of 3.4 GB.
Weights are read from safetensors only, so loading a base never executes code.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from resurgence.pretrained.checksums import verify_loaded, where_to_find
from resurgence.pretrained.loading import check_complete, load_pretrained

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, SchedulerMixin, StableDiffusionPipeline

log = logging.getLogger(__name__)
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve_device(name: str) -> torch.device:
    """Return the device named `auto`, `cpu`, `cuda` or `cuda:N`; auto is the GPU when there is one.

    Raises:
        ValueError: a device that this machine does not have; there is no silent fallback to the CPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device = {name!r} is unknown; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count()
        raise ValueError(f"device = {name!r}, but {seen} CUDA devices are visible; use auto or cpu")
    return device


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """On a GPU: deterministic kernels, and fp32 convolutions in fp32 instead of TF32, PyTorch's default there.

    Otherwise the batch size would show in the images, and a run would not repeat itself. For speed set the precision.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def ddim_of(scheduler: SchedulerMixin) -> DDIMScheduler:
    """Return a fresh DDIM scheduler with the given one's noise schedule, spacing, offset and prediction type.

    Samples are not clipped: that belongs to pixel models, and StableDiffusionPipeline switches it off too.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(scheduler.config, clip_sample=False)


def load_base(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> StableDiffusionPipeline:
    """Load a diffusers folder, a hub id or a single .safetensors checkpoint, with the DDIM scheduler, in eval mode.

    A single file takes its configuration from the folder of the same name without suffix if there is one, else from
    the hub's cache. HF_HUB_OFFLINE=1 keeps everything off the network.

    Raises:
        FileNotFoundError: says where the base was looked for and which command fetches it.
        ValueError: pickled weights, a folder of another pipeline, or other checksums than config/weights.yaml has.
    """
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    options = {"dtype": dtype, "safety_checker": None, "requires_safety_checker": False}
    quieten()
    place = Path(path)
    if place.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise ValueError(f"{path}: pickled weights can execute code and are not read; convert them to .safetensors")
    if not place.exists() and not HUB_ID.fullmatch(str(path)):
        raise FileNotFoundError(where_to_find(path, revision, FileNotFoundError("no such file or folder")))
    try:
        if place.is_file():
            folder = place.with_suffix("")
            config = {"config": str(folder)} if (folder / "model_index.json").exists() else {}
            offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
            pipe = StableDiffusionPipeline.from_single_file(str(place), local_files_only=offline, **config, **options)
        else:
            check_folder(place)
            verify_loaded(path, revision)
            text = load_pretrained(CLIPTextModel, str(path), "base.path", revision, "text_encoder", dtype=dtype)
            options |= {"text_encoder": text, "feature_extractor": None}
            pipe = StableDiffusionPipeline.from_pretrained(
                str(path), revision=revision, use_safetensors=True, **options
            )
    except (OSError, SafetensorError) as error:
        raise FileNotFoundError(where_to_find(path, revision, error)) from error
    except ValueError as error:
        if "expected shape" not in str(error):
            raise
        told = str(error).partition(" If you want")[0]  # diffusers' words
        raise ValueError(f"base.path = {str(path)!r}: the weights do not fit its config.json ({told})") from error
    for part in ("unet", "vae", "text_encoder"):
        check_complete(getattr(pipe, part), f"base.path = {str(path)!r}", part)
    pipe.scheduler = ddim_of(pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.eval().requires_grad_(False)
    return pipe.to(device)


def quieten() -> None:
    """Keep diffusers' and transformers' progress bars out of log files."""
    import diffusers
    import transformers

    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()


def check_folder(folder: Path) -> None:
    """Raise when a local folder is not a Stable Diffusion pipeline; names that are no folder are left to the hub."""
    if not folder.is_dir():
        return
    index = folder / "model_index.json"
    if not index.exists():
        raise FileNotFoundError(f"{folder} has no model_index.json; give one written by diffusers' save_pretrained")
    name = json.loads(index.read_text()).get("_class_name")
    if name != "StableDiffusionPipeline":
        raise ValueError(f"{index}: _class_name = {name!r}; give a StableDiffusionPipeline (SD 1.x or 2.x)")
