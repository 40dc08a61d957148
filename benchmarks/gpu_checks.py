"""Correctness and repeatability on a GPU: parts images, erasers, finetunes and determinism of benchmarks/on_gpu.py."""

from __future__ import annotations

import contextlib
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from gpu_machine import NO_TIME, Machine, arithmetic, big_pipeline, timed, unet_inputs
from short_erasures import ERASURES, erase, eraser_data

from resurgence.diffusion.pipeline import load_base
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.training.finetune import FinetuneConfig, finetune
from tiny import make_pipeline

BASE = Path("data/miniature-2/base")
WORDS = ("ship", "cat", "dog", "bird", "horse", "truck", "deer", "airplane")


def miniature(device: str, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """The shipped base if it is in data/miniature-2, else a random one."""
    return (load_base(str(BASE)) if BASE.is_dir() else make_pipeline(max_length=24)).to(device, dtype)


def pixels_of(pipe: StableDiffusionPipeline, rows: pd.DataFrame, **options: Any) -> np.ndarray:
    """The sampled images, (N, H, W, 3), as integers."""
    cfg = SamplingConfig(**{"steps": 12, "guidance": 4.0, "batch": 16, **options})
    return np.stack([np.asarray(image) for _, image in sorted(sample(pipe, rows, cfg), key=lambda p: p[0])]).astype(int)


def images(machine: Machine) -> dict[str, Any]:
    """Differences in grey levels between device and CPU, two runs, batch sizes and precisions."""
    prompts = [f"a photo of the {word}" for word in WORDS for _ in range(2)]
    rows = pd.DataFrame({"prompt": prompts, "seed": range(len(prompts))})
    on_cpu, pipe = pixels_of(miniature("cpu"), rows), miniature(machine.device)
    first, second = pixels_of(pipe, rows), pixels_of(pipe, rows)
    results: dict[str, Any] = {
        "device - CPU, largest grey level": int(abs(first - on_cpu).max()),
        "share of pixels that differ": float((first != on_cpu).mean()),
        "the same twice": bool((first == second).all()),
    }
    for batch in (1, 7) if machine.left > 10 else ():
        results[f"batch {batch} - batch 16"] = int(abs(pixels_of(pipe, rows, batch=batch) - first).max())
    fresh = miniature(machine.device)
    results["channels_last"] = int(abs(pixels_of(fresh, rows, channels_last=True) - first).max())
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        half = abs(pixels_of(miniature(machine.device, dtype), rows) - on_cpu)
        results[f"{name} - fp32: mean, largest"] = [round(float(half.mean()), 2), int(half.max())]
    return results


def erasers(machine: Machine) -> dict[str, Any]:
    """Every eraser for a few steps: errors, difference of its delta from that of the CPU, repeatability."""
    on_cpu, pipe = miniature("cpu"), miniature(machine.device)
    data, results = eraser_data(on_cpu), {}
    start = {f"unet.{name}": p for name, p in on_cpu.unet.named_parameters()}
    start |= {f"text_encoder.{name}": p for name, p in on_cpu.text_encoder.named_parameters()}
    for name in ERASURES:
        if machine.left < 10:
            results[name] = NO_TIME
            continue
        began = time.perf_counter()
        try:
            cpu, first, second = (erase(name, p, data) for p in (on_cpu, pipe, pipe))
            movement = max(float((cpu[key] - start[key]).norm()) for key in cpu)
            difference = max(float((cpu[key] - first[key]).norm()) for key in cpu)
            results[name] = {
                "difference / movement": round(difference / max(movement, 1e-30), 6),
                "repeats": all(torch.equal(first[key], second[key]) for key in first),
            }
        except Exception as error:
            lines = traceback.format_exc().splitlines()[-4:]
            results[name] = {"error": f"{type(error).__name__}: {str(error)[:300]}", "at": lines}
        results[name]["seconds"] = round(time.perf_counter() - began, 1)
    return results


def finetunes(machine: Machine) -> dict[str, Any]:
    """The last loss of 20 steps on the CPU and twice on the device, in each precision."""
    on_cpu, pipe, draw, results = miniature("cpu"), miniature(machine.device), torch.Generator().manual_seed(0), {}
    side = on_cpu.unet.config.sample_size * 2 ** (len(on_cpu.vae.config.block_out_channels) - 1)
    pictures = torch.rand(12, 3, side, side, generator=draw) * 2 - 1
    captions = ["a photo of the bird"] * 6 + ["a photo of the horse"] * 6
    kinds: dict[str, dict[str, Any]] = {
        "lora": {},
        "full": {"algorithm": "full", "ema": True, "lr": 1e-5},
        "lora fp16": {"precision": "fp16"},
        "lora bf16": {"precision": "bf16"},
    }
    if not machine.cuda:  # gradients of fp16 need a GPU
        del kinds["lora fp16"]
    for name, options in kinds.items():
        if machine.left < 10:
            results[name] = NO_TIME
            continue
        cfg, curves = FinetuneConfig(**{"steps": 20, "batch": 4, "accumulation": 1, **options}), []
        for target in (pipe, pipe) if "precision" in options else (on_cpu, pipe, pipe):
            with tempfile.TemporaryDirectory() as folder:
                rows = finetune(target, pictures, captions, cfg, 0, Path(folder))
            curves.append([row["loss"] for row in rows])
        results[name] = {"last loss": [round(c[-1], 6) for c in curves], "repeats": curves[-1] == curves[-2]}
    return results


def determinism(machine: Machine) -> dict[str, Any]:
    """Difference of two gradients of a pass at the size of SD 1.4, and their time: as jobs run, and otherwise."""
    pipe, results = big_pipeline(machine), {}
    pipe.unet.requires_grad_(True)
    ends = ("attn1.to_q.weight", "conv_in.weight", "attn2.to_k.weight")
    probe = [p for name, p in pipe.unet.named_parameters() if name.endswith(ends)]
    modes = {
        "deterministic": lambda: arithmetic(machine),
        "any kernel": lambda: arithmetic(machine, deterministic=False),
        "neither": contextlib.nullcontext,
    }
    for batch in (1, 4):
        inputs = unet_inputs(machine, pipe, batch, torch.float32)
        for mode, context in modes.items():
            for kind, half in (("fp32", None), ("bf16", torch.bfloat16)):
                if machine.left < 5:
                    results[f"batch {batch}, {mode}, {kind}"] = NO_TIME
                    continue

                def gradient(half: torch.dtype | None = half, inputs: tuple = inputs) -> tuple[torch.Tensor, ...]:
                    with torch.autocast(machine.kind, half, enabled=half is not None):
                        loss = pipe.unet(*inputs, return_dict=False)[0].float().square().mean()
                    return torch.autograd.grad(loss, probe)

                try:
                    with context():
                        first, second = gradient(), gradient()
                        seconds, _ = timed(machine, gradient, 2, 0)
                    pairs = zip(first, second, strict=True)
                    worst = max(float((a - b).norm() / a.norm().clamp_min(1e-30)) for a, b in pairs)
                    outcome: Any = {"relative difference": worst, "ms": round(1e3 * seconds, 1)}
                except Exception as error:
                    outcome = f"{type(error).__name__}: {str(error)[:200]}"
                results[f"batch {batch}, {mode}, {kind}"] = outcome
    return results
