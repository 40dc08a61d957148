"""Speed of a GPU, share of its peak and profile: parts sampling, profile, training and scoring of on_gpu.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from gpu_machine import NO_TIME, RATES, Machine, arithmetic, big_pipeline, rates, timed, unet_inputs
from PIL import Image

from resurgence.diffusion.image_sets import decode_images, png
from resurgence.diffusion.sampling import decode, initial_noise, latent_shape
from resurgence.diffusion.speed import SPEEDS, apply_speed, fast_training
from resurgence.diffusion.unet import predict
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.mace.concept_loras import ConceptData, Training, train_concepts
from resurgence.scorers.inception import clean_resize
from resurgence.training.lora import prepare, restore

WORK = RATES["work"]["sd14"]  # TFLOP
STEPS_OF_MACE = 50  # for each concept
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Mode(NamedTuple):
    """A way to sample: `base.precision`, `base.speed`, `base.deterministic`, `sampling.batch`."""

    kind: str  # fp32, tf32, fp16, bf16
    speed: str = "eager"
    deterministic: bool = True
    batch: int = 16


MODES = {  # the most informative first
    "default": Mode("fp16"),
    "any kernel": Mode("fp16", deterministic=False),
    "channels-last": Mode("fp16", "channels-last"),
    "graphs": Mode("fp16", "graphs"),
    "channels-last, batch 64": Mode("fp16", "channels-last", batch=64),
    "channels-last, bf16": Mode("bf16", "channels-last"),
    "channels-last, tf32": Mode("tf32", "channels-last"),
    "fp32": Mode("fp32"),
    "compiled": Mode("fp16", "compiled"),
}
COMPILING = 100  # seconds that compiling the UNet may take


def sampling_speed(machine: Machine, pipe: StableDiffusionPipeline, mode: Mode, steps: int = 4) -> dict[str, Any]:
    """Images of 50 steps a second, from a few steps and one decoding."""
    batch = 2 if machine.tiny else mode.batch
    latents, t, text = unet_inputs(machine, pipe, 2 * batch, pipe.unet.dtype)

    @torch.no_grad()
    def denoise() -> None:
        for _ in range(steps):
            predict(pipe.unet, latents, t, text)

    began = time.perf_counter()
    seconds, gib = timed(machine, denoise, 2, 2)
    final = torch.randn(batch, *latent_shape(pipe, None), device=machine.device)
    decoding, decoding_gib = timed(machine, lambda: decode(pipe, final), 1)
    return {
        "images/s": round(batch / (50 * seconds / steps + decoding), 3),
        "ms a step": round(1e3 * seconds / steps, 1),
        "decoding, s an image": round(decoding / batch, 4),
        **rates(machine, mode.kind, 2 * batch * steps * WORK["unet"] * 1e12, seconds),
        "GiB": round(max(gib, decoding_gib), 1),
        "s until then": round(time.perf_counter() - began, 1),
    }


def sampling(machine: Machine) -> dict[str, Any]:
    """Each mode of the sampler at the size of SD 1.4."""
    results: dict[str, Any] = {}
    for name, mode in MODES.items():
        if machine.left < (COMPILING if SPEEDS[mode.speed].compile else 20):
            results[name] = NO_TIME
            continue
        pipe = big_pipeline(machine, HALF.get(mode.kind, torch.float32))
        apply_speed(pipe.unet, SPEEDS[mode.speed], pipe.vae)
        with recorded(results, name), arithmetic(machine, mode.kind, mode.deterministic):
            results[name] = sampling_speed(machine, pipe, mode)
        del pipe
        machine.free()
    noise, _ = timed(machine, lambda: initial_noise(range(16), (4, 64, 64)))
    return results | {"noise of 16 images, ms": round(1e3 * noise, 2)}


def profile(machine: Machine, longest: int = 8) -> dict[str, Any]:
    """Where the time of the UNet's passes in sampling goes, as jobs run by default and in channels-last.

    Of each: the share of the time in which kernels run (the rest waits for launches), and the longest kernels with
    their shares of all kernel time. On a CPU operations take the place of kernels.
    """
    results: dict[str, Any] = {}
    kind = torch.autograd.DeviceType.CUDA if machine.cuda else torch.autograd.DeviceType.CPU
    activity = torch.profiler.ProfilerActivity.CUDA if machine.cuda else torch.profiler.ProfilerActivity.CPU
    for name in ("default", "channels-last"):
        mode = MODES[name]
        pipe = big_pipeline(machine, HALF[mode.kind] if machine.cuda else torch.float32)
        apply_speed(pipe.unet, SPEEDS[mode.speed])
        inputs = unet_inputs(machine, pipe, 2 if machine.tiny else 2 * mode.batch, pipe.unet.dtype)
        with torch.no_grad(), arithmetic(machine, mode.kind, mode.deterministic):
            predict(pipe.unet, *inputs)
            machine.synchronise()
            with torch.profiler.profile(activities=[activity]) as profiler:
                began = time.perf_counter()
                for _ in range(3):
                    predict(pipe.unet, *inputs)
                machine.synchronise()
                seconds = time.perf_counter() - began
        events = [event for event in profiler.key_averages() if event.device_type == kind]
        times = {e.key[:100]: (e.self_device_time_total if machine.cuda else e.self_cpu_time_total) for e in events}
        total = sum(times.values())  # microseconds
        top = sorted(times, key=times.__getitem__, reverse=True)[:longest]
        shares = {key: round(times[key] / total, 3) for key in top}
        results[name] = {"kernels run": round(total / 1e6 / seconds, 3), "longest": shares}
        del pipe
        machine.free()
    return results


@contextmanager
def recorded(results: dict[str, Any], name: str) -> Iterator[None]:
    """Record an error in the block, memory included, as the result of this name."""
    try:
        yield
    except Exception as error:
        results[name] = f"{type(error).__name__}: {str(error)[:200]}"


class Step(NamedTuple):
    """A kind of training step."""

    algorithm: str  # lora, full
    batch: int
    kind: str
    passes: int = 1
    checkpointing: bool = False
    deterministic: bool = True
    speed: str = "eager"


STEPS = {  # the most informative first
    "lora, 1 x 4": Step("lora", 1, "fp32", 4),
    "lora, 4 x 1": Step("lora", 4, "fp32"),
    "lora, 4 x 1, any kernel": Step("lora", 4, "fp32", deterministic=False),
    "lora, 4 x 1, tf32": Step("lora", 4, "tf32"),
    "lora, 4 x 1, bf16": Step("lora", 4, "bf16"),
    "full, 8 x 4, fp16, checkpointing": Step("full", 8, "fp16", 4, checkpointing=True),
    "full, 8 x 4, any kernel": Step("full", 8, "fp16", 4, checkpointing=True, deterministic=False),
    "lora, 4 x 1, bf16, compiled": Step("lora", 4, "bf16", speed="compiled"),
}


def train_step(machine: Machine, pipe: StableDiffusionPipeline, step: Step) -> dict[str, Any]:
    """Optimiser steps a second of a fine-tune; without the draws, which are computed meanwhile."""
    full = step.algorithm == "full"
    before = {name: p.detach().cpu() for name, p in pipe.unet.state_dict().items()} if full else {}
    trainable = prepare(pipe.unet, None if full else 4, 0, step.checkpointing)
    try:
        optimiser = torch.optim.AdamW(trainable.values(), 1e-5, fused=True)
        average = {name: p.detach().clone() for name, p in trainable.items()} if full else {}
        inputs, half = unet_inputs(machine, pipe, step.batch, torch.float32), HALF.get(step.kind)

        def run() -> None:
            for _ in range(step.passes):
                with torch.autocast(machine.kind, half, enabled=half is not None):
                    loss = (predict(pipe.unet, *inputs) - inputs[0]).square().mean()
                loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable.values(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            for name, p in average.items():
                p.lerp_(trainable[name].detach(), 0.001)

        with arithmetic(machine, step.kind, step.deterministic), fast_training(pipe.unet, SPEEDS[step.speed]):
            seconds, gib = timed(machine, run)
        work = WORK["lora" if not full else "full"] + (WORK["unet"] if step.checkpointing else 0)
        samples = step.batch * step.passes
        return {
            "steps/s": round(1 / seconds, 3),
            "samples/s": round(samples / seconds, 2),
            **rates(machine, step.kind, samples * work * 1e12, seconds),
            "GiB": round(gib, 1),
        }
    finally:
        restore(pipe.unet, before)
        machine.free()


def mace_step(machine: Machine, pipe: StableDiffusionPipeline, concepts: int) -> dict[str, Any]:
    """Concepts a second, whose LoRAs train at once: a step is the difference of two lengths."""
    side, width = pipe.unet.config.sample_size, pipe.unet.config.cross_attention_dim
    device = {"device": machine.device}
    data = [
        ConceptData(
            f"c{k}",
            torch.randn(2, 4, side, side, **device),
            torch.ones(2, 1, 8 * side, 8 * side, dtype=torch.bool, **device),
            torch.randn(2, 77, width, **device),
            torch.ones(2, 77, dtype=torch.bool, **device),
        )
        for k in range(concepts)
    ]
    seconds = {}
    machine.reset_peak()
    for steps in (2, 7):
        began = time.perf_counter()
        cfg = Training(steps, 1e-4, 1, 0.01, 1.0, "window", concepts)
        train_concepts(pipe.unet, pipe.scheduler.alphas_cumprod, data, cfg, 0)
        machine.synchronise()
        seconds[steps] = time.perf_counter() - began
    step = (seconds[7] - seconds[2]) / 5
    return {
        "concepts/s": round(concepts / (STEPS_OF_MACE * step), 3),
        "s a step": round(step, 4),
        "GiB": round(machine.peak, 1),
    }


def training(machine: Machine) -> dict[str, Any]:
    """Steps of the fine-tunes, of MACE and of an eraser's walk, at the size of SD 1.4."""
    results: dict[str, Any] = {}
    pipe = big_pipeline(machine)
    for name, step in STEPS.items():
        if machine.left < (COMPILING if SPEEDS[step.speed].compile else 25):
            results[name] = NO_TIME
            continue
        with recorded(results, name):
            results[name] = train_step(machine, pipe, step)
    concepts = 2 if machine.tiny else 10
    results[f"mace, {concepts} concepts"] = mace_step(machine, pipe, concepts) if machine.left > 25 else NO_TIME
    if machine.left > 20:
        student, inputs = Student(pipe, "xattn"), unet_inputs(machine, pipe, 2, torch.float32)
        for kind in ("fp32", "bf16"):
            half = HALF.get(kind)
            cast = torch.autocast(machine.kind, half, enabled=half is not None, cache_enabled=False)
            with torch.no_grad(), arithmetic(machine), cast:
                seconds, _ = timed(machine, lambda: student.raw(student.weights, *inputs), 5, 2)
            results[f"esd, a pass of the walk, 2 samples, {kind}: ms"] = round(1e3 * seconds, 1)
    return results


def scoring(machine: Machine) -> dict[str, Any]:
    """Milliseconds an image of PNG, of the resizing of clean-fid, and of CLIP with random weights."""
    import open_clip  # not at the top: the other parts run without it

    from resurgence.scorers.clip import ClipScorer

    draw = np.random.default_rng(0)
    noise = [Image.fromarray((draw.random((32, 32, 3)) * 255).astype(np.uint8)) for _ in range(16)]
    data: list[bytes] = []

    def write() -> None:
        data[:] = [png(image.resize((512, 512), Image.Resampling.BICUBIC)) for image in noise]

    results = {"PNG, ms an image": timed(machine, write, 1)[0] / 16}
    pixels = decode_images(data * 4, Path("images"))
    results["decoding in threads, ms an image"] = (
        timed(machine, lambda: decode_images(data * 4, Path("images")), 1, 0)[0] / 64
    )
    results["clean_resize, ms an image"] = timed(machine, lambda: clean_resize(pixels[:16]), 1, 0)[0] / 16
    name = "ViT-B-32-quickgelu"
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=None, device=machine.device)
    scorer = ClipScorer(model.eval(), preprocess, open_clip.get_tokenizer(name), machine.device)
    results["CLIP features, ms an image"] = timed(machine, lambda: scorer.features(pixels), 2)[0] / len(pixels)
    batch = torch.randn(64, 3, 224, 224, device=machine.device)
    with torch.no_grad():
        results["of it on the device, ms an image"] = timed(machine, lambda: model.encode_image(batch))[0] / 64
    return {key: round(1e3 * seconds, 3) for key, seconds in results.items()}
