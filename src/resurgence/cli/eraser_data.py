"""Data of an eraser for the command `erase`: read from the files of its options, or made by the base."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resurgence.cli.key_values import settings
from resurgence.config.anchor_captions import check_benign_captions, check_captions, check_pairs
from resurgence.config.erasers import EraserConfig
from resurgence.config.fields import ConfigError, Count, Seed, build, one_place, parse
from resurgence.config.stages import MaskConfig, SamplingConfig
from resurgence.files import check_weights_file, read_lines

if TYPE_CHECKING:
    from argparse import Namespace

    import torch
    from diffusers import StableDiffusionPipeline

    from resurgence.config.task import Task
    from resurgence.erasers import EraserData

log = logging.getLogger(__name__)


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


def anchor_prompts(args: Namespace, task: Task, cfg: EraserConfig) -> list[str]:
    """The prompts of the images of each mapping concept, with {} for its name or without; raises if they do not fit."""
    prompts = [args.template] if args.anchor_captions is None else lines(args.anchor_captions)
    check_captions(prompts, "--anchor-captions", args.per_anchor, "--per-anchor")
    check_benign_captions(prompts, task, "--anchor-captions")
    if getattr(cfg, "own_captions", False):
        check_pairs(prompts, cfg.suffix, "suffix")
    return prompts


def eraser_data(
    args: Namespace, pipe: StableDiffusionPipeline, task: Task, cfg: EraserConfig, prompts: Sequence[str], state: Path
) -> EraserData:
    """Read or make what an eraser needs.

    Args:
        prompts: of the images of each mapping concept.
    """
    from resurgence.data.moments import precision_of, second_moment
    from resurgence.diffusion.text import check_lengths, fill, load_captions
    from resurgence.erasers import EraserData

    reads, prior, domain, masks = cfg.reads(task.kind), None, None, {}
    precision = precision_of("auto", pipe.device)
    general = lines(args.prior) if "prior" in reads and args.prior is not None else []
    check_lengths(pipe.tokenizer, general)
    anchors, number = sorted(set(task.mapping.values())), args.per_anchor // len(prompts)
    groups = {
        "images": (task.erase, args.concept_images, args.per_concept, [args.template]),
        "anchors": (anchors, None, number, prompts),
        "retained": (task.retain, None, args.per_retained, [args.template]),
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
    own = {anchor: [prompt for prompt in prompts for _ in range(number)] for anchor in images["anchors"]}
    return EraserData(prior, domain, masks=masks, state=state, anchor_captions=own, **images)


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
    args: Namespace,
    pipe: StableDiffusionPipeline,
    concepts: Sequence[str],
    file: Path | None,
    number: int,
    prompts: Sequence[str],
) -> dict[str, torch.Tensor]:
    """Read images of each concept, or sample a number of each of its prompts: concept -> (N, 3, H, W) in [-1, 1]."""
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
        rows = pd.DataFrame(expand(pairs, prompts, number, "concept", "concept image"))
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
