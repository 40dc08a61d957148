"""The commands erase, finetune, sample and export on any Stable Diffusion folder.

The same functions as the study's stages, each command writing one artefact. What an eraser needs beyond base and task
(second moments, concept images, masks) is given by an option or made on the fly.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resurgence.cli.eraser_data import anchor_prompts, check_data_options, eraser_data, lines
from resurgence.cli.guard import output, training_state
from resurgence.cli.key_values import settings
from resurgence.config.erasers import eraser_config, method_module
from resurgence.config.fields import ConfigError, Seed, at_least, build, parse
from resurgence.config.names import check_names, token_form
from resurgence.config.stages import SamplingConfig
from resurgence.config.task import load_task
from resurgence.provenance.code_version import code_version
from resurgence.provenance.inputs import BASE_DELTAS, label_of, parents
from resurgence.provenance.manifest import write_artefact
from resurgence.provenance.outputs import check_image_space
from resurgence.stages.job import arithmetic, earlier_runs, split_passes

if TYPE_CHECKING:
    from argparse import Namespace

    from diffusers import StableDiffusionPipeline


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
    prompts = anchor_prompts(args, task, cfg)
    lists = {"prior": args.prior, "anchor_captions": args.anchor_captions}
    files = inputs(args, task=args.task, images=args.concept_images, concept_masks=args.masks, **lists)
    run = {"argv": sys.argv, "code": code_version("resurgence.cli.models:erase", method_module(args.eraser))}
    with output(args, files) as out:
        with write_artefact(out, "erased delta", parameters, files, {"seed": args.seed}, run) as folder:
            pipe = load(args)
            check_erasure(pipe.tokenizer, task, cfg)
            data = eraser_data(args, pipe, task, cfg, prompts, out.with_name(f".{out.name}.state"))
            with exact(pipe.device):
                delta = method(args.eraser).erase(pipe, task, cfg, data, args.seed, folder)
            run |= arithmetic() | split_passes() | earlier_runs()
            save_delta(delta, folder / "delta.safetensors")
            if config.has_words:
                from resurgence.figures.sensitive_words import words_figure
                from resurgence.figures.style import save

                save(words_figure(json.loads((folder / "sensitive.json").read_text())), folder / "sensitive")
        shutil.rmtree(data.state, ignore_errors=True)


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
