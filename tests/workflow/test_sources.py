"""The small study with fine-tuning sets by the base, by each erased model, and of real pictures, really run once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from tree import Tree, clone, messages

from resurgence.diffusion.image_sets import read_image_set
from resurgence.seeds import generator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SETS = {
    "own": {"concepts": "task", "made_by": "erased", "images_per_prompt": 1},
    "photos": {"made_by": "real", "images": "data/small/photos", "size": 3},
}
PHOTOS = {"a doctor_1": (16, 16), "a doctor_2": (16, 16), "the queen_1": (32, 16), "the queen_2": (16, 16)}
MODELS = ("own", "photos")
SAME = "a photo of the doctor"
DATA = "results/data/small/pets/finetune_sets"


def pixels(number: int, size: tuple[int, int]) -> np.ndarray:
    """Noise, as other pictures would hide a mirrored or shifted one."""
    draws = np.random.default_rng(number)
    return draws.integers(0, 256, (size[1], size[0], 3), np.uint8)


def with_sources(tree: Tree) -> Tree:
    """Add the sets to the study, and a fine-tune on each; the task erases nothing else."""
    overlay = tree.root / tree.overlay
    study = yaml.safe_load(overlay.read_text())
    study["erasers"] = {"uce": study["erasers"]["uce"], "mace": None, "control": {"method": "none"}}
    study["finetune_sets"] |= SETS
    variants = {"default": {}, **{name: {"set": name} for name in MODELS}}
    study["finetunes"] = {"lora": {"steps": 2, "checkpoints": [2], "batch": 2, "variants": variants}}
    del study["scorers"]["clip"]
    study["scorers"]["clip"] = None
    overlay.write_text(yaml.safe_dump(study, sort_keys=False))
    folder = tree.root / "data/small/photos"
    folder.mkdir()
    for number, (name, size) in enumerate(PHOTOS.items()):
        Image.fromarray(pixels(number, size)).save(folder / f"{name}.png")
    return tree


@pytest.fixture(scope="module")
def sources(fresh: Tree, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    tree = with_sources(Tree(clone(fresh.root, tmp_path_factory.mktemp("sources") / "tree")))
    print(tree.snakemake("-n"))
    return tree


def test_x(sources):
    print(messages(sources.snakemake("-n")))
    assert 0
