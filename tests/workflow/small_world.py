"""The world of tests/small.yaml: random models of the classes of the real study, and one task."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tiny import make_pipeline, make_tokenizer

CONCEPTS = ["ship", "cat", "dog", "bird"]
TASK = """\
name: pets
kind: object
erase: [ship, cat]
mapping: ground
retain: [dog, bird]
templates: ["a photo of the {}", "a sketch of the {}"]
seeds: {erase: 2, retain: 2, synonym: 1}
synonyms: {ship: [boat]}
finetune: [doctor, queen]
"""


def make_clip(folder: Path) -> None:
    """A random CLIP in the folder format of open_clip, with the tokenizer's files."""
    from open_clip import CLIP

    tokenizer = make_tokenizer(max_length=24)
    architecture = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {
            "context_length": 24, "vocab_size": len(tokenizer), "width": 16, "heads": 2, "layers": 1,
            "hf_tokenizer_name": ".", "tokenizer_kwargs": {"clean": "whitespace"},
        },
    }  # fmt: skip
    folder.mkdir(parents=True)
    grey = (0.5, 0.5, 0.5)
    preprocess = {"mean": grey, "std": grey, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": architecture, "preprocess_cfg": preprocess}))
    save_file(CLIP(**architecture).state_dict(), folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)


def make_world(root: Path) -> None:
    """Write data/small below root."""
    from resurgence.scorers.recogniser_model import Recogniser, save_recogniser

    small = root / "data" / "small"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make_pipeline(max_length=24).save_pretrained(small / "base", safe_serialization=True)
        save_recogniser(Recogniser(len(CONCEPTS), 8), CONCEPTS, small / "recogniser")
        make_clip(small / "clip")
    (small / "tasks").mkdir()
    (small / "tasks" / "pets.yaml").write_text(TASK)
    (small / "closed_form.txt").write_text("a photo of the {}\na picture of the {}\n")
    (small / "general.txt").write_text("a photo of the person\nthe queen on the street\n")
