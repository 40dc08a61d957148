"""Stable Diffusion 1.4 and 2.1 of full size with random weights, through the complete graph: one concept, one image,
one step of everything, 64 x 64 pixels. Minutes and 14 GiB of memory each, so not part of the default run:

    python -m pytest -m full_size
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from small_world import make_clip
from tree import PARTS, ROOT, Tree, clone

from published import BASES, make_published
from resurgence.diffusion.image_sets import read_image_set
from resurgence.diffusion.pipeline import export, load_base
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.diffusion.text import concept_positions
from resurgence.erasers.mace.method import MaceConfig, tokens_of
from resurgence.provenance.manifest import verify

pytestmark = [pytest.mark.full_size, pytest.mark.timeout(3000)]
NAMES = ["Adam Driver", "Barack Obama", "Cher"]
STUDY = """\
study: full
base: {name: full, path: data/full/base, device: cpu}
tasks: {folder: data/full/tasks, names: [one], concepts: null}
sampling: {steps: 1, guidance: 7.5, batch: 1, size: 64}
moments: {prior: data/full/general.txt, domain: data/full/closed_form.txt}
concept_images: {per_concept: 1, per_anchor: 1, per_retained: 1, steps: 1, guidance: 7.5}
masks: {segmenter: cross-attention, empty: whole, timesteps: [200]}
erasers:
  mace: {captions: data/full/closed_form.txt, steps: 1, lamb: 1.0, preserve_weight: 1.0}
  uce: null
finetune_sets:
  random: {concepts: task, templates: task, images_per_prompt: 1}
finetunes:
  lora: {steps: 1, checkpoints: [1], batch: 1}
scorers:
  recogniser: {path: data/full/recogniser}
  clip: {path: data/full/clip}
statistics: {resamples: 100}
"""
TASK = """\
name: one
kind: person
erase: [Adam Driver]
mapping: a person
retain: [Barack Obama]
templates: ["A portrait of {}"]
seeds: {erase: 1, retain: 1}
finetune: [Cher]
"""


@pytest.fixture(scope="module", params=["sd14", "sd21"])
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The finished study of a base of full size; removed afterwards, for it has 15 GB."""
    from resurgence.scorers.recogniser_model import Recogniser, save_recogniser

    root = tmp_path_factory.mktemp(request.param)
    for part in PARTS:
        clone(ROOT / part, root / part) if (ROOT / part).is_dir() else shutil.copy2(ROOT / part, root / part)
    data = root / "data/full"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make_published(request.param).save_pretrained(data / "base", safe_serialization=True)
        save_recogniser(Recogniser(len(NAMES), 8), NAMES, data / "recogniser")
        make_clip(data / "clip")
    (data / "tasks").mkdir()
    (data / "tasks/one.yaml").write_text(TASK)
    (data / "closed_form.txt").write_text("a photo of {}\n{} in an official photo\n")
    (data / "general.txt").write_text("a man rides a horse on the beach\ntwo dogs on a sofa\n")
    (root / "study.yaml").write_text(STUDY)
    made = Tree(root, "study.yaml")
    made.snakemake("--cores", "1")
    yield request.param, made
    shutil.rmtree(root)


def folder(tree: Tree, stage: str, part: str) -> Path:
    return tree.root / "results" / stage / "full" / "one" / part


def test_full_size(tree: tuple[str, Tree]) -> None:
    """All in one: the study of a base is minutes, and shown once."""
    name, made = tree
    manifests = sorted((made.root / "results").rglob("manifest.json"))
    assert [problem for manifest in manifests for problem in verify(manifest.parent)] == []
    costs = {str(m.parent.relative_to(made.root / "results")): json.loads((m.parent / "run.json").read_text())
             for m in manifests}  # fmt: skip
    for place, run in costs.items():
        print(f"{name} {place}: {run['seconds']:.0f} s, {run['peak_memory_mib'] / 1024:.1f} GiB")
    width = BASES[name]["unet"]["cross_attention_dim"]

    # the erased delta: to_k and to_v of the 16 cross-attentions, and nothing else
    delta = folder(made, "erased", "mace/s0/delta")
    with safe_open(delta / "delta.safetensors", "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    assert len(shapes) == 32 and {shape[1] for shape in shapes.values()} == {width}
    assert all(key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for key in shapes)
    size = (delta / "delta.safetensors").stat().st_size
    assert size == pytest.approx(4 * 2 * (5 * 320 + 5 * 640 + 6 * 1280) * width, rel=1e-3)
    print(f"{name} delta: {size / 2**20:.1f} MiB")

    # masks of the concept's image, from the attention to its tokens
    masks = load_file(folder(made, "data", "masks") / "masks.safetensors")["Adam Driver"]
    assert masks.shape == (1, 1, 64, 64) and masks.dtype == torch.bool and masks.any()

    # LoRA in diffusers format
    (lora,) = folder(made, "finetuned", "mace/s0/lora/f0/weights").glob("step-*/pytorch_lora_weights.safetensors")
    values = sum(value.numel() for value in load_file(lora).values())
    assert values == {"sd14": 797_184, "sd21": 829_952}[name]

    # images of base, erased and fine-tuned model: two rows, and they differ
    sets = {part: folder(made, "images", f"{part}images") for part in ("", "mace/s0/", "mace/s0/lora/f0/")}
    pixels = {}
    for part, place in sets.items():
        (file,) = place.glob("*.parquet")
        rows, pixels[part] = read_image_set(file)
        assert pixels[part].shape == (2, 3, 64, 64) and rows["prompt"].tolist()[0] == "A portrait of Adam Driver"
    assert not torch.equal(pixels[""], pixels["mace/s0/"])

    # tokens, with the padding of the base
    pipe = load_base(made.root / "data/full/base")
    caption = "A portrait of Adam Driver"
    found = concept_positions(pipe.tokenizer, caption, "Adam Driver")
    assert pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(caption).input_ids)[found[0]] == "adam</w>"
    assert found == [4, 5] and pipe.tokenizer.pad_token_id == {"sd14": 49407, "sd21": 0}[name]
    for pooler, positions in {
        "end": [4, 5, 6],
        "end-and-padding": range(4, 77),
        "same-id": range(4, 77) if name == "sd14" else [4, 5, 6],
    }.items():
        cfg = MaceConfig(lamb=1.0, pooler_tokens=pooler)
        chosen = tokens_of(pipe.tokenizer, caption, "Adam Driver", 77, cfg)
        assert chosen.nonzero().flatten().tolist() == list(positions), pooler

    # export, load as any user does, and sample: the fine-tuned image again
    out = made.root / "exported"
    export(made.root / "data/full/base", [delta, lora.parent], out)
    del pipe
    again = StableDiffusionPipeline.from_pretrained(out)
    rows = pd.read_csv(folder(made, "data", "prompts") / "prompts.csv", keep_default_na=False)
    images = dict(sample(again, rows, SamplingConfig(steps=1, guidance=7.5, batch=2, size=64)))
    shown = np.stack([np.asarray(images[row]) for row in (0, 1)]).astype(int)
    expected = pixels["mace/s0/lora/f0/"].permute(0, 2, 3, 1).numpy().astype(int)
    assert abs(shown - expected).max() <= 1
