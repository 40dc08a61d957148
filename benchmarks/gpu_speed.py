"""Speed of a GPU and share of its peak: the parts sampling, training and scoring of benchmarks/on_gpu.py."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
import yaml
from diffusers import StableDiffusionPipeline
from gpu_checks import exact
from gpu_machine import PEAK, Machine, big_pipeline, timed, unet_inputs
from PIL import Image

from resurgence.diffusion.image_sets import decode_images, png
from resurgence.diffusion.sampling import decode, initial_noise, latent_shape
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.mace.concept_loras import ConceptData, Training, train_concepts
from resurgence.scorers.clip import ClipScorer
from resurgence.scorers.inception import clean_resize
from resurgence.training.lora import prepare, restore

WORK = yaml.safe_load((Path(__file__).parent.parent / "workflow/rates.yaml").read_text())["work"]["sd14"]  # TFLOP
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
NO_TIME = "no time left"


class Mode(NamedTuple):
    """A way to sample."""

    kind: str  # fp32, tf32, fp16, bf16
    channels_last: bool = False
    fill: bool = True
    exact: bool = True
    compiled: bool = False
    batches: tuple[int, ...] = (16,)


MODES = {
    "as studies/sd14.yaml": Mode("fp16"),
    "no fill": Mode("fp16", fill=False),
    "channels_last": Mode("fp16", channels_last=True, fill=False, batches=(16, 64)),
    "channels_last, not exact": Mode("fp16", channels_last=True, exact=False),
    "channels_last, bf16": Mode("bf16", channels_last=True, fill=False),
    "fp32": Mode("fp32"),
    "channels_last, tf32": Mode("tf32", channels_last=True, fill=False),
    "channels_last, compiled": Mode("fp16", channels_last=True, fill=False, compiled=True),
}


def rates(machine: Machine, kind: str, operations: float, seconds: float) -> dict[str, float]:
    """Operations a second, and the share of the peak; nothing for tiny models, whose operations are not counted."""
    if machine.tiny:
        return {}
    rate = operations / seconds
    return {"TFLOP/s": round(rate / 1e12, 1), "of peak": round(rate / PEAK[kind], 3)}


def sampling_speed(
    machine: Machine, pipe: StableDiffusionPipeline, mode: Mode, batch: int, steps: int = 4
) -> dict[str, Any]:
    """Seconds an image of 50 steps, from a few steps and one decoding."""
    dtype = HALF.get(mode.kind, torch.float32)
    latents, _, text = unet_inputs(machine, pipe, 2 * batch, dtype)
    step = torch.tensor(500)  # on the CPU, as in the sampler

    @torch.no_grad()
    def denoise() -> None:
        for _ in range(steps):
            pipe.unet(latents, step, text, return_dict=False)

    began = time.perf_counter()
    seconds, gib = timed(machine, denoise, 2)
    final = torch.randn(batch, *latent_shape(pipe, None), device=machine.device)
    decoding, decoding_gib = timed(machine, lambda: decode(pipe, final), 1)
    return {
        "s an image": round((50 * seconds / steps + decoding) / batch, 4),
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
        if machine.left < (90 if mode.compiled else 20):
            results[name] = NO_TIME
            continue
        pipe = big_pipeline(machine, HALF.get(mode.kind, torch.float32))
        if mode.channels_last:
            pipe.unet.to(memory_format=torch.channels_last)
            pipe.vae.to(memory_format=torch.channels_last)
        if mode.compiled:
            pipe.unet.compile()
        for batch in (2,) if machine.tiny else mode.batches:
            if mode.exact:
                with exact(machine, fill=mode.fill, tf32=mode.kind == "tf32"):
                    results[f"{name}, batch {batch}"] = sampling_speed(machine, pipe, mode, batch)
            else:
                results[f"{name}, batch {batch}"] = sampling_speed(machine, pipe, mode, batch)
        del pipe
        machine.free()
    noise, _ = timed(machine, lambda: initial_noise(range(16), (4, 64, 64)))
    return results | {"noise of 16 images, ms": round(1e3 * noise, 2)}


class Step(NamedTuple):
    """A kind of training step."""

    algorithm: str  # lora, full
    batch: int
    kind: str
    checkpointing: bool = False
    strict: bool = False
    fill: bool = True


STEPS = (
    Step("lora", 1, "fp32"),
    Step("lora", 1, "bf16"),
    Step("lora", 4, "fp32"),
    Step("lora", 4, "tf32"),
    Step("lora", 4, "bf16"),
    Step("lora", 1, "fp32", fill=False),
    Step("lora", 4, "fp32", strict=True, fill=False),
    Step("full", 8, "fp16", checkpointing=True),
    Step("full", 16, "fp32"),  # the memory of a step of SalUn and EraseDiff, apart from their copies of the weights
)


def train_step(machine: Machine, pipe: StableDiffusionPipeline, step: Step) -> dict[str, Any]:
    """Time of one training step."""
    full = step.algorithm == "full"
    before = {name: p.detach().cpu() for name, p in pipe.unet.state_dict().items()} if full else {}
    trainable = prepare(pipe.unet, None if full else 4, 0, step.checkpointing)
    try:
        optimiser = torch.optim.AdamW(trainable.values(), 1e-5, fused=True)
        average = {name: p.detach().clone() for name, p in trainable.items()} if full else {}
        inputs, half = unet_inputs(machine, pipe, step.batch, torch.float32), HALF.get(step.kind)

        def run() -> None:
            with torch.autocast(machine.kind, half, enabled=half is not None):
                loss = (pipe.unet(*inputs, return_dict=False)[0].float() - inputs[0]).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable.values(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            for name, p in average.items():
                p.lerp_(trainable[name].detach(), 0.001)

        with exact(machine, strict=step.strict, fill=step.fill, tf32=step.kind == "tf32"):
            seconds, gib = timed(machine, run)
        work = WORK["lora" if not full else "full"] + (WORK["unet"] if step.checkpointing else 0)
        return {
            "ms": round(1e3 * seconds, 1),
            "samples/s": round(step.batch / seconds, 2),
            **rates(machine, step.kind, step.batch * work * 1e12, seconds),
            "GiB": round(gib, 1),
        }
    finally:
        restore(pipe.unet, before)
        machine.free()


def mace_step(machine: Machine, pipe: StableDiffusionPipeline, concepts: int) -> dict[str, Any]:
    """Seconds of a step that trains the LoRAs of some concepts at once: the difference of two lengths."""
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
    for steps in (2, 7):
        began = time.perf_counter()
        cfg = Training(steps, 1e-4, 1, 0.01, 1.0, "window", concepts)
        train_concepts(pipe.unet, pipe.scheduler.alphas_cumprod, data, cfg, 0)
        machine.synchronise()
        seconds[steps] = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() / 2**30 if machine.cuda else 0.0
    return {"s a step": round((seconds[7] - seconds[2]) / 5, 4), "GiB": round(peak, 1)}


def training(machine: Machine) -> dict[str, Any]:
    """Steps of the fine-tunes, of MACE and of an eraser's walk, at the size of SD 1.4."""
    results: dict[str, Any] = {}
    pipe = big_pipeline(machine)
    for step in STEPS:
        name = ", ".join(f"{key} {value}" for key, value in step._asdict().items())
        try:
            results[name] = train_step(machine, pipe, step) if machine.left > 25 else NO_TIME
        except Exception as error:
            results[name] = f"{type(error).__name__}: {str(error)[:200]}"
    concepts = 2 if machine.tiny else 10
    results[f"mace, {concepts} concepts"] = mace_step(machine, pipe, concepts) if machine.left > 25 else NO_TIME
    if machine.left > 20:
        student, inputs = Student(pipe, "xattn"), unet_inputs(machine, pipe, 2, torch.float32)
        for kind in ("fp32", "bf16"):
            half = HALF.get(kind)
            cast = torch.autocast(machine.kind, half, enabled=half is not None, cache_enabled=False)
            with torch.no_grad(), exact(machine), cast:
                seconds, _ = timed(machine, lambda: student.raw(student.weights, *inputs), 5, 2)
            results[f"esd, a pass of the walk, 2 samples, {kind}: ms"] = round(1e3 * seconds, 1)
    return results


def scoring(machine: Machine) -> dict[str, Any]:
    """Milliseconds an image of PNG, of the resizing of clean-fid, and of CLIP with random weights."""
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
