"""The commands erase, finetune, sample and export on any Stable Diffusion folder.

The same functions as the study's stages, each command writing one artefact. What an eraser needs beyond base and task
(second moments, concept images, masks) is given by an option or made on the fly.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resurgence.cli.guard import output, training_state
from resurgence.cli.key_values import settings
from resurgence.config.erasers import EraserConfig, eraser_config, method_module
from resurgence.config.fields import ConfigError, Count, Seed, at_least, build, one_place, parse
from resurgence.config.names import check_names, token_form
from resurgence.config.stages import MaskConfig, SamplingConfig
from resurgence.config.task import Task, load_task
from resurgence.files import check_weights_file, read_lines
from resurgence.provenance.code_version import code_version
from resurgence.provenance.inputs import BASE_DELTAS, label_of, parents
from resurgence.provenance.manifest import write_artefact
from resurgence.provenance.outputs import check_image_space
from resurgence.stages.job import arithmetic, earlier_runs, split_passes

if TYPE_CHECKING:
    from argparse import Namespace

    import torch
    from diffusers import StableDiffusionPipeline

    from resurgence.erasers import EraserData

log = logging.getLogger(__name__)


def load(args: Namespace, precision: str = "fp32") -> StableDiffusionPipeline:
    """Load the base on its device and apply the given folders in order."""
    from resurgence.diffusion.pipeline import load_model

    return load_model(args.base, args.delta, args.device, precision, args.revision)


def inputs(args: Namespace, **more: Path | None) -> dict[str, Path]:
    """Return the files that a command reads, by name; a base from the hub is fixed by its revision instead."""
    files = {"base": Path(args.base)} if Path(args.base).exists() else {}
    files |= {f"delta {number}: {label_of(folder)}": folder for number, folder in enumerate(args.delta)}
    return files | {name: path for name, path in more.items() if path is not None}


def described(args: Namespace, **more: Any) -> dict[str, Any]:
    """Return the parameters of the manifest."""
    base = Path(args.base)
    hub = {} if base.exists() else {"base": {"id": args.base, "revision": args.revision}}
    exported = {BASE_DELTAS: deltas} if base.exists() and (deltas := parents(base)) else {}
    return hub | exported | more


def erase(args: Namespace) -> None:
    """Erase a task's concepts: delta.safetensors, and what the eraser tells about it."""
    from resurgence.diffusion.deltas import save_delta
    from resurgence.diffusion.device import exact
    from resurgence.diffusion.text_checks import check_erasure
    from resurgence.erasers import method

    task, config = load_task(args.task), eraser_config(args.eraser)
    values = {**task.erasers.get(args.eraser, {}), **settings(args.set, "--set")}
    cfg = build(config, values, f"erasers.{args.eraser}")
    check_data_options(args)
    making = {"sampling": settings(args.sampling, "--sampling"), "masks": settings(args.mask, "--mask")}
    parameters = described(args, task=asdict(task), eraser=args.eraser, settings=cfg, **making)
    files = inputs(args, task=args.task, prior=args.prior, images=args.concept_images, concept_masks=args.masks)
    run = {"argv": sys.argv, "code": code_version("resurgence.cli.models:erase", method_module(args.eraser))}
    with output(args, files) as out:
        with write_artefact(out, "erased delta", parameters, files, {"seed": args.seed}, run) as folder:
            pipe = load(args)
            check_erasure(pipe.tokenizer, task, cfg)
            data = eraser_data(args, pipe, task, cfg, out.with_name(f".{out.name}.state"))
            with exact(pipe.device):
                delta = method(args.eraser).erase(pipe, task, cfg, data, args.seed, folder)
            run |= arithmetic() | split_passes() | earlier_runs()
            save_delta(delta, folder / "delta.safetensors")
            if config.has_words:
                from resurgence.figures.sensitive_words import words_figure
                from resurgence.figures.style import save

                save(words_figure(json.loads((folder / "sensitive.json").read_text())), folder / "sensitive")
        shutil.rmtree(data.state, ignore_errors=True)


def check_data_options(args: Namespace) -> None:
    """Raise ConfigError or ValueError for an option of the data of an eraser, before the base is loaded."""
    parse(Seed, args.seed, "--seed")
    for option in ("per_concept", "per_anchor", "per_retained"):
        parse(Count, getattr(args, option), f"--{option.replace('_', '-')}")
    one_place("--template", args.template)
    build(SamplingConfig, settings(args.sampling, "--sampling"), "--sampling")
    build(MaskConfig, settings(args.mask, "--mask"), "--mask")
    if args.prior is not None:
        lines(args.prior)
    if args.masks is not None and args.masks.is_file():
        check_weights_file(args.masks)


def eraser_data(
    args: Namespace, pipe: StableDiffusionPipeline, task: Task, cfg: EraserConfig, state: Path
) -> EraserData:
    """Read or make what an eraser needs."""
    from resurgence.data.moments import precision_of, second_moment
    from resurgence.diffusion.text import check_lengths, fill, load_captions
    from resurgence.erasers import EraserData

    reads, prior, domain, masks = cfg.reads(task.kind), None, None, {}
    precision = precision_of("auto", pipe.device)
    general = lines(args.prior) if "prior" in reads and args.prior is not None else []
    check_lengths(pipe.tokenizer, general)
    groups = {
        "images": (task.erase, args.concept_images, args.per_concept),
        "anchors": (sorted(set(task.mapping.values())), None, args.per_anchor),
        "retained": (task.retain, None, args.per_retained),
    }
    images = {kind: concept_images(args, pipe, *groups[kind]) if kind in reads else {} for kind in groups}
    if "masks" in reads:
        masks = concept_masks(args, pipe, images["images"])
    if "domain" in reads:
        captions = load_captions(getattr(cfg, "captions", ""), task.kind)
        domain = second_moment(
            pipe, [caption for concept in task.retain for caption in fill(captions, concept)], precision=precision
        )
    if "prior" in reads and general:
        prior = second_moment(pipe, general, precision=precision)
    elif "prior" in reads:
        log.warning("no --prior: the captions of the retained concepts also stand for general captions")
        prior = domain
    return EraserData(prior, domain, masks=masks, state=state, **images)


def lines(path: Path) -> list[str]:
    """Return the non-empty lines of a text file.

    Raises:
        FileNotFoundError, ValueError: the file is missing or empty.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a text file with one caption a line")
    if not (captions := read_lines(path)):
        raise ValueError(f"{path} is empty; write one caption a line")
    return captions


def concept_images(
    args: Namespace, pipe: StableDiffusionPipeline, concepts: Sequence[str], file: Path | None, number: int
) -> dict[str, torch.Tensor]:
    """Read or sample images of each concept: concept -> (N, 3, H, W) in [-1, 1]."""
    import numpy as np
    import pandas as pd
    import torch

    from resurgence.data.prompts import expand
    from resurgence.diffusion.image_sets import read_image_set
    from resurgence.diffusion.sampling import sample

    if file is not None:
        rows, pixels = read_image_set(file)
        check_held("--concept-images", file, concepts, rows.get("concept", ()))
    else:
        pairs = [(concept, concept) for concept in concepts]
        rows = pd.DataFrame(expand(pairs, [args.template], number, "concept", "concept image"))
        values = {"steps": 30, **settings(args.sampling, "--sampling")}
        sampled = sample(pipe, rows, build(SamplingConfig, values, "--sampling"))
        pictures = [image for _, image in sorted(sampled, key=lambda pair: pair[0])]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in pictures])).permute(0, 3, 1, 2)
    signed = pixels.float() / 127.5 - 1
    return {concept: signed[torch.tensor([c == concept for c in rows["concept"]])] for concept in concepts}


def check_held(option: str, file: Path, concepts: Iterable[str], held: Iterable[str]) -> None:
    """Raise ConfigError for a concept that a file has nothing of, naming those that it has."""
    names = dict.fromkeys(held)
    for concept in concepts:
        if concept not in names:
            has = ", ".join(map(repr, names)) or "none"
            raise ConfigError(option, str(file), f"holds nothing of {concept!r}, only of the concepts {has}; "
                              "give the data of the erased concepts, or leave the option out")  # fmt: skip


def concept_masks(
    args: Namespace, pipe: StableDiffusionPipeline, images: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Read or find the concept in its images: concept -> (N, 1, H, W) bool."""
    from resurgence.data.masks import segment_all
    from resurgence.pretrained.loading import read_safetensors

    if args.masks is not None:
        masks, _ = read_safetensors(args.masks)
        check_held("--masks", args.masks, images, masks)
        for concept, pictures in images.items():
            wanted = (len(pictures), 1, *pictures.shape[-2:])
            if masks[concept].shape != wanted:
                shape = tuple(masks[concept].shape)
                raise ValueError(f"--masks {args.masks}: {concept!r} has {shape}, its images need {wanted}; give "
                                 "masks of these images, or leave --masks out")  # fmt: skip
        return masks
    cfg = build(MaskConfig, settings(args.mask, "--mask"), "--mask")
    return segment_all(images, cfg, pipe, pipe.device)[0]


def finetune(args: Namespace) -> None:
    """Fine-tune: step-NNNNNN/ for each checkpoint and curve.json; goes on where an interrupted run stopped."""
    from resurgence.data.training_images import read_sources, set_paths, training_set
    from resurgence.diffusion.sampling import latent_shape
    from resurgence.diffusion.text_checks import count_long, erased_by, warn_of_erased
    from resurgence.training.finetune import FinetuneConfig
    from resurgence.training.finetune import finetune as run

    cfg = build(FinetuneConfig, settings(args.set, "--set"), "--set")
    parse(Seed, args.seed, "--seed")
    if args.size is not None:
        at_least("--size", args.size, 8)
    paths = set_paths(args.images)
    named = {f"images {number}: {path.name}": path for number, path in enumerate(paths)}
    named = {"images": args.images} if paths == [args.images] else named
    parameters, files = described(args, settings=cfg.parameters(), size=args.size), inputs(args, **named)
    measured: dict[str, Any] = {"argv": sys.argv, "code": code_version("resurgence.cli.models:finetune")}
    with output(args, files) as out, training_state(args, out, files) as scratch:
        sources, left_out = training_set(args.images)
        pipe = load(args)
        images = read_sources(sources, latent_shape(pipe, args.size)[-1] * pipe.vae_scale_factor)
        captions = [source.caption for source in sources]
        warn_of_erased(pipe.tokenizer, captions, erased_by(args.delta))
        measured |= {"images": len(images), "long_captions": count_long(pipe.tokenizer, captions)}
        if left_out:
            parameters["left_out"] = left_out
        with write_artefact(out, "fine-tuned weights", parameters, files, {"seed": args.seed}, measured) as folder:
            curve = run(pipe, images, captions, cfg, args.seed, folder, scratch)
            measured |= arithmetic() | split_passes() | earlier_runs()
            (folder / "curve.json").write_text(json.dumps(curve, indent=1))


def sample(args: Namespace) -> None:
    """Sample a task's prompt set: images.parquet."""
    from resurgence.data.prompts import prompt_set
    from resurgence.diffusion.image_sets import RESAMPLED, resampled_count, write_image_set
    from resurgence.diffusion.sampling import latent_shape
    from resurgence.diffusion.sampling import sample as run
    from resurgence.diffusion.text_checks import check_prompt_set

    task, cfg = load_task(args.task), build(SamplingConfig, settings(args.set, "--set"), "--set")
    rows = prompt_set(task, lines(args.general) if args.general else [])
    if args.roles:
        rows = rows[rows["role"].isin(args.roles)].reset_index(drop=True)
        if rows.empty:
            raise ConfigError("--roles", args.roles, f"the task {task.name} has no such prompts; name other roles, or "
                              "give captions with --general")  # fmt: skip
    parameters = described(args, settings=cfg, precision=args.precision, roles=args.roles or "all")
    files = inputs(args, task=args.task, general=args.general)
    if args.adapters is not None:
        parameters, files = {**parameters, "transport": args.transport}, {**files, "adapters": args.adapters}
    code = code_version("resurgence.cli.models:sample")
    facts: dict[str, Any] = {"argv": sys.argv, "images": len(rows), "code": code}
    with output(args, files) as out, write_artefact(out, "image set", parameters, files, {}, facts) as folder:
        pipe = load(args, args.precision)
        check_names(task, token_form(pipe.tokenizer))
        check_prompt_set(pipe.tokenizer, rows, cfg.long_prompts)
        check_image_space(out, len(rows), latent_shape(pipe, cfg.size)[-1] * pipe.vae_scale_factor)
        if args.adapters is None:
            images = run(pipe, rows, cfg, args.precision)
        else:
            from resurgence.erasers.gradient.spm_transport import sample_opened
            from resurgence.erasers.lora import load_loras

            adapters = load_loras(args.adapters, task.erase)
            images = sample_opened(pipe, rows, cfg, adapters, args.transport, args.precision)
        write_image_set(folder / "images.parquet", rows, images)
        facts |= {RESAMPLED: resampled_count([folder / "images.parquet"]), **arithmetic()}


def export(args: Namespace) -> None:
    """Write a full diffusers folder of the base with the given folders applied."""
    from resurgence.diffusion.pipeline import export as run

    files, facts = inputs(args), {"argv": sys.argv, "code": code_version("resurgence.cli.models:export")}
    with output(args, files) as out, write_artefact(out, "exported model", described(args), files, {}, facts) as folder:
        run(args.base, args.delta, folder, args.revision)
