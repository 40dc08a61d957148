"""Train the small CLIP of the miniature world with open_clip's own classes and loss.

It scores images against prompts (CLIP score, CLIP accuracy, CLIP distance) and shares no weights with the
generator; the tokenizer is the world's. Each batch has every concept once, so no caption is a false negative.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from open_clip import CLIP, ClipLoss
from safetensors.torch import save_file

from resurgence.files import atomic_folder
from resurgence.miniature.captions import MAX_LENGTH, caption, corpus, draw, read_templates, saved_tokenizer
from resurgence.miniature.compositions import compose, scene
from resurgence.miniature.drawings import load_drawings, load_world
from resurgence.miniature.recogniser import degrade
from resurgence.miniature.training import step_generator, train_part

MEAN = STD = (0.5, 0.5, 0.5)


def model_config(vocab_size: int) -> dict:
    """The open_clip configuration: ViT (patch 8, width 96) and a text tower of width 96."""
    return {
        "embed_dim": 96,
        "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 96, "layers": 4, "head_width": 24},
        "text_cfg": {
            "context_length": MAX_LENGTH, "vocab_size": vocab_size, "width": 96, "heads": 4, "layers": 3,
            "hf_tokenizer_name": ".", "tokenizer_kwargs": {"clean": "whitespace"},
        },
    }  # fmt: skip


def paired_batch(
    rgba: torch.Tensor, members: list[torch.Tensor], artists: list[str], world: dict, templates: list[str],
    generator: torch.Generator,
) -> tuple[torch.Tensor, list[str]]:  # fmt: skip
    """One image and one caption of every concept and scene: images (C, 3, 64, 64) in [-1, 1], C captions."""
    rows = [int(m[draw(len(m), generator)]) for m in members]
    images = compose(rgba[rows], generator, degrees=12, scale=(0.7, 1.0), shift=0.06)
    scenes = [scene(s["low"], s["high"], 1, images.shape[-1], generator) for s in world["scenes"]]
    texts = [
        caption(c, artists[row], templates, generator, synonym=0.2, hypernym=0.0)
        for c, row in zip(world["concepts"], rows, strict=True)
    ]
    texts += [caption(s, None, templates, generator) for s in world["scenes"]]
    return degrade(torch.cat([images, *scenes]), generator), texts


def main(
    concepts: Path, templates: Path, drawings: Path, out: Path, scratch: Path, cfg: dict, device: str = "cpu"
) -> None:
    """Train and write the open_clip folder (open_clip_config.json, open_clip_model.safetensors, tokenizer files).

    Args:
        scratch: folder from which an interrupted training resumes.
        cfg: seed, steps, lr and precision.
    """
    torch.set_flush_denormal(True)
    world, (table, rgba) = load_world(concepts), load_drawings(drawings)
    sentences = read_templates(templates)
    tokenizer = saved_tokenizer(corpus(world, sentences), scratch)
    architecture = model_config(len(tokenizer))
    torch.manual_seed(cfg["seed"])
    model = CLIP(**architecture).to(device)
    names = table["concept"].to_numpy()
    members = [torch.from_numpy((names == c["name"]).nonzero()[0]) for c in world["concepts"]]
    artists = list(table["artist"])
    loss = ClipLoss()

    def loss_of(module: CLIP, step: int) -> torch.Tensor:
        generator = step_generator(cfg["seed"], step)
        images, texts = paired_batch(rgba, members, artists, world, sentences, generator)
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        image_features, text_features, scale = module(images.to(device), ids.to(device))
        return loss(image_features.float(), text_features.float(), scale.clamp(max=100))

    facts = (world, sentences, table.to_numpy().tolist(), sorted(tokenizer.get_vocab().items()))
    curve = train_part(model, loss_of, scratch, cfg, facts, [rgba], ema_decay=0.99, weight_decay=0.1)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": architecture, "preprocess_cfg": preprocess}
    weights = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
    with atomic_folder(out) as temporary:
        (temporary / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file(weights, temporary / "open_clip_model.safetensors")
        tokenizer.save_pretrained(temporary)  # open_clip reads it from the folder itself
        (temporary / "curve.json").write_text(json.dumps(curve))
