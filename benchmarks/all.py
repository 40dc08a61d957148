"""One table: ours beside a naive form of each published procedure, written from the formulas, in one run.

    PYTHONPATH=src python benchmarks/all.py [--full | --quick] [--rows TEXT] [--json FILE] [--last FILE] [--threads 1]

Times are seconds of the processor, which other work on the machine changes little: of five runs the median and the
spread (the largest less the smallest, of the median), of one run where it takes 20 s or more. Each side says how often
a caption passes the encoder, how many systems are solved, and in which precision. Of the naive side, what is the same
for each concept or projection is run for some of them and counted as often as it occurs; with --full everything is run.
--quick runs all code on the smallest bases, and its figures mean nothing.

A row says its limit, and so does one that misses it: no ratio below 1, MACE 3 and 5 times as fast, closed forms of 100
concepts in a minute. Ends with 3 if a row misses its limit, with 4 if a ratio is less than 0.8 of the one in --last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pandas as pd
import torch
from bases import NAMES, Clock, people, small_base, wide_base
from closed_rows import caption_rows, closed_rows, mace_rows, many_rows, stage_one_rows
from comparison import DEFAULT, FULL, HEAD, QUICK, Result, Side, Size, compare, fallen, line, misses, unmatched
from diffusers import StableDiffusionPipeline

from resurgence.config.fields import build
from resurgence.config.stages import FinetuneConfig, SamplingConfig
from resurgence.diffusion.sampling import sample
from resurgence.diffusion.text import Encoder
from resurgence.erasers import EraserData, eraser_config, method
from resurgence.erasers.gradient import trajectories
from resurgence.erasers.mace.concept_loras import ConceptData, Training, train_concepts
from resurgence.training.finetune import finetune
from resurgence.workflow.resources import ALLOCATOR

MISSED, FELL = 3, 4  # exit statuses
SAMPLING = 1.25  # times as fast as diffusers' pipeline, in a job on a CPU


def lora_rows(pipe: StableDiffusionPipeline, size: Size) -> Iterator[Result]:
    """The LoRAs of MACE; their captions are embedded before, once."""
    names = NAMES[: size.concepts]
    captions = {name: [f"a photo of the {i}"] * 4 for i, name in enumerate(names)}
    side, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    shape = (1, channels, side, side)
    texts = {name: Encoder(pipe, torch.float32)(captions[name]) for name in names}
    length = pipe.tokenizer.model_max_length
    tokens, masks = torch.ones(4, length, dtype=torch.bool), torch.ones(1, 1, 8 * side, 8 * side, dtype=torch.bool)
    latents = torch.randn(shape)
    concepts = [ConceptData(name, latents, masks, text, tokens) for name, text in texts.items()]
    settings = Training(size.steps, 1e-4, 1, 0.01, 1.0, "window", 10)
    yield compare(
        f"MACE, LoRAs of {len(names)} concepts, {size.steps} steps",
        Side("no pass in a step, 10 concepts a batch, fp32",
             lambda _: train_concepts(pipe.unet, pipe.scheduler.alphas_cumprod, concepts, settings, 0)),
        Side("1 pass a step, batch 1, a copy of the UNet a concept, fp32",
             lambda _: naive.mace_loras(pipe, captions, latents, masks, tokens, size.steps)),
    )  # fmt: skip


def esd_rows(pipe: StableDiffusionPipeline, size: Size) -> Iterator[Result]:
    """ESD with x_t of the student: walks of the same lengths in both."""
    ddim_steps, stops = 10, trajectories.stops
    ends = [(3 * step) % ddim_steps for step in range(size.steps)]
    cfg = build(eraser_config("esd"), {"steps": size.steps, "ddim_steps": ddim_steps, "x_t": "student"}, "settings")
    task = people(1)

    def ours(_: Clock) -> None:
        lengths = iter(ends)
        trajectories.stops = lambda draws, steps, timesteps: ([next(lengths) for _ in draws], [0] * len(draws))
        try:
            method("esd").erase(pipe, task, cfg, EraserData(), 0)
        finally:
            trajectories.stops = stops

    yield compare(
        f"ESD-x, x_t student, {size.steps} steps",
        Side(f"2 passes, UNet {2 * sum(ends) + 3 * size.steps}, fp32", ours),
        Side(f"{2 * size.steps} passes, UNet {2 * sum(ends) + 3 * size.steps}, fp32",
             lambda _: naive.esd(pipe, task.erase[0], ends, ddim_steps, cfg.guidance)),
    )  # fmt: skip


def finetuning_rows(pipe: StableDiffusionPipeline, size: Size) -> Iterator[Result]:
    """A LoRA of rank 4 beside the step of diffusers' script."""
    pixels = pipe.unet.config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    images, batch = torch.rand(8, 3, pixels, pixels) * 2 - 1, 4
    captions = [f"a photo of the {i}" for i in range(8)]
    cfg = FinetuneConfig(steps=size.steps, batch=batch, accumulation=1, horizontal_flip=False)

    def ours(_: Clock) -> None:
        with tempfile.TemporaryDirectory() as folder:
            finetune(pipe, images, captions, cfg, 0, Path(folder))

    yield compare(
        f"LoRA fine-tuning, {size.steps} steps of {batch} images",
        Side("8 passes, VAE 8 images, fp32", ours),
        Side(f"{batch * size.steps} passes, VAE {batch * size.steps} images, fp32",
             lambda _: naive.lora_finetuning(pipe, images, captions, size.steps, batch)),
    )  # fmt: skip


def sampling_rows(pipe: StableDiffusionPipeline, size: Size) -> Iterator[Result]:
    """The sampler beside diffusers' pipeline, at the same batch; and once more as jobs on a CPU run it."""
    subjects = ("ship", "dog", "queen", "cat")
    prompts = [f"a photo of the {subjects[i % 4]}" for i in range(size.images)]
    rows = pd.DataFrame({"prompt": prompts, "seed": range(size.images)})
    cfg = SamplingConfig(steps=10, guidance=4.0, batch=size.images)

    def ours(_: Clock) -> list[np.ndarray]:
        return [np.asarray(image) for _, image in sorted(sample(pipe, rows, cfg), key=lambda pair: pair[0])]

    def plain(_: Clock) -> list[np.ndarray]:
        generators = [torch.Generator().manual_seed(seed) for seed in range(size.images)]
        return list(
            map(np.asarray, pipe(prompts, generator=generators, num_inference_steps=10, guidance_scale=4.0).images)
        )

    result = compare(
        f"sampling, {size.images} images, 10 steps",
        Side(f"batch {size.images}, fp32", ours),
        Side(f"diffusers' pipeline, batch {size.images}, fp32", plain),
    )  # fmt: skip
    yield result
    if "GLIBC_TUNABLES" in os.environ:  # which decides before the start of a process
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--rows", "sampling", "--json", f"{folder}/job.json"]
        command += ["--threads", str(torch.get_num_threads())]
        environment = os.environ | {"GLIBC_TUNABLES": ALLOCATOR}
        done = subprocess.run(command + ["--quick"] * (size is QUICK), env=environment, capture_output=True, text=True)
        if done.returncode not in (0, MISSED):
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        (job,) = json.loads(Path(f"{folder}/job.json").read_text())
    own, spread = job["seconds"], max(job["spread"], result.spread)
    yield replace(
        result, row=f"{result.row}, with the allocator of jobs", ours=f"{result.ours}, large pages", seconds=own,
        ratio=result.naive_seconds / own, spread=spread, least=SAMPLING,
    )  # fmt: skip


def results(size: Size) -> Iterator[tuple[str, Callable[[], Iterator[Result]]]]:
    """The groups of rows by name; each makes its base when it runs."""
    wide: list[Any] = []

    def large() -> Any:
        if not wide:
            wide.append(wide_base(size.layers, size.widths, size.dimension))
        return wide[0]

    def small() -> StableDiffusionPipeline:
        return small_base(size is QUICK)

    yield "mace", lambda: mace_rows(large(), size)
    yield "stage-1", lambda: stage_one_rows(size)
    yield "closed", lambda: closed_rows(large(), size)
    yield "many", lambda: many_rows(large(), size)
    yield "captions", lambda: caption_rows(size)
    yield "loras", lambda: lora_rows(small(), size)
    yield "esd", lambda: esd_rows(small(), size)
    yield "finetuning", lambda: finetuning_rows(small(), size)
    yield "sampling", lambda: sampling_rows(small(), size)


def status(table: list[Result], last: dict[str, float], is_judged: bool) -> int:
    """The exit status; says which rows miss their limits, which ratios are below the last ones, and which rows were
    not compared with them."""
    missed, fell = misses(table) if is_judged else [], fallen(table, last)
    for said in (*missed, *fell, *(unmatched(table, last) if last else ())):
        print(said, file=sys.stderr)
    return FELL if fell else MISSED if missed else 0


def main() -> int:
    """Print the table line by line; write it as JSON; judge it, and compare it with the last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--full", action="store_true", help="nothing sampled, and thirty captions of 100 concepts")
    extent.add_argument("--quick", action="store_true", help="the smallest bases, one run; limits are not judged")
    parser.add_argument("--rows", nargs="*", default=[], help="groups of rows; default: all")
    parser.add_argument("--json", type=Path, help="where the table is written")
    parser.add_argument("--last", type=Path, help="a table of an earlier run, whose ratios are compared")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    groups = dict(results(FULL if args.full else QUICK if args.quick else DEFAULT))
    if unknown := set(args.rows) - set(groups):
        raise SystemExit(f"--rows {sorted(unknown)[0]!r}: there is no such group; known: {', '.join(groups)}")
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    last = {r["row"]: r["ratio"] for r in json.loads(args.last.read_text()) if r["ratio"]} if args.last else {}
    print(f"{args.threads} threads, torch {torch.__version__}, {os.cpu_count()} processors")
    print(HEAD)
    table = []
    for name in args.rows or groups:
        for result in groups[name]():
            table.append(result)
            print(line(result, not args.quick), flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(result) for result in table], indent=1))
    return status(table, last, not args.quick)


if __name__ == "__main__":
    sys.exit(main())
