"""The random bases of benchmarks/all.py, and what is common to its rows."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import Attention
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from published import BASES, clip_tokenizer
from resurgence.config.task import Task
from resurgence.diffusion.attention import projection_weights
from resurgence.diffusion.unet import ddim_of
from resurgence.erasers.lora import Lora
from tiny import make_pipeline

WIDTHS = [320] * 5 + [640] * 5 + [1280] * 6  # channels of the 16 cross-attentions of SD 1.4
FIRST = ("Ada", "Alan", "Emmy", "Niels", "Marie", "Max", "Rosa", "Kurt", "Lise", "Paul")
LAST = ("Adams", "Baker", "Clark", "Davis", "Evans", "Frank", "Grant", "Hughes", "Irwin", "Jones")
NAMES = [
    f"{first} {last} {part}".strip() for part in ("", *"abcdefghijklmnopqrstu") for last in LAST for first in FIRST
]


class Widths(nn.Module):
    """The cross-attentions of SD 1.4 alone."""

    def __init__(self, widths: list[int], dimension: int) -> None:
        super().__init__()
        options = {"cross_attention_dim": dimension, "heads": 8}
        self.attn2 = nn.ModuleList(Attention(query_dim=w, dim_head=w // 8, **options) for w in widths)


def wide_base(layers: int = 12, widths: list[int] = WIDTHS, dimension: int = 768) -> Any:
    """CLIP's text encoder of SD 1.4 with so many layers, its tokenizer, and cross-attentions of these widths.

    Args:
        dimension: of the embeddings; another one than 768 is not CLIP's.
    """
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": layers, "hidden_size": dimension, "intermediate_size": 4 * dimension}
    settings = BASES["sd14"]["text"] | sizes | {"num_attention_heads": dimension // 64}
    options = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}
    encoder = CLIPTextModel(CLIPTextConfig(**options, **settings)).eval()
    unet = Widths(widths, settings["hidden_size"]).requires_grad_(False)
    tokenizer = clip_tokenizer(BASES["sd14"]["pad"])
    return SimpleNamespace(tokenizer=tokenizer, text_encoder=encoder, unet=unet, device=torch.device("cpu"))


def small_base(quick: bool) -> StableDiffusionPipeline:
    """A random pipeline with the miniature's latents, widths and heads; with `quick` a much smaller one."""
    sizes = {
        "cross_attention_dim": 128, "heads": 4, "block_out_channels": (64, 128, 128), "latent_channels": 12,
        "vae_channels": (16, 32, 64, 64),
    }  # fmt: skip
    pipe = make_pipeline(prediction_type="v_prediction", max_length=24, **({} if quick else sizes))
    pipe.scheduler = ddim_of(pipe.scheduler)  # as a base is loaded
    return pipe


def people(erased: int, retained: int = 1) -> Task:
    """A task of so many names, all of which become "a person"."""
    erase, retain = NAMES[:erased], NAMES[erased : erased + retained]
    return Task(
        name="people", kind="celebrity", erase=tuple(erase), retain=tuple(retain),
        mapping=dict.fromkeys(erase, "a person"), templates=("a photo of {}",), seeds={"erase": 1, "retain": 1},
    )  # fmt: skip


def random_loras(pipe: Any, concepts: Any) -> dict[str, Lora]:
    """Concept -> LoRA of rank 1, the same for each."""
    weights = projection_weights(pipe.unet)
    one = {n: (torch.randn(1, w.shape[1]) / w.shape[1], torch.randn(len(w), 1)) for n, w in weights.items()}
    return dict.fromkeys(concepts, one)


class Clock:
    """CPU seconds of the parts of a procedure, each times how often the whole has it more than what was run."""

    def __init__(self) -> None:
        self.total = 0.0

    @contextmanager
    def part(self, factor: float = 1.0) -> Iterator[None]:
        """Add the CPU seconds of the block times the factor."""
        start = time.process_time()
        yield
        self.total += factor * (time.process_time() - start)
