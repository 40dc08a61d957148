"""Every eraser for a few steps, with random images: for the pretended GPU and for benchmarks/on_gpu.py."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from resurgence.config.fields import build
from resurgence.config.task import make_task
from resurgence.data.moments import second_moment
from resurgence.diffusion.device import exact
from resurgence.erasers import EraserData, eraser_config, method

TASK = make_task(
    {
        "name": "t", "kind": "object", "erase": ["ship", "cat"], "mapping": {"ship": "ground", "cat": "dog"},
        "retain": ["bird", "person", "queen"], "templates": ["a photo of the {}"],
        "seeds": {"erase": 2, "retain": 2, "synonym": 1},
    },
    "t",
)  # fmt: skip
CAPTIONS = ["a photo of the bird", "a picture of the sky", "a sketch of the queen"]
SHORT = {"steps": 3, "batch": 2, "captions": ["a photo of the {}"], "ddim_steps": 4, "trajectories": 2}
ERASURES: dict[str, tuple[str, dict[str, Any]]] = {  # name -> eraser, its settings beside SHORT
    **{name: (name, {}) for name in ("uce", "time", "esd", "ca", "fmn", "erasediff")},
    "rece": ("rece", {"epochs": 2}),
    "speed": ("speed", {"augmentations": 2, "invariants": "centres"}),
    "mace": ("mace", {"lamb": 1.0}),
    "mace-refinement": ("mace-refinement", {"lamb": 1.0}),
    "esd-base": ("esd", {"x_t": "base"}),
    "sdd": ("sdd", {"ema": 0.5}),  # an average of the published 0.999 moves by the rounding of its weights
    "sdd-base": ("sdd", {"ema": 0.5, "z_t": "base"}),
    "spm": ("spm", {"anchors": 1}),
    "eap": ("eap", {"closest": 5, "x_t": "base"}),
    "advunlearn": ("advunlearn", {"warmup": 1, "attack_steps": 2, "retain_batch": 2}),
    "doco": ("doco", {"warmup": 1}),
    "salun": ("salun", {"mask_steps": 2}),
    "erasediff-noxattn": ("erasediff", {"parameters": "noxattn"}),
    "scissorhands": ("scissorhands", {"saliency_steps": 2}),
}


def pictures(side: int = 16) -> dict[str, torch.Tensor]:
    """Three random images of each concept, (3, 3, side, side) in [-1, 1]."""
    draw = torch.Generator().manual_seed(0)
    concepts = (*TASK.erase, "ground", "dog", *TASK.retain)
    return {concept: torch.rand(3, 3, side, side, generator=draw) * 2 - 1 for concept in concepts}


def eraser_data(pipe: StableDiffusionPipeline) -> EraserData:
    """Images, masks and moments of the task, on the CPU; `pipe` is the base, on the CPU too."""
    images = pictures(pipe.unet.config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1))
    moment = second_moment(pipe, CAPTIONS)
    return EraserData(
        prior=moment,
        domain=moment,
        images={concept: images[concept] for concept in TASK.erase},
        masks={concept: images[concept][:, :1] > 0 for concept in TASK.erase},
        anchors={concept: images[concept] for concept in ("ground", "dog")},
        retained={concept: images[concept] for concept in TASK.retain},
    )


def erase(name: str, pipe: StableDiffusionPipeline, data: EraserData) -> dict[str, torch.Tensor]:
    """The delta of one of ERASURES."""
    eraser, more = ERASURES[name]
    cls = eraser_config(eraser)
    settings = {key: value for key, value in {**SHORT, **more}.items() if key in cls.__dataclass_fields__}
    with exact(pipe.device):
        return method(eraser).erase(pipe, TASK, build(cls, settings, eraser), data, 0)
