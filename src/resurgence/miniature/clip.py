"""Train the small CLIP of the miniature world with open_clip's own classes and loss.

It scores images against prompts (CLIP score, CLIP accuracy, CLIP distance). It shares no weights with the generator and
the recogniser, and starts from none; it sees the drawings of `drawn_by`; the tokenizer is the world's.
Each batch has each concept once, and some in every style, so that the style is learned as well; no caption is a false
negative.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from open_clip import CLIP, ClipLoss
from safetensors.torch import save_file

from resurgence.files import atomic_folder
from resurgence.miniature.captions import (
    MAX_LENGTH,
    CaptionConfig,
    as_built,
    build_tokenizer,
    caption,
    corpus,
    draw,
    read_templates,
)
from resurgence.miniature.compositions import compose, scene
from resurgence.miniature.drawings import load_drawings, load_world
from resurgence.miniature.recogniser import degrade
from resurgence.miniature.styles import apply_styles, draw_styles
from resurgence.miniature.training import step_generator, train_part

MEAN = STD = (0.5, 0.5, 0.5)
IN_EVERY_STYLE = 16  # concepts of a batch that are drawn in every style
COMPOSITION = {"degrees": 12, "scale": (0.7, 1.0), "shift": 0.06}


def model_config(vocab_size: int, size: int, vision: dict | None = None) -> dict:
    """The open_clip configuration: an image tower and a text tower of width 96.

    Args:
        size: pixels a side. vision: open_clip's settings of the image tower but its size; a ViT of 64 patches and width
            96 if None.
    """
    vision = vision or {"patch_size": size // 8, "width": 96, "layers": 4, "head_width": 24}
    return {
        "embed_dim": 96,
        "vision_cfg": {"image_size": size, **vision},
        "text_cfg": {
            "context_length": MAX_LENGTH, "vocab_size": vocab_size, "width": 96, "heads": 4, "layers": 3,
            "hf_tokenizer_name": ".", "tokenizer_kwargs": {"clean": "whitespace"},
        },
    }  # fmt: skip


def paired_batch(
    rgba: torch.Tensor, members: Sequence[torch.Tensor], artists: Sequence[str], world: dict, templates: Sequence[str],
    shares: CaptionConfig, generator: torch.Generator, composition: dict = COMPOSITION,
) -> tuple[torch.Tensor, list[str]]:  # fmt: skip
    """Draw one image and one caption of every concept and scene, and of some concepts one more in each other style.

    Args:
        members: rows of the drawings of each concept. composition: settings of `compose`.

    Returns:
        Images (B, 3, 64, 64) in [-1, 1], and their captions.
    """
    concepts, styles = world["concepts"], {style["name"]: style for style in world.get("styles", [])}
    rows = [int(m[draw(len(m), generator)]) for m in members]
    pictures = list(zip(range(len(rows)), draw_styles(len(rows), list(styles), shares.styled, generator), strict=True))
    again = torch.randperm(len(rows), generator=generator)[: IN_EVERY_STYLE if styles else 0].tolist()
    pictures += [(i, style) for i in again for style in (None, *styles) if style != pictures[i][1]]
    images = compose(rgba[[rows[i] for i, _ in pictures]], generator, **composition)
    images = apply_styles(images, [style for _, style in pictures], generator)
    scenes = [scene(s["low"], s["high"], 1, images.shape[-1], generator) for s in world["scenes"]]
    manners = [styles.get(style) if styles else {"name": artists[rows[i]]} for i, style in pictures]
    texts = [
        caption(concepts[i], manner, templates, shares, generator)
        for (i, _), manner in zip(pictures, manners, strict=True)
    ]
    texts += [caption(s, None, templates, shares, generator) for s in world["scenes"]]
    return degrade(torch.cat([images, *scenes]), generator), texts


def main(
    concepts: Path, templates: Path, drawings: Path, out: Path, scratch: Path, cfg: dict, shares: CaptionConfig,
    vocabulary: int, device: str = "cpu",
) -> None:  # fmt: skip
    """Train and write the open_clip folder (open_clip_config.json, open_clip_model.safetensors, tokenizer files).

    Args:
        scratch: folder from which an interrupted training resumes.
        cfg: seed, steps, lr and precision; `drawn_by`, the artists and poses whose drawings it sees, all if not given;
            `vision` (`model_config`); `composition`, settings of `compose`; `half`, which rounds the trained weights to
            float16 and stores them so.
        shares: of captions and styles. vocabulary: tokens.
    """
    torch.set_flush_denormal(True)
    world, (table, rgba) = load_world(concepts), load_drawings(drawings)
    if "drawn_by" in cfg:
        drawn = table["artist"].isin(cfg["drawn_by"]) | table["icon"].isin(cfg["drawn_by"])
        table, rgba = table[drawn].reset_index(drop=True), rgba[torch.tensor(drawn.tolist())]
    shares = replace(shares, synonym=0.2, hypernym=0.0, style=1.0 if world.get("styles") else shares.style)
    sentences = read_templates(templates)
    tokenizer = build_tokenizer(corpus(world, sentences), vocabulary)
    architecture = model_config(len(tokenizer), rgba.shape[-1], cfg.get("vision"))
    torch.manual_seed(cfg["seed"])
    model = CLIP(**architecture).to(device)
    if "vision" in cfg:
        model.visual.to(memory_format=torch.channels_last)  # convolutions take two thirds of the time
    names = table["concept"].to_numpy()
    members = [torch.from_numpy((names == c["name"]).nonzero()[0]) for c in world["concepts"]]
    artists = list(table["artist"])
    composition = cfg.get("composition", COMPOSITION)
    loss = ClipLoss()

    def loss_of(module: CLIP, step: int) -> torch.Tensor:
        generator = step_generator(cfg["seed"], step)
        images, texts = paired_batch(rgba, members, artists, world, sentences, shares, generator, composition)
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        image_features, text_features, scale = module(images.to(device), ids.to(device))
        return loss(image_features.float(), text_features.float(), scale.clamp(max=100))

    facts = (world, sentences, table.to_numpy().tolist(), sorted(tokenizer.get_vocab().items()), asdict(shares))
    curve = train_part(model, loss_of, scratch, cfg, facts, [rgba], ema_decay=0.99, weight_decay=0.1)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": architecture, "preprocess_cfg": preprocess}
    stored = torch.float16 if cfg.get("half", False) else torch.float32
    weights = {
        name: value.contiguous().cpu().to(stored if value.is_floating_point() else value.dtype)
        for name, value in model.state_dict().items()
    }
    with atomic_folder(out) as temporary:
        (temporary / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file(weights, temporary / "open_clip_model.safetensors")
        as_built(tokenizer).save_pretrained(temporary)  # open_clip reads it from the folder itself
        (temporary / "curve.json").write_text(json.dumps(curve))
