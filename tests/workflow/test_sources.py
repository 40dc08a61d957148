"""Fine-tuning sets by the base, by an erased model, and of real pictures, really made once in a small study."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from tree import Tree, clone, messages, once

from resurgence.diffusion.image_sets import read_image_set

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SAMPLED = {"concepts": "retain", "images_per_prompt": 2, "first_seed": 1}
SETS = {
    "random": SAMPLED,
    "own": {**SAMPLED, "made_by": "erased"},
    "photos": {"made_by": "real", "images": "data/small/photos", "size": 3},
}
PHOTOS = {"a bird_1": (16, 16), "a bird_2": (32, 16), "the dog_1": (16, 16), "the dog_2": (16, 16)}
RESULTS = {
    "by base": "results/data/small/pets/finetune_sets/random",
    "by uce": "results/erased/small/pets/uce/s0/erased_sets/own",
    "real": "results/data/small/pets/finetune_sets/photos",
    "sampled": "results/images/small/pets/uce/s0/images",
    "tuned on photos": "results/finetuned/small/pets/uce/s0/lora.photos/f0/weights",
}
TARGETS = [f"{folder}/manifest.json" for folder in RESULTS.values()]


def noise(number: int, size: tuple[int, int]) -> np.ndarray:
    """Pixels of a picture, in which a shift or a mirror would be noticed: uint8 (H, W, 3)."""
    return np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)


@pytest.fixture(scope="module")
def sources(fresh: Tree, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The study with one eraser and three sets of pictures, after a run of what RESULTS lists. Not to be changed."""
    return Tree(once(tmp_path_factory, "sources", lambda root: run_sources(Tree(clone(fresh.root, root))))[0])


def run_sources(tree: Tree) -> str:
    """Change the study in a fresh tree, and run it; what the run printed."""
    tree.edit("data/small/tasks/pets.yaml", "name: pets\n", "name: pets\nfirst_seed: 1\n")
    study = yaml.safe_load((tree.root / tree.overlay).read_text())
    study["erasers"] = {"uce": study["erasers"]["uce"], "mace": None}
    study["finetune_sets"] = SETS
    variants = {name: {"set": name} for name in ("own", "photos")}
    study["finetunes"] = {"lora": {"steps": 2, "checkpoints": [2], "batch": 2, "variants": {"default": {}, **variants}}}
    (tree.root / tree.overlay).write_text(yaml.safe_dump(study, sort_keys=False))
    (tree.root / "data/small/photos").mkdir()
    for number, (name, size) in enumerate(PHOTOS.items()):
        Image.fromarray(noise(number, size)).save(tree.root / f"data/small/photos/{name}.png")
    return tree.snakemake("--cores", "1", *TARGETS)


def image_set(tree: Tree, name: str, file: str = "images.parquet") -> tuple[pd.DataFrame, np.ndarray]:
    rows, images = read_image_set(tree.root / RESULTS[name] / file)
    return rows, images.numpy()


def manifest(tree: Tree, name: str) -> dict:
    return json.loads((tree.root / RESULTS[name] / "manifest.json").read_text())


def test_an_erased_model_makes_the_images_that_sample_makes_with_it(sources: Tree) -> None:
    rows, images = image_set(sources, "by uce")
    sampled, theirs = image_set(sources, "sampled", "step-000000.parquet")
    keys = ["prompt", "seed"]
    order = rows[keys].reset_index().merge(sampled[keys].reset_index(), on=keys, suffixes=("", "_sampled"))
    assert len(order) == len(rows) == 8
    assert np.array_equal(images[order["index"]], theirs[order["index_sampled"]])
    inputs = manifest(sources, "by uce")["inputs"]
    assert "results/erased/small/pets/uce/s0/delta/manifest.json" in inputs


def test_all_makers_have_the_captions_and_seeds_of_the_base(sources: Tree) -> None:
    rows, images = image_set(sources, "by base")
    by_uce, theirs = image_set(sources, "by uce")
    pd.testing.assert_frame_equal(rows, by_uce)
    assert not np.array_equal(images, theirs)


def test_the_base_makes_a_set_from_the_settings_that_it_had_before(sources: Tree) -> None:
    parameters = manifest(sources, "by base")["parameters"]
    assert set(parameters) == {
        "base", "concepts", "first_seed", "images_per_prompt", "sampling", "size", "templates", "tercile"
    }  # fmt: skip
    assert manifest(sources, "by uce")["parameters"] == parameters | {"made_by": "erased"}


def test_real_pictures_are_those_of_the_user(sources: Tree) -> None:
    rows, images = image_set(sources, "real")
    assert rows["prompt"].tolist() == ["a bird", "a bird", "the dog"]
    assert rows["file"].tolist() == ["a bird_1.png", "a bird_2.png", "the dog_1.png"]
    wanted = [noise(0, (16, 16)), noise(1, (32, 16))[:, 8:24], noise(2, (16, 16))]  # the centre of the wide one
    assert np.array_equal(images.transpose(0, 2, 3, 1), np.stack(wanted))
    run = json.loads((sources.root / RESULTS["real"] / "run.json").read_text())
    assert run["images"] == 3 and run["left_out"] == {"more than size": ["the dog_2.png"]}
    inputs = manifest(sources, "real")["inputs"]
    assert {f"data/small/photos/{name}.png" for name in PHOTOS} <= set(inputs)


def test_a_model_is_trained_on_the_real_pictures(sources: Tree) -> None:
    assert f"{RESULTS['real']}/manifest.json" in manifest(sources, "tuned on photos")["inputs"]


def test_a_changed_picture_makes_its_set_again_and_what_is_trained_on_it(sources: Tree, tmp_path: Path) -> None:
    tree = Tree(clone(sources.root, tmp_path / "tree"))
    assert messages(tree.snakemake("-n", *TARGETS)) == []
    Image.fromarray(noise(9, (16, 16))).save(tree.root / "data/small/photos/a bird_1.png")
    assert messages(tree.snakemake("-n", *TARGETS)) == [
        "Fine-tune pets / uce with lora.photos, seed 0",
        "Fine-tuning set photos of pets, real pictures",
    ]
