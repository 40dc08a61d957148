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
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from resurgence.checked import check_complete, load_pretrained
from resurgence.lora_merge import lora_delta
from resurgence.weights import verify_loaded, where_to_find

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, SchedulerMixin, StableDiffusionPipeline

log = logging.getLogger(__name__)

Delta = dict[str, torch.Tensor]
"""'unet.<parameter>' or 'text_encoder.<parameter>' -> the parameter's new value."""
PARTS = ("unet", "text_encoder")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
DELTA_FILE = "delta.safetensors"
LORA_FILE = "pytorch_lora_weights.safetensors"


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


def changed(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], prefix: str) -> Delta:
    """Return the tensors of `after` that differ from `before`, named `<prefix>.<name>`, on the CPU."""
    if odd := sorted(set(before) ^ set(after)):
        raise ValueError(f"{prefix}: parameters {odd[:3]} exist on one side only; compare one module with itself")
    return {
        f"{prefix}.{name}": after[name].detach().to("cpu", copy=True).contiguous()
        for name in sorted(after)
        if not torch.equal(before[name].to(after[name].device), after[name])
    }


def save_delta(delta: Delta, path: Path) -> None:
    """Write a delta as safetensors under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(delta.items())}, temporary)
    temporary.rename(path)


def load_delta(path: Path) -> Delta:
    """Read a delta; raise FileNotFoundError or ValueError naming the file when it is missing or damaged."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing; run the step that writes it (resurgence erase or finetune)")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run the step that writes it again") from error


@torch.no_grad()
def apply_delta(pipe: StableDiffusionPipeline, delta: Delta) -> None:
    """Overwrite the pipeline's parameters by the delta's values, all or none.

    Raises:
        ValueError: a name that the pipeline does not have, or another shape.
    """
    known = {f"{part}.{name}": p for part in PARTS for name, p in getattr(pipe, part).named_parameters()}
    for name, value in delta.items():
        if name not in known:
            raise ValueError(f"delta: {name} is not in this base; apply it to the base it was made for")
        if value.shape != known[name].shape:
            raise ValueError(
                f"delta: {name} has shape {tuple(value.shape)}, the base has {tuple(known[name].shape)}; "
                "apply it to the base it was made for"
            )
    for name, value in delta.items():
        known[name].copy_(value)


def apply_folder(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Apply a step's folder: its delta.safetensors, then its pytorch_lora_weights.safetensors merged into the weights.

    Raises:
        FileNotFoundError: the folder holds neither; names the folders below it that do.
    """
    folder = Path(folder)
    delta, lora = folder / DELTA_FILE, folder / LORA_FILE
    if not (delta.exists() or lora.exists()):
        found = sorted({str(p.parent) for name in (DELTA_FILE, LORA_FILE) for p in folder.glob(f"*/{name}")})
        hint = f"give one of {', '.join(found)}" if found else "give a folder written by resurgence erase or finetune"
        raise FileNotFoundError(f"{folder} holds neither {DELTA_FILE} nor {LORA_FILE}; {hint}")
    if delta.exists():
        apply_delta(pipe, load_delta(delta))
    if lora.exists():
        apply_delta(pipe, lora_delta(pipe, lora))


def export(base: str | Path, folders: Sequence[Path], out: Path, revision: str | None = None) -> None:
    """Write a full diffusers folder: the base with the folders applied in order, and the study's DDIM scheduler."""
    pipe = load_base(base, revision=revision)
    for folder in folders:
        apply_folder(pipe, folder)
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    pipe.save_pretrained(temporary, safe_serialization=True)
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
    log.info("wrote %s", out)
