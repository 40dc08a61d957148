"""Trainings of Stable Diffusion 1.4 and 2.1 on the meta device, with published batches, within the memory of a GPU.

The real code runs: the objectives, the autograd engine, optimisers and moving averages, and what follows an
out-of-memory error, which `Live` raises above a capacity. Replaced is what reads values, which meta tensors lack:
choices by value, copies to main memory, curves and results. Everything is in fp32, as the meta device has no autocast.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline

from live_bytes import Live, fused_attention
from published import counted, make_published
from resurgence.config.fields import build
from resurgence.config.stages import FinetuneConfig
from resurgence.config.task import Task
from resurgence.erasers import EraserData, eraser_config, method
from resurgence.erasers.gradient import eap, erasediff, salun, scissorhands, spm, student, trainer
from resurgence.erasers.mace.method import attention_loras
from resurgence.training import finetune, loop, memory
from resurgence.training.checkpoint import Saver
from resurgence.training.lora import prepare

PUBLISHED: dict[str, dict[str, Any]] = {"erasediff": {"batch": 4}}  # of 16, which takes minutes, and 19 MB more
CAPACITY = 24e9  # bytes; a GPU of "24 GB" has 25.77e9, so 1.7e9 remain for CUDA's context and workspaces
STEPS = 2  # the second with the optimiser's state, which the first makes
CONCEPTS = [f"name {number}" for number in range(10)]
TASK = Task(
    name="ten", kind="object", erase=tuple(CONCEPTS), retain=("bird",), mapping=dict.fromkeys(CONCEPTS, "street"),
    templates=("a photo of the {}",), seeds={"erase": 1, "retain": 1},
)  # fmt: skip
SHORTER = {"ddim_steps": 2, "trajectories": 1, "retain_trajectories": 1, "mask_steps": 1, "saliency_steps": 1,
           "attack_steps": 1, "warmup": 0, "captions": ("a photo of {}",)}  # fmt: skip
ERASERS = (
    "esd", "sdd", "spm", "eap", "advunlearn", "ca", "fmn", "doco", "salun", "erasediff", "scissorhands",
)  # fmt: skip
TUNES: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"algorithm": "full", "batch": 8, "accumulation": 4, "ema": True, "gradient_checkpointing": True},
}


class Need(NamedTuple):
    """What a training took."""

    peak: float  # bytes
    micro_batch: int
    checkpointing: bool


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def elsewhere(tensor: torch.Tensor) -> torch.Tensor:
    """A stand-in for a copy in main memory, which needs none on the device."""
    return torch.zeros((), device="meta", dtype=tensor.dtype).expand(tensor.shape)


def two_steps(run: loop.Run, *_: Any) -> dict[str, list]:
    """The training loop without what reads values."""
    for step in range(STEPS):
        loop.update(run, step)
    memory.USED |= run.limits.used()
    return {"loss": [[0.0] * len(CONCEPTS)], loop.GRADIENT_NORM: [0.0]}


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Replace what reads the values of tensors."""
    adam, adamw = torch.optim.Adam, torch.optim.AdamW
    plain = {"foreach": False, "fused": None}  # as fused kernels, no temporary copy of all weights
    masks = lambda scores, count: [torch.zeros_like(s, dtype=torch.bool) for s in scores]  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())
        patch.setattr(torch.optim, "Adam", lambda *args, **options: adam(*args, **(options | plain)))
        patch.setattr(torch.optim, "AdamW", lambda *args, **options: adamw(*args, **(options | plain)))
        patch.setattr(loop, "train", two_steps)
        patch.setattr(trainer, "in_precision_of_base", lambda *args: {})
        patch.setattr(spm, "in_precision_of_base", lambda *args: {})
        patch.setattr(spm, "anchor", lambda text, draws: torch.randn(text.shape, generator=draws))
        patch.setattr(eap, "similarity", lambda erased, words, distance: torch.rand(len(erased), len(words)))
        patch.setattr(salun, "largest", masks)
        patch.setattr(scissorhands, "largest", masks)
        patch.setattr(scissorhands, "fresh", lambda name, weight, initial, seed: torch.empty_like(weight))
        for module in (student, erasediff):
            patch.setattr(module, "host_copy", elsewhere)
        patch.setattr(
            student.Student,
            "texts",
            lambda self, prompts: empty(len(prompts), 77, self.unet.config.cross_attention_dim),
        )
        yield


def width(pipe: StableDiffusionPipeline) -> int:
    """Of the embeddings of text."""
    return pipe.unet.config.cross_attention_dim


def make_base(name: str) -> StableDiffusionPipeline:
    """The base; its weights count where `Live` counts."""
    with torch.device("meta"):
        pipe = make_published(name)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        counted(part)
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config)  # with values: timesteps are read
    return pipe


def erase(pipe: StableDiffusionPipeline, name: str, changes: dict[str, Any]) -> None:
    """Two steps of an eraser with its published settings, but for `changes` and what bears on its length alone."""
    config = eraser_config(name)
    settings = {key: value for key, value in (SHORTER | changes).items() if key in config.__dataclass_fields__}
    picture, mask = torch.zeros(1, 3, 512, 512), torch.ones(1, 1, 512, 512, dtype=torch.bool)
    data = EraserData(
        images=dict.fromkeys(CONCEPTS, picture), masks=dict.fromkeys(CONCEPTS, mask), anchors={"street": picture},
        retained={"bird": picture},
    )  # fmt: skip
    cfg = build(config, settings, name)
    if name == "mace":
        attention_loras(pipe, TASK, cfg, data, 0)
    else:
        method(name).erase(pipe, TASK, cfg, data, 0)


def tune(pipe: StableDiffusionPipeline, name: str, changes: dict[str, Any]) -> None:
    """Two steps of a fine-tune of the paper."""
    cfg = build(FinetuneConfig, TUNES[name] | changes, name)
    trainable = prepare(pipe.unet, None if cfg.algorithm == "full" else cfg.rank, 0)
    latents = empty(2, 4, 4, 64, 64)
    data = finetune.Data(latents, latents, empty(4, 77, width(pipe)), [0, 1, 2, 3])
    finetune.train(pipe, data, trainable, {}, cfg, 0, Path(), Saver(None, ""))


def need(base: str, name: str, capacity: float = CAPACITY, **changes: Any) -> Need:
    """What a training needs, with passes as small as the capacity asks for.

    Args:
        base: sd14 or sd21. name: of an eraser or of TUNES. changes: of its settings.

    Raises:
        torch.cuda.OutOfMemoryError: it does not fit.
    """
    with without_values(), fused_attention(), Live(capacity) as live:
        pipe = make_base(base)
        (tune if name in TUNES else erase)(pipe, name, changes)
        return Need(live.peak, **memory.USED)


def published_batch(name: str) -> str:
    """Samples of a step, those of both losses."""
    if name in TUNES:
        cfg = build(FinetuneConfig, TUNES[name], name)
        return str(cfg.batch * cfg.accumulation)
    if name == "mace":
        return "10 concepts"
    cfg = build(eraser_config(name), {}, name)
    retained = {"spm": cfg.batch * getattr(cfg, "anchors", 0), "advunlearn": getattr(cfg, "retain_batch", 0)}
    if name in ("salun", "erasediff", "scissorhands"):
        retained[name] = cfg.batch
    return f"{cfg.batch} + {retained[name]}" if name in retained else str(cfg.batch)
