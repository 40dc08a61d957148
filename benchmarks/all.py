"""One table: ours beside a naive form of each published procedure, written from the formulas, in one run.

    PYTHONPATH=src python benchmarks/all.py [--full | --quick] [--rows TEXT] [--json FILE] [--last FILE] [--threads 1]

Times are seconds of the processor, which other work on the machine changes little: of five runs the median and the
spread (the largest less the smallest, of the median), of one run where it takes 20 s or more. Each side says how often
a caption passes the encoder, how many systems are solved, and in which precision. Of the naive side, what is the same
for each concept or projection is run for some of them and counted as often as it occurs; with --full everything is run.
--quick runs all code on the smallest bases, and its figures mean nothing. With --last a ratio that is less than 0.8 of
the one in that file, or a row below 1, is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pandas as pd
import torch
from bases import NAMES, WIDTHS, Clock, people, small_base, wide_base
from diffusers import StableDiffusionPipeline

from resurgence.config.fields import build
from resurgence.config.stages import FinetuneConfig, SamplingConfig
from resurgence.diffusion.attention import projection_weights
from resurgence.diffusion.sampling import sample
from resurgence.diffusion.text import CAPTIONS, Encoder, fill
from resurgence.erasers import EraserData, eraser_config, method
from resurgence.erasers.gradient import trajectories
from resurgence.erasers.lora import Lora
from resurgence.erasers.mace import method as mace
from resurgence.erasers.mace.concept_loras import ConceptData, Training, train_concepts
from resurgence.erasers.mace.fusion import caption_moment, lora_sums
from resurgence.training.finetune import finetune

LONG = 20.0  # seconds from which one run is enough
REPEATS = 1 if "--quick" in sys.argv else 5  # runs otherwise
WORSE = 0.8  # of the last ratio


@dataclass(frozen=True)
class Size:
    """How much is run."""

    layers: int  # of the encoder
    widths: list[int]  # channels of the cross-attentions
    concepts: int
    captions: int  # templates
    sampled_concepts: int  # concepts that the naive MACE is run for
    sampled_widths: int  # cross-attentions that the naive closed forms are run for
    steps: int  # of a training
    images: int
    many: int  # concepts of the large closed forms
    dimension: int = 768  # of the embeddings


FULL = Size(12, WIDTHS, 10, 30, 10, 16, 20, 64, 100)
DEFAULT = Size(12, WIDTHS, 10, 30, 2, 4, 10, 64, 100)
QUICK = Size(1, [64, 64], 2, 2, 1, 1, 2, 2, 3, 64)


@dataclass(frozen=True)
class Side:
    """One procedure of a row."""

    work: str  # passes of captions, solves, precision
    run: Callable[[Clock], Any]


@dataclass(frozen=True)
class Result:
    """A line of the table; seconds of the processor."""

    row: str
    ours: str
    naive: str
    seconds: float
    naive_seconds: float | None
    ratio: float | None
    spread: float  # the larger of both sides
    note: str = ""


def measured(run: Callable[[Clock], Any]) -> tuple[float, float, Any]:
    """Median seconds, spread, and the result of the last run."""
    times: list[float] = []
    while not times or (len(times) < REPEATS and max(times) < LONG):
        clock, start = Clock(), time.process_time()
        result = run(clock)
        times.append(clock.total or time.process_time() - start)
    median = statistics.median(times)
    return median, (max(times) - min(times)) / median, result


def difference(ours: Any, other: Any) -> str:
    """The largest relative difference of two results: of edits in norm, of images in grey levels."""
    if isinstance(other, list):
        worst = max(int(abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(ours, other, strict=True))
        if worst > 1:
            raise SystemExit(f"images differ by {worst} grey levels; ours are wrong, or the pipeline has changed")
        return f"differ by {worst} of 255"
    if not isinstance(other, dict):
        return ""
    pairs = ((ours[f"unet.{name}.weight"].double(), w.double()) for name, w in other.items())
    return f"weights differ by {max(float((a - b).norm() / b.norm()) for a, b in pairs):.0e}"


def compare(row: str, ours: Side, other: Side | None, note: str = "") -> Result:
    """Time both sides."""
    seconds, spread, result = measured(ours.run)
    if other is None:
        return Result(row, ours.work, "", seconds, None, None, spread, note)
    slow, other_spread, expected = measured(other.run)
    notes = [part for part in (note, difference(result, expected)) if part]
    worst = max(spread, other_spread)
    return Result(row, ours.work, other.work, seconds, slow, slow / seconds, worst, "; ".join(notes))


def erase(pipe: Any, task: Any, name: str, **settings: Any) -> dict[str, torch.Tensor]:
    """The delta of a closed form that reads no corpus."""
    return method(name).erase(pipe, task, build(eraser_config(name), settings, "settings"), EraserData(), 0)


def random_loras(pipe: Any, concepts: Any) -> dict[str, Lora]:
    """Concept -> LoRA of rank 1."""
    weights = projection_weights(pipe.unet)
    one = {n: (torch.randn(1, w.shape[1]) / w.shape[1], torch.randn(len(w), 1)) for n, w in weights.items()}
    return dict.fromkeys(concepts, one)


def mace_closed_forms(pipe: Any, task: Any, moment: torch.Tensor, loras: Any, templates: Any, precision: str) -> Any:
    """Refinement, what it passes on to the fusion, and the fusion."""
    settings = {"captions": templates, "preserve_weight": 0.0, "lamb": 1.0, "encoder_precision": precision}
    cfg, data, sums = build(eraser_config("mace"), settings, "settings"), EraserData(prior=moment), {}
    refined, _ = mace.refine(pipe, task, cfg, data, read=lambda c, rows: sums.update({c: caption_moment(rows)}))
    shared = lora_sums((loras[c], sums[c]) for c in task.erase) | {mace.BITS: torch.tensor(int(precision[2:]))}
    return mace.fuse(pipe, task, cfg, EraserData(prior=moment, sums=shared), refined, loras)[0]


def mace_rows(pipe: Any, size: Size) -> Iterator[Result]:
    """The two closed forms of MACE, with both precisions of the encoder."""
    task, templates = people(size.concepts), CAPTIONS[: size.captions]
    moment = caption_moment(Encoder(pipe)(fill(templates, "an old clock")))
    loras, weights = random_loras(pipe, task.erase), some_weights(pipe, size)
    few = {concept: task.mapping[concept] for concept in task.erase[: size.sampled_concepts]}
    factors = (size.concepts / len(few), len(projection_weights(pipe.unet)) / len(weights))
    captions = size.concepts * size.captions
    run = lambda clock: naive.mace(pipe, weights, few, templates, 1e-4 * moment.float(), loras, 1.0, clock, factors)  # noqa: E731
    solves = 2 * len(projection_weights(pipe.unet))
    slow, spread, _ = measured(run)
    for precision in ("fp64", "fp32"):
        seconds, own, _ = measured(lambda _, p=precision: mace_closed_forms(pipe, task, moment, loras, templates, p))
        yield Result(
            f"MACE, closed forms of {size.concepts} concepts, encoder {precision}",
            f"{captions + size.captions} passes, 2 solves, sums fp64", f"{3 * captions} passes, {solves} solves, fp32",
            seconds, slow, slow / seconds, max(spread, own),
            f"naive: {len(few)} concepts, {len(weights)} projections run",
        )  # fmt: skip


def some_weights(pipe: Any, size: Size) -> dict[str, torch.Tensor]:
    """Projections that the naive procedures are run for, of all widths."""
    weights = projection_weights(pipe.unet)
    return dict(list(weights.items())[:: len(weights) // (2 * size.sampled_widths)])


def closed_rows(pipe: Any, size: Size) -> Iterator[Result]:
    """UCE in both forms, and RECE: bare names, as many retained as erased."""
    number, weights = size.concepts, some_weights(pipe, size)
    task, every = people(number, number), projection_weights(pipe.unet)
    wider, captions = len(every) / len(weights), 2 * number + 1
    noted = f"naive: {len(weights)} projections run"
    yield compare(
        f"UCE of 2024, {number} concepts",
        Side(f"{captions + 1} passes, 1 solve, fp64", lambda _: erase(pipe, task, "uce", destination="a person")),
        Side(f"{len(every) * (4 * number + 2)} passes, {len(every)} solves, fp32",
             lambda clock: naive.uce_first(pipe, weights, task.mapping, task.retain, clock, wider)), noted,
    )  # fmt: skip
    settings = {"tokens": "last", "keep_empty": False, "preserve_scale": 1.0}
    for precision in ("fp64", "fp32"):
        yield compare(
            f"UCE of 2025, {number} concepts, encoder {precision}",
            Side(f"{captions} passes without padding, 1 solve, sums fp64",
                 lambda _, p=precision: erase(pipe, task, "uce", encoder_precision=p, **settings)),
            Side(f"{captions} passes, {len(every)} solves, fp32",
                 lambda clock: naive.uce_2025(pipe, every, task.mapping, task.retain, clock)),
        )  # fmt: skip
    epochs = 3
    passes = len(every) * (4 * number + 2) + epochs * (3 * number + 1)
    yield compare(
        f"RECE, {number} concepts, {epochs} epochs",
        Side(f"{captions + 1} passes, {2 * epochs + 1} solves, fp64",
             lambda _: erase(pipe, task, "rece", epochs=epochs)),
        Side(f"{passes} passes, {(epochs + 1) * len(every) + epochs * number} solves, fp32",
             lambda clock: naive.rece(pipe, weights, task.mapping, task.retain, epochs, clock, wider)), noted,
    )  # fmt: skip


def many_rows(pipe: Any, size: Size, full: bool) -> Iterator[Result]:
    """Closed forms of many concepts, beside the encoder's arithmetic alone."""
    for templates in (("{}",), CAPTIONS[: size.captions]):
        if len(templates) > 1 and not full:
            pipe = wide_base(1, size.widths, size.dimension)
        task, layers = people(size.many), pipe.text_encoder.config.num_hidden_layers
        captions = [text for word in (*task.erase, "a person") for text in fill(templates, word)]
        encoder, _, _ = measured(
            lambda _, p=pipe, c=captions: sum(x.sum() for x in Encoder(p).groups([[t] for t in c]))
        )
        settings = {"captions": templates, "lamb": 1.0, "train_preserve_scale": 0.0}
        yield compare(
            f"MACE's refinement, {size.many} concepts, {len(templates)} captions, encoder of {layers} layers",
            Side(f"{len(captions)} passes, 1 solve, fp64",
                 lambda _, p=pipe, t=task, s=settings: erase(p, t, "mace-refinement", **s)),
            None, f"encoder alone {encoder:.1f} s",
        )  # fmt: skip


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
    """The sampler beside diffusers' pipeline, at the same batch."""
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

    yield compare(
        f"sampling, {size.images} images, 10 steps",
        Side(f"batch {size.images}, fp32", ours),
        Side(f"diffusers' pipeline, batch {size.images}, fp32", plain),
    )  # fmt: skip


def results(size: Size, full: bool) -> Iterator[tuple[str, Callable[[], Iterator[Result]]]]:
    """The groups of rows by name; each makes its base when it runs."""
    wide: list[Any] = []

    def large() -> Any:
        if not wide:
            wide.append(wide_base(size.layers, size.widths, size.dimension))
        return wide[0]

    def small() -> StableDiffusionPipeline:
        return small_base(size is QUICK)

    yield "mace", lambda: mace_rows(large(), size)
    yield "closed", lambda: closed_rows(large(), size)
    yield "many", lambda: many_rows(large(), size, full)
    yield "loras", lambda: lora_rows(small(), size)
    yield "esd", lambda: esd_rows(small(), size)
    yield "finetuning", lambda: finetuning_rows(small(), size)
    yield "sampling", lambda: sampling_rows(small(), size)


def line(result: Result) -> str:
    """A line of the table."""
    slow = "" if result.naive_seconds is None else f"{result.naive_seconds:.2f}"
    ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
    cells = (
        result.row,
        result.ours,
        result.naive,
        f"{result.seconds:.2f}",
        slow,
        ratio,
        f"{result.spread:.0%}",
        result.note,
    )
    return f"| {' | '.join(cells)} |"


def worse(table: list[Result], last: Mapping[str, float]) -> list[str]:
    """What a ratio below 1, or one that has fallen, says."""
    slow = [f"{r.row}: ratio {r.ratio:.2f} is below 1" for r in table if r.ratio is not None and r.ratio < 1]
    known = [(r, last[r.row]) for r in table if r.ratio is not None and r.row in last]
    return slow + [f"{r.row}: ratio {r.ratio:.2f}, last {old:.2f}" for r, old in known if r.ratio < WORSE * old]


def main() -> None:
    """Print the table line by line; write it as JSON; compare it with the last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--full", action="store_true", help="nothing sampled, and thirty captions of 100 concepts")
    extent.add_argument("--quick", action="store_true", help="the smallest bases, one run")
    parser.add_argument("--rows", nargs="*", default=[], help="groups of rows; default: all")
    parser.add_argument("--json", type=Path, help="where the table is written")
    parser.add_argument("--last", type=Path, help="a table of an earlier run, whose ratios are compared")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    size = FULL if args.full else QUICK if args.quick else DEFAULT
    groups = dict(results(size, args.full))
    if unknown := set(args.rows) - set(groups):
        raise SystemExit(f"--rows {sorted(unknown)[0]!r}: there is no such group; known: {', '.join(groups)}")
    print(f"{args.threads} threads, torch {torch.__version__}, {os.cpu_count()} processors")
    print("| row | ours | naive | ours, CPU s | naive, CPU s | ratio | spread | |\n|---|---|---|---|---|---|---|---|")
    table = []
    for name in args.rows or groups:
        for result in groups[name]():
            table.append(result)
            print(line(result), flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(result) for result in table], indent=1))
    last = {r["row"]: r["ratio"] for r in json.loads(args.last.read_text()) if r["ratio"]} if args.last else None
    if last is not None and (problems := worse(table, last)):
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
