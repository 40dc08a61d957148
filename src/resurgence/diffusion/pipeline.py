"""Load text-to-image bases, and export them with what a step changed.

A base is a diffusers folder, a hub id with a revision, or a single-file checkpoint. Weights are read from safetensors
only, so loading a base never executes code.

This is the only module on the way to a job that imports diffusers and transformers, which takes 4 CPU-seconds and may
look for GPUs. Import it where a base is loaded: after the job has taken its GPU.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors import SafetensorError
from transformers import CLIPTextModel

from resurgence.diffusion.base_checks import check_folder, check_parts, is_complete, variant_of
from resurgence.diffusion.deltas import apply_folder
from resurgence.diffusion.device import DTYPES, resolve_device
from resurgence.diffusion.unet import ddim_of
from resurgence.files import check_weights_file
from resurgence.pretrained.checksums import HUB_ID, locate, missing_base, offline, verify_loaded
from resurgence.pretrained.finite import check_finite
from resurgence.pretrained.loading import check_complete, load_pretrained
from resurgence.provenance.outputs import check_space

log = logging.getLogger(__name__)


def load_base(
    path: str | Path, device: str | torch.device = "cpu", precision: str = "fp32", revision: str | None = None
) -> StableDiffusionPipeline:
    """Load a diffusers folder, a hub id or a single .safetensors checkpoint, with the DDIM scheduler, in eval mode.

    A single file takes its configuration from the folder of the same name without suffix if there is one, else from
    the hub's cache. A hub id whose snapshot in the cache is complete is read from there without asking the hub, and
    HF_HUB_OFFLINE=1 keeps everything off the network. Denormals are flushed to zero from here on: they cost a CPU five
    times the time.

    Args:
        device: auto, cpu, cuda or cuda:N. precision: fp32, fp16 or bf16.

    Raises:
        FileNotFoundError: says where the base was looked for and which command fetches it.
        ValueError: an unknown device, pickled weights, a folder of another pipeline, parts that do not fit together
            (base_checks.py), other checksums than config/weights.yaml has, weights that are not finite in the
            precision, or a noise schedule that cannot be sampled.
    """
    torch.set_flush_denormal(True)
    local, device, dtype = Path(path), resolve_device(device), DTYPES[precision]
    options = {"dtype": dtype, "safety_checker": None, "requires_safety_checker": False}
    disable_progress_bars()
    if local.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise ValueError(f"{path}: pickled weights can execute code and are not read; convert them to .safetensors")
    if not local.exists() and not HUB_ID.fullmatch(str(path)):
        raise FileNotFoundError(missing_base(path, revision, FileNotFoundError("no such file or folder")))
    if local.is_file():
        check_weights_file(local)
    elif local.is_dir():
        check_folder(local)
    try:
        pipe = from_file(local, options) if local.is_file() else from_folder(str(path), revision, options)
    except (OSError, SafetensorError) as error:
        raise FileNotFoundError(missing_base(path, revision, error)) from error
    except ValueError as error:
        if "expected shape" not in str(error):
            raise
        reason = str(error).partition(" If you want")[0]  # of diffusers' message
        raise ValueError(f"base.path = {str(path)!r}: the weights do not fit its config.json ({reason})") from error
    for part in ("unet", "vae", "text_encoder"):
        check_complete(getattr(pipe, part), f"base.path = {str(path)!r}", part)
        remedy = "fetch the base again" if precision == "fp32" else "fetch the base again, or use precision fp32"
        check_finite(getattr(pipe, part).state_dict(), local if local.is_file() else f"{path}/{part}", remedy)
    check_parts(pipe, str(path))
    pipe.scheduler = ddim_of(pipe.scheduler)
    check_schedule(pipe.scheduler, path)
    pipe.set_progress_bar_config(disable=True)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.eval().requires_grad_(False)
    return pipe.to(device)


def load_model(
    path: str | Path,
    folders: Sequence[Path],
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    revision: str | None = None,
) -> StableDiffusionPipeline:
    """Load a base with what steps changed: applied in order in fp32, then cast.

    A LoRA is merged into the weights of the file, and not into those that half precision has rounded.

    Args:
        folders: of the steps, see `apply_folder`. The others: see `load_base`.

    Raises:
        FileNotFoundError, ValueError: see `load_base` and `apply_folder`, or weights that the precision makes
            infinite.
    """
    pipe = load_base(path, device, "fp32" if folders else precision, revision)
    for folder in folders:
        apply_folder(pipe, folder)
    if folders and precision != "fp32":
        pipe.to(DTYPES[precision])
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            check_finite(part.state_dict(), f"{path} with {folders[-1]}", "use precision fp32 or bf16")
    return pipe


def from_file(file: Path, options: dict[str, Any]) -> StableDiffusionPipeline:
    """The pipeline of a single .safetensors file, configured by the folder beside it or the hub's cache."""
    folder = file.with_suffix("")
    config = {"config": str(folder)} if (folder / "model_index.json").exists() else {}
    return StableDiffusionPipeline.from_single_file(str(file), local_files_only=offline(), **config, **options)


def from_folder(name: str, revision: str | None, options: dict[str, Any]) -> StableDiffusionPipeline:
    """The pipeline of a diffusers folder or hub id; of a part with weights of one variant only, such as fp16, those."""
    verify_loaded(name, revision)
    folder, variants = locate(name, revision), {}
    local = {"local_files_only": folder is not None and is_complete(folder)}  # a node without network waits for the hub
    for part in ("unet", "vae", "text_encoder"):
        variants[part] = variant_of(folder / part) if folder is not None else None
        if variants[part] is not None:
            log.info("%s of %s: only weights of the variant %s are there", part, name, variants[part])
    text = {"dtype": options["dtype"], "variant": variants["text_encoder"], **local}
    encoder = load_pretrained(CLIPTextModel, name, "base.path", revision, "text_encoder", **text)
    return StableDiffusionPipeline.from_pretrained(
        name, revision=revision, variant=variants["unet"] or variants["vae"], text_encoder=encoder,
        feature_extractor=None, use_safetensors=True, **local, **options,
    )  # fmt: skip


def disable_progress_bars() -> None:
    """Keep the progress bars of diffusers and transformers out of log files."""
    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()


def check_schedule(scheduler: DDIMScheduler, path: str | Path) -> None:
    """Raise ValueError for a noise schedule outside (0, 1]; 0 is allowed where the prediction is not the noise.

    DDIM divides a predicted noise by the root of alpha_bar: a base with zero terminal SNR has to predict the velocity
    (Lin et al. 2024, arXiv 2305.08891, section 3.2).
    """
    alphas, kind = scheduler.alphas_cumprod, scheduler.config.prediction_type
    bad = ~((alphas > 0) & (alphas <= 1)) if kind == "epsilon" else ~((alphas >= 0) & (alphas <= 1))
    if bad.any():
        step = int(bad.nonzero()[0])
        raise ValueError(f"{path}/scheduler: prediction_type = {kind!r}, but alpha_bar is {alphas[step]:g} at timestep "
                         f"{step}, by whose root DDIM divides; correct prediction_type (v_prediction where a base was "
                         "trained with rescale_betas_zero_snr), rescale_betas_zero_snr or the betas")  # fmt: skip


def export(base: str | Path, folders: Sequence[Path], out: Path, revision: str | None = None) -> None:
    """Write a full diffusers folder: the base with the folders applied in order, and the study's DDIM scheduler.

    Raises:
        OSError: the disk of `out` has no space for the weights.
    """
    pipe = load_model(base, folders, revision=revision)
    modules = (pipe.unet, pipe.vae, pipe.text_encoder)
    check_space(out, sum(p.numel() * p.element_size() for module in modules for p in module.parameters()))
    pipe.save_pretrained(out, safe_serialization=True)
