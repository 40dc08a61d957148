"""The sampler compared with calls of diffusers' pipeline for one image each: seconds an image, and their ratio.

    PYTHONPATH=src python benchmarks/bench_sampling.py [--base DIR] [--device auto] [--images 24] [--steps 10]

Without --base a random pipeline of the miniature's sizes is built, which takes as long as the trained one. Both sample
the same prompts with the same seeds; the benchmark fails if images differ by more than one grey level.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionPipeline

from resurgence.diffusion.device import resolve_device
from resurgence.diffusion.pipeline import load_base
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.diffusion.unet import ddim_of


def random_pipeline() -> StableDiffusionPipeline:
    """A random pipeline with the miniature's latents, widths and heads."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from tiny import make_pipeline

    return make_pipeline(
        cross_attention_dim=128, heads=4, block_out_channels=(64, 128, 128), prediction_type="v_prediction",
        max_length=24, vae_channels=(16, 32, 64, 64), latent_channels=12,
    )  # fmt: skip


def naive(pipe: StableDiffusionPipeline, rows: pd.DataFrame, cfg: SamplingConfig) -> list[np.ndarray]:
    """One call of the pipeline for each image."""
    options = {"num_inference_steps": cfg.steps, "guidance_scale": cfg.guidance}
    images = []
    for prompt, seed in zip(rows["prompt"], rows["seed"], strict=True):
        generator = torch.Generator().manual_seed(int(seed))
        images.append(np.asarray(pipe(prompt, generator=generator, **options).images[0]))
    return images


def ours(pipe: StableDiffusionPipeline, rows: pd.DataFrame, cfg: SamplingConfig) -> list[np.ndarray]:
    """The sampler of the study."""
    return [np.asarray(image) for _, image in sorted(sample(pipe, rows, cfg), key=lambda pair: pair[0])]


def timed(function: Callable[[], list[np.ndarray]]) -> tuple[list[np.ndarray], float]:
    """Result of a call, and its seconds."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def main() -> None:
    """Print the seconds an image of both, their ratio and the largest difference of a pixel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    device = resolve_device(args.device)
    pipe = load_base(args.base, device) if args.base else random_pipeline().to(device)
    pipe.scheduler = ddim_of(pipe.scheduler)
    prompts = ["a photo of the ship", "a photo of the dog", "a sketch of the queen", "an oil painting of the cat"]
    rows = pd.DataFrame({"prompt": [prompts[i % 4] for i in range(args.images)], "seed": range(args.images)})
    cfg = SamplingConfig(steps=args.steps, guidance=4.0, batch=64)
    ours(pipe, rows.head(2), SamplingConfig(steps=1, batch=2))  # warm up
    theirs, slow = timed(lambda: naive(pipe, rows, cfg))
    mine, fast = timed(lambda: ours(pipe, rows, cfg))
    worst = max(int(abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(theirs, mine, strict=True))
    print(f"{device}, {args.images} images of {mine[0].shape[0]} pixels, {args.steps} steps")
    print(f"one at a time: {slow / args.images:.4f} s an image")
    print(f"batches of {cfg.batch}: {fast / args.images:.4f} s an image")
    print(f"ratio: {slow / fast:.2f} (largest difference of a pixel: {worst} of 255)")
    if worst > 1:
        raise SystemExit("the images differ by more than one grey level")


if __name__ == "__main__":
    main()
