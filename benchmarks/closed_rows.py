"""The rows of benchmarks/all.py that are closed forms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import naive
import torch
from bases import people, random_loras, wide_base
from comparison import Result, Side, Size, compare, measured

from resurgence.config.fields import build
from resurgence.diffusion.attention import projection_weights
from resurgence.diffusion.text import CAPTIONS, Encoder, fill
from resurgence.erasers import EraserData, eraser_config, method
from resurgence.erasers.mace import method as mace
from resurgence.erasers.mace.fusion import caption_moment, lora_sums

UCE_2025 = {"tokens": "last", "keep_empty": False, "preserve_scale": 1.0}  # of UCE, its later script
AT_LEAST = {"fp64": 3.0, "fp32": 5.0}  # encoder -> times as fast as the naive MACE
MOST = 60.0  # seconds of a closed form of many concepts with one caption each
OVERHEAD = 1.1  # with all captions: of the encoder's arithmetic
OFFICIAL = 71.1  # seconds of the authors' first stage of ten concepts, in float64, on another machine
SIDE = 2048  # of the matrices whose product says how fast a machine is


def erase(
    pipe: Any, task: Any, name: str, prior: torch.Tensor | None = None, **settings: Any
) -> dict[str, torch.Tensor]:
    """The delta of a closed form, of a corpus with this second moment or of none."""
    data = EraserData(prior=prior)
    return method(name).erase(pipe, task, build(eraser_config(name), settings, "settings"), data, 0)


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
            f"naive: {len(few)} concepts, {len(weights)} projections run", AT_LEAST[precision],
        )  # fmt: skip


@contextmanager
def in_float64(pipe: Any) -> Iterator[None]:
    """New tensors, the encoder and the projections are in float64."""
    torch.set_default_dtype(torch.float64)
    pipe.text_encoder.double()
    pipe.unet.double()
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def stage_one_rows(size: Size) -> Iterator[Result]:
    """MACE's first stage with one layer of the encoder, both sides in float64, beside what the authors' code took."""
    pipe = wide_base(1, size.widths, size.dimension)
    with in_float64(pipe):
        task, templates, weights = people(size.concepts), CAPTIONS[: size.captions], some_weights(pipe, size)
        moment = caption_moment(Encoder(pipe)(fill(templates, "an old clock")))
        few, every = {c: task.mapping[c] for c in task.erase[: size.sampled_concepts]}, projection_weights(pipe.unet)
        factors = (size.concepts / len(few), len(every) / len(weights))
        slow, spread, _ = measured(
            lambda clock: naive.mace_refined(pipe, weights, few, templates, 1e-4 * moment, 1.0, clock, factors)
        )
        settings = {"captions": templates, "preserve_weight": 0.0, "lamb": 1.0}
        seconds, own, _ = measured(lambda _: erase(pipe, task, "mace-refinement", moment, **settings))
        matrix = torch.randn(SIDE, SIDE)
        product, _, _ = measured(lambda _: matrix @ matrix)
    captions = size.concepts * size.captions
    yield Result(
        f"MACE's first stage, {size.concepts} concepts, encoder of 1 layer, float64",
        f"{captions + size.captions} passes, 1 solve, fp64", f"{2 * captions} passes, {len(every)} solves, fp64",
        seconds, slow, slow / seconds, max(spread, own),
        f"naive: {len(few)} concepts, {len(weights)} projections run; {slow / OFFICIAL:.2f} of the {OFFICIAL} s of the "
        f"authors' code on another machine, whose product of matrices is unknown; here one of {SIDE} x {SIDE} takes "
        f"{product:.3f} s, and naive is {slow / product:.0f} of them",
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
    for precision in ("fp64", "fp32"):
        yield compare(
            f"UCE of 2025, {number} concepts, encoder {precision}",
            Side(f"{captions} passes without padding, 1 solve, sums fp64",
                 lambda _, p=precision: erase(pipe, task, "uce", encoder_precision=p, **UCE_2025)),
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


def large_forms(pipe: Any, task: Any, templates: tuple[str, ...]) -> dict[str, tuple[int, Side]]:
    """Closed forms of many concepts: name -> captions, and their side; those that compute no padding come last."""
    pairs = (len(task.erase) + len(set(task.mapping.values()))) * len(templates)
    every, values = pairs + len(task.retain) * len(templates), len(projection_weights(pipe.unet)) // 2
    forms: dict[str, tuple[str, int, str, dict[str, Any]]] = {
        "MACE's refinement": ("mace-refinement", pairs, "1 solve", {"lamb": 1.0, "train_preserve_scale": 0.0}),
        "UCE of 2024": ("uce", every + 1, "1 solve", {}),
        "RECE, 3 epochs": ("rece", every + 1, "7 solves", {"epochs": 3}),
        "TIME": ("time", pairs, "1 solve", {}),
        "UCE of 2025": ("uce", every, "no padding, 1 solve", UCE_2025),
        "SPEED": ("speed", every + 1, f"no padding, {values + 1} solves, {3 * values} decompositions",
                  {"invariants": "centres"}),  # as the authors
    }  # fmt: skip
    return {
        called: (passes, Side(f"{passes} passes, {work}, fp64",
                              lambda _, n=name, s=settings: erase(pipe, task, n, captions=templates, **s)))
        for called, (name, passes, work, settings) in forms.items()
    }  # fmt: skip


def many_rows(pipe: Any, size: Size) -> Iterator[Result]:
    """Closed forms of many concepts with one caption each, in at most a minute."""
    for called, (_, side) in large_forms(pipe, people(size.many), ("{}",)).items():
        yield compare(f"{called}, {size.many} concepts, 1 caption", side, None, most=MOST)


def caption_rows(size: Size) -> Iterator[Result]:
    """Closed forms of many concepts with all captions, beside the encoder's arithmetic alone, padding included.

    Layers that are not run are counted, each as long as the encoder of one; so forms that compute no padding are run
    with all layers only.
    """
    pipe, templates = wide_base(size.sampled_layers, size.widths, size.dimension), CAPTIONS[: size.captions]
    pipe.text_encoder.double()  # no copy, which would be counted for each layer
    task, times = people(size.sampled_many), size.layers / size.sampled_layers
    captions = [text for word in (*task.erase, "a person") for text in fill(templates, word)]
    alone, _, _ = measured(lambda _: sum(rows.sum() for rows in Encoder(pipe).groups([[text] for text in captions])))
    for called, (passes, side) in list(large_forms(pipe, task, templates).items())[: size.forms]:
        encoder = alone * passes / len(captions)
        result = compare(
            f"{called}, {size.sampled_many} concepts, {size.captions} captions", side, None,
            f"encoder alone {times * encoder:.1f} s; {size.sampled_layers} of its {size.layers} layers run",
        )  # fmt: skip
        yield replace(result, seconds=result.seconds + (times - 1) * encoder, most=OVERHEAD * times * encoder)
