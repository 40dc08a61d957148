"""Memory and time of Stable Diffusion 1.4 and 2.1, computed from their configurations without weights or a GPU:

    PYTHONPATH=src:tests python benchmarks/full_size.py

Every stage's forward (and backward) pass runs on PyTorch's meta device, which has shapes and no values. Counted are
floating-point operations, by torch's FlopCounterMode, and the peak of the bytes of all live tensors: weights,
gradients, optimiser state, tensors saved for the backward pass, and temporary results. Attention counts as one fused
kernel (SDPA), which saves its inputs and output. Not counted are the CUDA context (about 0.5 GiB), the workspaces of
cuDNN and the fragmentation of the allocator: add a fifth. Prints the first table of
docs/large-runs.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import diffusers
import torch
import torch.nn.functional as F
import yaml
from torch.utils.flop_counter import FlopCounterMode

from live_bytes import Fused, Live, fused_attention
from published import make_published
from resurgence.diffusion.attention import projection_weights
from resurgence.training.lora import prepare

GIB = 2**30
RATES = yaml.safe_load((Path(__file__).parent.parent / "workflow/rates.yaml").read_text())


class Cost(NamedTuple):
    """Operations and memory of a call."""

    flops: float
    peak: float  # bytes beside the weights


def cost(run: Callable[[], object]) -> Cost:
    """Cost of a call, which runs twice: FlopCounterMode's hooks on modules hold tensors that would be freed."""
    with fused_attention(), Live() as live:
        result = run()
    del result
    Fused.flops = 0
    with fused_attention(), FlopCounterMode(display=False) as counter:
        run()
    return Cost(counter.get_total_flops() + Fused.flops, live.peak)


def size(module: torch.nn.Module) -> float:
    """Bytes of a module's weights."""
    return float(sum(p.numel() * p.element_size() for p in module.parameters()))


def seconds(flops: float, precision: str) -> float:
    """Seconds on an A100, eager, at its share of the peak."""
    share = RATES["half"]["a100"]["eager"] if precision == "fp16" else RATES["utilisation"][precision]
    return flops / (1e12 * RATES["gpus"]["a100"][precision] * share)


def inputs(pipe, batch: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Latents, timesteps and text for one pass of the UNet."""
    side, width = pipe.unet.config.sample_size, pipe.unet.config.cross_attention_dim
    return (
        torch.empty(batch, 4, side, side, dtype=dtype),
        torch.zeros(batch),
        torch.empty(batch, 77, width, dtype=dtype),
    )


def sampling(name: str, dtype: torch.dtype, batch: int, steps: int = 50) -> tuple[float, float]:
    """GiB and seconds an image: guidance doubles the batch of the UNet; the VAE decodes at most 8 of 512 x 512."""
    pipe = make_published(name).to(dtype=dtype)
    precision = "fp16" if dtype == torch.float16 else "fp32"
    with torch.no_grad():
        unet = cost(lambda: pipe.unet(*inputs(pipe, 2 * batch, dtype)).sample)
        side = pipe.unet.config.sample_size
        chunk = min(batch, max(1, 8 * 64**2 // side**2))
        vae = cost(lambda: pipe.vae.decode(torch.empty(chunk, 4, side, side, dtype=dtype)).sample)
    flops = steps * unet.flops / batch + vae.flops / chunk
    weights = size(pipe.unet) + size(pipe.vae) + size(pipe.text_encoder)
    return (weights + max(unet.peak, vae.peak)) / GIB, seconds(flops, precision)


def training(name: str, algorithm: str, batch: int, checkpointing: bool) -> tuple[float, float]:
    """GiB and operations of one forward and backward pass; everything in fp32, as the meta device has no autocast.

    Full fine-tuning stores the gradient, AdamW's two moments and the moving average of every weight.
    """
    pipe = make_published(name)
    trainable = prepare(pipe.unet, None if algorithm == "full" else 4, 0, checkpointing)
    values = 4 * sum(p.numel() for p in trainable.values())

    def step() -> None:
        out = pipe.unet(*inputs(pipe, batch, torch.float32)).sample
        torch.autograd.grad(F.mse_loss(out, torch.empty_like(out)), list(trainable.values()))

    passes = cost(step)  # its peak includes the gradients
    state = values * (3 if algorithm == "full" else 2)
    weights = size(pipe.unet) + size(pipe.vae) + size(pipe.text_encoder)
    return (weights + state + passes.peak) / GIB, passes.flops


def segmenting(batch: int) -> tuple[float, float]:
    """GiB and seconds an image of SAM ViT-H in fp32; Grounding DINO adds a tenth (its published size)."""
    from transformers import SamConfig, SamModel

    vision = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "mlp_dim": 5120,
              "global_attn_indexes": [7, 15, 23, 31]}  # fmt: skip
    model = SamModel(SamConfig(vision_config=vision)).eval()
    with torch.no_grad():
        encoding = cost(lambda: model.get_image_embeddings(torch.empty(batch, 3, 1024, 1024)))
    return (size(model) + encoding.peak) / GIB, seconds(encoding.flops / batch, "fp32")


def main() -> None:
    """Print the table."""
    row = "| {} | {} | {:.1f} | {:.3g} |"
    print("| stage | base | GPU memory, GiB | seconds on an A100 (computed) |\n|---|---|---|---|")
    for name in ("sd14", "sd21", "sd21-768"):
        for dtype, batch in ((torch.float16, 16), (torch.float16, 1), (torch.float32, 16), (torch.float32, 1)):
            label = f"sampling, {'fp16' if dtype == torch.float16 else 'fp32'}, batch {batch}: an image of 50 steps"
            print(row.format(label, name, *sampling(name, dtype, batch)), flush=True)
    for name in ("sd14", "sd21"):
        for algorithm, batch, checkpointing in (
            ("lora", 1, False), ("lora", 10, False), ("lora", 10, True), ("full", 1, True), ("full", 2, True),
            ("full", 8, True), ("full", 8, False),
        ):  # fmt: skip
            memory, flops = training(name, algorithm, batch, checkpointing)
            label = f"{algorithm}, batch {batch}{', gradient checkpointing' if checkpointing else ''}: a pass"
            print(f"| {label} | {name} | {memory:.1f} | {seconds(flops, 'fp16'):.3g} in fp16, "
                  f"{seconds(flops, 'fp32'):.3g} in fp32 |", flush=True)  # fmt: skip
    print(row.format("masks, SAM ViT-H, fp32, batch 4: an image", "any", *segmenting(4)))
    for name in ("sd14", "sd21"):
        unet = make_published(name).unet
        values = sum(weight.numel() for weight in projection_weights(unet).values())
        whole = sum(p.numel() for p in unet.parameters())
        print(f"{name}: delta of K and V {4 * values / 2**20:.1f} MiB, of the UNet {4 * whole / GIB:.2f} GiB in fp32",
              file=sys.stderr)  # fmt: skip


if __name__ == "__main__":
    diffusers.utils.logging.set_verbosity_error()
    with torch.device("meta"):
        main()
