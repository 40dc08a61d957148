"""Captions pass the text encoder once, only as far as they are read, and in a precision that the delta allows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from resurgence.config.fields import build
from resurgence.config.task import Task
from resurgence.data.moments import second_moment
from resurgence.diffusion import text
from resurgence.diffusion.attention import projection_weights
from resurgence.diffusion.deltas import Delta, load_delta
from resurgence.diffusion.image_sets import write_image_set
from resurgence.diffusion.pipeline import load_base
from resurgence.diffusion.text import Encoder, fill
from resurgence.erasers import EraserData, eraser_config, method
from resurgence.erasers.closed_form.solver import NEGLIGIBLE, movement
from resurgence.erasers.lora import TrainedLoras
from resurgence.stages import erase as erase_stage
from resurgence.stages import loras as loras_stage
from resurgence.stages.job import Job
from tiny import make_pipeline

CAPTIONS = ("a photo of the {}", "the {} on the ground", "{}")
TASK = Task(
    name="mixed", kind="object", erase=("ship", "old cat", "dog"), retain=("queen", "street", "sky"),
    mapping={"ship": "street", "old cat": "person", "dog": "street"}, templates=("a photo of the {}",),
    seeds={"erase": 1, "retain": 1},
)  # fmt: skip
SETTINGS = {
    "mace": {"captions": CAPTIONS, "lamb": 0.4, "steps": 2, "lr": 1e-2},
    "mace-refinement": {"captions": CAPTIONS, "lamb": 0.4},
    "uce": {"captions": CAPTIONS},
    "rece": {"captions": CAPTIONS},
    "time": {},
    "speed": {"captions": CAPTIONS},
}


@pytest.fixture(scope="module")
def pipe():
    """In float64, so that no delta is rounded."""
    return make_pipeline(cross_attention_dim=32, heads=2, max_length=24).to(torch.float64)


@pytest.fixture(scope="module")
def data(pipe) -> EraserData:
    g = torch.Generator().manual_seed(2)
    return EraserData(
        prior=second_moment(pipe, ["a portrait of the doctor", "an oil painting of the sky", ""]),
        domain=second_moment(pipe, [c for name in TASK.retain for c in fill(CAPTIONS, name)]),
        images={name: torch.rand(2, 3, 16, 16, generator=g) * 2 - 1 for name in TASK.erase},
        masks={name: torch.rand(2, 1, 16, 16, generator=g) > 0.4 for name in TASK.erase},
    )


@pytest.fixture
def passes(pipe):
    """The token ids of every caption that passes the text encoder, or a copy of it in another precision."""
    counted: Counter[tuple[int, ...]] = Counter()
    module = pipe.text_encoder

    def count(_, inputs: tuple[torch.Tensor]) -> None:
        counted.update(map(tuple, inputs[0].tolist()))

    handle = module.register_forward_pre_hook(count)
    yield counted
    handle.remove()


def erased(pipe, data: EraserData, name: str, folder: Path | None = None, **settings) -> Delta:
    cfg = build(eraser_config(name), SETTINGS[name] | settings, "settings")
    return method(name).erase(pipe, TASK, cfg, data, 0, folder)


def moved(pipe, one: Delta, other: Delta) -> float:
    """The largest ||one - other|| / ||other - W|| of the projections."""
    weights = {f"unet.{n}.weight": w for n, w in projection_weights(pipe.unet).items()}
    return max(float((one[n] - other[n]).norm() / (other[n] - weights[n]).norm()) for n in other)


@pytest.mark.parametrize("name", list(SETTINGS))
def test_each_caption_is_embedded_once(pipe, data, passes, name):
    erased(pipe, data, name)
    retains = name in ("uce", "rece", "speed")
    words = {*TASK.erase, *TASK.mapping.values(), *(TASK.retain if retains else ())}
    templates = build(eraser_config(name), SETTINGS[name], "settings").captions
    expected = len(words) * len(templates) + retains  # and the caption ""
    assert set(passes.values()) == {1}
    assert len(passes) == expected


def test_variants_of_the_fusion_embed_nothing(pipe, data, passes):
    mace, cfg = method("mace"), build(eraser_config("mace"), SETTINGS["mace"], "settings")
    trained: TrainedLoras = mace.train_loras(pipe, TASK, cfg, data, 0)
    passes.clear()
    variant = replace(cfg, fuse_preserve_scale=0.5)
    shared, _ = mace.fuse(pipe, TASK, variant, replace(data, sums=trained.sums), trained.refined, trained.loras)
    assert not passes
    again, _ = mace.fuse(pipe, TASK, variant, data, trained.refined, trained.loras)
    assert sum(passes.values()) == len(TASK.erase) * len(CAPTIONS)
    assert shared.keys() == again.keys() and all(torch.equal(w, again[n]) for n, w in shared.items())


def test_the_stages_give_the_delta_of_one_erasure(tmp_path, monkeypatch):
    """The stage of the LoRAs writes the sums, and the closed form of a variant reads them: no caption is embedded."""
    monkeypatch.chdir(tmp_path)
    pipe = make_pipeline(cross_attention_dim=32, heads=2, max_length=24)
    pipe.save_pretrained("base")
    pictures = [Image.new("RGB", (16, 16), (40 * k, 90, 200 - 30 * k)) for k in range(len(TASK.erase))]
    rows = pd.DataFrame({"prompt": list(TASK.erase), "concept": list(TASK.erase), "seed": 0})
    write_image_set(Path("images/images.parquet"), rows, enumerate(pictures))
    settings = SETTINGS["mace"] | {"use_masks": False, "train_preserve_scale": 0.0, "fuse_preserve_scale": 0.0}
    task = {"name": "mixed", "kind": "object", "erase": list(TASK.erase), "mapping": TASK.mapping, "retain": ["sky"]}
    block = {"base": {"path": "base", "revision": None}, "method": "mace", "task": task, "seed": 3}
    block |= {"settings": settings, "delta_precision": "fp32"}
    inputs = {"images": (Path("images/manifest.json"),)}
    for name in ("loras", "delta"):
        Path(name).mkdir()
    loras_stage.make(Job(block, Path("loras/manifest.json"), inputs, "cpu"), Path("loras"))
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "__call__", lambda *_: pytest.fail("a caption was embedded"))
        erase_stage.make(Job(block, Path("delta/manifest.json"), {"loras": (Path("loras/manifest.json"),)}, "cpu"),
                         Path("delta"))  # fmt: skip
    images = {c: torch.from_numpy(np.array(i)).permute(2, 0, 1)[None] / 127.5 - 1
              for c, i in zip(TASK.erase, pictures, strict=True)}  # fmt: skip
    cfg = build(eraser_config("mace"), settings, "settings")
    expected = method("mace").erase(load_base("base"), TASK, cfg, EraserData(images=images), 3)
    delta = load_delta(Path("delta/delta.safetensors"))
    assert delta.keys() == expected.keys() and all(torch.equal(w, expected[n]) for n, w in delta.items())


@pytest.mark.parametrize(("captions", "passes"), [(1, [1]), (7, [7]), (8, [4, 4]), (30, [5, 5, 4, 4, 4, 4, 4])])
def test_on_a_cpu_captions_pass_in_parts_whose_activations_are_small(pipe, monkeypatch, captions, passes):
    """Of equal sizes, four captions or more; in one pass, as on a GPU, they have the same embeddings."""
    texts, sizes = [f"a photo of the {'ship ' * (1 + n % 5)}" for n in range(captions)], []
    encoder = Encoder(pipe)
    whole, forward = encoder(texts), encoder.model.forward
    monkeypatch.setattr(encoder.model, "forward", lambda ids, **more: sizes.append(len(ids)) or forward(ids, **more))
    monkeypatch.setattr(text, "CPU_BYTES", 1)
    torch.testing.assert_close(encoder(texts), whole, rtol=1e-13, atol=1e-13)
    assert sizes == passes


def test_rows_behind_a_caption_are_absent_and_the_others_equal(pipe):
    encoder, captions = Encoder(pipe, batch=2), ["a photo of the ship", "cat", "the dog on the ground"]
    whole, part = encoder(captions), encoder(captions, padded=False)
    assert part.shape == whole.shape
    for row, rows, caption in zip(part, whole, captions, strict=True):
        length = len(pipe.tokenizer(caption).input_ids)
        torch.testing.assert_close(row[:length], rows[:length], rtol=1e-12, atol=1e-12)
        assert row[-1].isnan().all()


@pytest.mark.parametrize(("name", "settings"), [("uce", {"tokens": "last"}), ("speed", {})])
def test_padding_is_not_computed_where_no_edit_reads_it(pipe, data, monkeypatch, name, settings):
    short = erased(pipe, data, name, **settings)
    lengths = []

    def whole(self, captions, padded=True):
        lengths.append(padded)
        return original(self, captions)

    original = Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", whole)
    assert moved(pipe, short, erased(pipe, data, name, **settings)) < 1e-11
    assert False in lengths


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ("mace", "speed")])
def test_an_encoder_in_fp32_moves_the_delta_by_less_than_the_bound(pipe, data, tmp_path, name):
    double, single = erased(pipe, data, name), erased(pipe, data, name, tmp_path, encoder_precision="fp32")
    report = json.loads((tmp_path / "closed_form.json").read_text())
    assert report["encoder_precision"] == "fp32"
    condition = max(part["condition"] for part in report.values() if isinstance(part, dict))
    assert 0 < moved(pipe, single, double) < movement(condition) + 1e-6  # the rounding of the embeddings themselves


@pytest.mark.parametrize(("lamb", "chosen"), [(1e-3, "fp64"), (1e3, "fp32")])
def test_auto_decides_by_the_condition_number(pipe, data, tmp_path, lamb, chosen):
    delta = erased(pipe, data, "uce", tmp_path, lamb=lamb, encoder_precision="auto")
    named = erased(pipe, data, "uce", lamb=lamb, encoder_precision=chosen)
    assert all(torch.equal(w, named[n]) for n, w in delta.items())
    report = json.loads((tmp_path / "closed_form.json").read_text())
    assert report["encoder_precision"] == chosen
    assert (movement(report["edit"]["condition"]) < NEGLIGIBLE) == (chosen == "fp32")


@pytest.mark.parametrize(("lamb", "refinement", "fusion"), [(0.4, "fp64", "fp64"), (1e4, "fp32", "fp32")])
def test_auto_of_the_two_closed_forms_of_mace(pipe, data, tmp_path, passes, lamb, refinement, fusion):
    erased(pipe, data, "mace", tmp_path, lamb=lamb, encoder_precision="auto")
    report = json.loads((tmp_path / "closed_form.json").read_text())
    assert report["refinement"]["encoder_precision"] == refinement
    assert report["fusion"]["encoder_precision"] == fusion
    assert set(passes.values()) == {1 if refinement == "fp32" else 2}  # fp32 first, and no third time in the fusion
