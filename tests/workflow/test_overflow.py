"""A study whose base leaves its precision: right pictures, or an error and no table."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tree import Tree, clone

from resurgence.diffusion.image_sets import read_image_set

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]
UNET = "data/small/base/unet/diffusion_pytorch_model.safetensors"
LOUD = "mid_block.resnets.0.conv1.weight"  # a norm follows: fp32 does not notice what leaves fp16


def study(fresh: Tree, root: Path, factor: float, precision: str) -> Tree:
    """The small study with one eraser, on a base of which a convolution is multiplied by a factor."""
    tree = Tree(clone(fresh.root, root))
    overlay = yaml.safe_load((tree.root / tree.overlay).read_text())
    overlay["erasers"]["mace"] = None
    overlay["base"]["precision"] = precision
    (tree.root / tree.overlay).write_text(yaml.safe_dump(overlay))
    tensors = load_file(tree.root / UNET)
    save_file({**tensors, LOUD: (tensors[LOUD].double() * factor).float()}, tree.root / UNET)
    return tree


def test_a_base_that_leaves_fp16_gives_the_pictures_of_fp32(fresh: Tree, tmp_path: Path) -> None:
    tree = study(fresh, tmp_path / "fp16", 1e6, "fp16")
    tree.snakemake("--cores", "2")
    files = sorted((tree.root / "results/images").rglob("*.parquet"))
    sampled = [file for file in files if "resampled_fp32" in pd.read_parquet(file).columns]
    runs = {file.parent: json.loads((file.parent / "run.json").read_text()) for file in sampled}
    assert len(sampled) == 4 and all(run["resampled_fp32"] == run["images"] > 0 for run in runs.values())
    for file in sampled:
        rows, images = read_image_set(file)
        assert rows["resampled_fp32"].all() and images.float().std((2, 3)).amax(1).min() > 1
    cells = pd.read_csv(tree.root / "results/tables/cells.csv").query("metric == 'blank'")
    assert set(cells["state"]) == {"base", "erased", "finetuned"} and (cells["value"] == 0).all()
    told = (tree.root / "results/tables/resurgence.md").read_text()
    assert "## Blank images (%)" in told and "Warning" not in told


def test_a_base_that_leaves_fp32_ends_the_study_without_a_table(fresh: Tree, tmp_path: Path) -> None:
    tensors = load_file(fresh.root / UNET)
    largest = float(torch.finfo(torch.float32).max) / float(tensors[LOUD].abs().max())
    tree = study(fresh, tmp_path / "fp32", 0.99 * largest, "fp32")
    tree.snakemake("--cores", "2", "--keep-going", check=False)
    logs = [file.read_text() for file in (tree.root / "logs").rglob("*.log")]
    assert any("sampling: NaN or infinite numbers in step 1 of 2 in fp32 (prompt " in log for log in logs)
    results = tree.root / "results"
    assert not (results / "tables").exists() and not (results / "report.html").exists()
    assert not list(results.rglob("*.parquet"))
