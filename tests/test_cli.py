"""The command line on a Stable Diffusion folder of other sizes: d = 768, 16 heads, v-prediction, three levels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from image_readers import read_training_images
from resurgence.cli import main
from resurgence.cli.key_values import settings
from resurgence.cli.score import means
from resurgence.config.fields import ConfigError
from resurgence.diffusion.deltas import apply_folder
from resurgence.diffusion.image_sets import read_image_set
from resurgence.diffusion.pipeline import load_base
from resurgence.provenance.manifest import read_manifest, verify
from resurgence.provenance.source_modules import PACKAGE
from tiny import make_pipeline, predict

TASK = {
    "name": "ship", "kind": "object", "erase": ["ship"], "retain": ["dog", "bird"], "mapping": "sky",
    "templates": ["a photo of the {}", "the {} in an official photo"], "seeds": {"erase": 2, "retain": 1, "synonym": 1},
    "synonyms": {"ship": ["boat"]}, "finetune": ["cat"], "erasers": {"mace": {"lamb": 0.5}},
}  # fmt: skip
FAST = ["--sampling", "steps=2", "batch=4", "--per-concept", "2", "--mask", "segmenter=cross-attention", "empty=whole"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, a task, a picture folder and two scorers, and everything that the commands made of it."""
    path = tmp_path_factory.mktemp("cli")
    make_pipeline(
        cross_attention_dim=768, heads=16, block_out_channels=(32, 48, 64), prediction_type="v_prediction", pad="zero",
        layers_per_block=2, vae_channels=(8, 8, 8),
    ).save_pretrained(path / "base")  # fmt: skip
    (path / "task.yaml").write_text(yaml.safe_dump(TASK))
    (path / "cat.yaml").write_text(yaml.safe_dump(TASK | {"erase": ["cat"], "synonyms": {}, "finetune": []}))
    (path / "general.txt").write_text("a picture of the sky above a street\n\nan oil painting of the cat\n")
    (path / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 36, 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(path / "pictures" / f"a photo of the cat_{number}.png")
    write_scorers(path)
    common = ["--base", path / "base", "--device", "cpu"]
    task = ["--task", path / "task.yaml"]
    prior = ["--prior", path / "general.txt"]
    run("erase", *common, *task, "--eraser", "uce", "--out", path / "uce", "--set", "lamb=0.1")
    run("erase", *common, *task, "--eraser", "mace", "--out", path / "mace", *prior, "--set", "steps=2", *FAST)
    tuning = ["--set", "steps=2", "checkpoints=[1, 2]", "lr=1e-2", "batch=2", "accumulation=1"]
    images = ["--images", path / "pictures"]
    run("finetune", *common, "--delta", path / "mace", *images, "--out", path / "lora", *tuning)
    run("finetune", *common, *images, "--out", path / "full", *tuning, "algorithm=full", "ema=true")
    final = path / "lora" / "step-000002"
    quick = ["--set", "steps=2", "guidance=3", "batch=5"]
    general = ["--general", path / "general.txt"]
    run("sample", *common, *task, *general, "--out", path / "images base", *quick)
    run("sample", *common, "--delta", path / "mace", final, *task, *general, "--out", path / "images", *quick)
    scorers = ["--recogniser", path / "recogniser", "--clip", path / "clip"]
    run("score", "--images", path / "images", *task, *scorers, "--device", "cpu", "--out", path / "scores")
    run("export", *common, "--delta", path / "mace", final, "--out", path / "export")
    return path


def run(*arguments: object) -> None:
    assert main.main([str(a) for a in arguments]) == 0


def write_scorers(path: Path) -> None:
    """A random recogniser of the task's classes and a random CLIP with open_clip's own tokenizer."""
    import open_clip

    from resurgence.scorers.recogniser_model import Recogniser, save_recogniser

    torch.manual_seed(0)
    save_recogniser(Recogniser(4, width=8), ["ship", "dog", "bird", "cat"], path / "recogniser")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (path / "clip").mkdir()
    (path / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(open_clip.CLIP(**config).state_dict(), path / "clip" / "open_clip_model.safetensors")


@pytest.mark.parametrize("name", ["uce", "mace", "lora", "full", "images base", "images", "scores", "export"])
def test_every_command_writes_a_complete_artefact(place: Path, name: str) -> None:
    assert verify(place / name) == []
    assert not [p for p in place.iterdir() if p.name.startswith(".")]  # no temporary folder, no training state


@pytest.mark.parametrize("eraser", ["uce", "mace"])
def test_erasers_change_the_text_projections_only_and_the_erased_prompt_most(place: Path, eraser: str) -> None:
    delta = load_file(place / eraser / "delta.safetensors")
    assert delta and all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in delta)
    base, erased = load_base(place / "base"), load_base(place / "base")
    apply_folder(erased, place / eraser)
    moved = {p: (predict(erased, p) - predict(base, p)).norm() for p in ("a photo of the ship", "a photo of the dog")}
    assert moved["a photo of the ship"] > 0 and all(map(torch.isfinite, moved.values()))


@pytest.mark.parametrize(
    ("eraser", "settings", "part"),
    [
        ("ca", ["steps=2", "batch=2"], "unet."),
        ("salun", ["steps=2", "batch=2", "mask_steps=1", "parameters=xattn"], "unet."),
        ("advunlearn", ["steps=2", "warmup=1", "attack_steps=1", "ddim_steps=2"], "text_encoder."),
    ],
)
def test_erasers_get_the_images_that_they_read(
    place: Path, tmp_path: Path, eraser: str, settings: list[str], part: str
) -> None:
    common = ["--base", place / "base", "--device", "cpu", "--task", place / "task.yaml", "--out", tmp_path / eraser]
    numbers = ["--per-concept", 2, "--per-anchor", 2, "--per-retained", 2, "--sampling", "steps=2"]
    run("erase", *common, "--eraser", eraser, *numbers, "--set", "lr=1e-3", *settings)
    assert verify(tmp_path / eraser) == []
    assert all(name.startswith(part) for name in load_file(tmp_path / eraser / "delta.safetensors"))
    assert len(json.loads((tmp_path / eraser / "curves.json").read_text())["loss"]) == 2
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]  # the training's state is gone


def test_mace_leaves_its_loras_and_curves(place: Path) -> None:
    assert list((place / "mace").rglob("pytorch_lora_weights.safetensors"))
    assert read_manifest(place / "mace")["parameters"]["settings"]["lamb"] == 0.5  # of the task file


def test_checkpoints_of_lora_and_of_full(place: Path) -> None:
    for step in ("step-000001", "step-000002"):
        assert (place / "lora" / step / "pytorch_lora_weights.safetensors").exists()
        assert (place / "full" / step / "delta.safetensors").exists()
    curve = json.loads((place / "lora" / "curve.json").read_text())
    assert [row["step"] for row in curve] == [1, 2] and curve[0]["lr"] == 0.01
    assert read_manifest(place / "full")["parameters"]["settings"]["ema"] is True


def test_images_differ_between_base_and_tuned_on_the_same_prompts_and_seeds(place: Path) -> None:
    (rows, base), (same, tuned) = (read_image_set(place / n / "images.parquet") for n in ("images base", "images"))
    pd.testing.assert_frame_equal(rows, same)
    assert rows["role"].value_counts().to_dict() == {"erase": 4, "retain": 4, "synonym": 2, "general": 2}
    assert base.shape == (12, 3, 32, 32) and (base != tuned).flatten(1).any(1).all()


def test_scores_have_a_row_an_image_and_a_summary(place: Path) -> None:
    scores = pd.read_parquet(place / "scores" / "scores.parquet")
    assert len(scores) == 12 and {"recogniser_correct", "clip_score", "clip_correct"} <= set(scores)
    assert (place / "scores" / "features.safetensors").exists()
    table = means(scores)
    assert table["images"].to_dict() == {"erase": 4, "retain": 4, "synonym": 2, "general": 2}
    erased = scores.query("role == 'erase'")
    assert table.loc["erase", "recogniser_accuracy"] == pytest.approx(100 * erased["recogniser_correct"].mean())


def test_export_is_the_base_with_the_deltas(place: Path) -> None:
    exported = StableDiffusionPipeline.from_pretrained(place / "export", use_safetensors=True)
    tuned = load_base(place / "base")
    apply_folder(tuned, place / "mace")
    apply_folder(tuned, place / "lora" / "step-000002")
    prompt = "a photo of the ship"
    assert torch.allclose(predict(exported, prompt), predict(tuned, prompt), atol=1e-5)
    assert not torch.allclose(predict(exported, prompt), predict(load_base(place / "base"), prompt), atol=1e-3)


def test_a_rerun_writes_the_same_manifest(place: Path) -> None:
    before = (place / "uce" / "manifest.json").read_bytes()
    arguments = ["--base", place / "base", "--task", place / "task.yaml", "--device", "cpu"]
    run("erase", *arguments, "--eraser", "uce", "--out", place / "uce", "--set", "lamb=0.1")
    assert (place / "uce" / "manifest.json").read_bytes() == before


def test_only_some_roles(place: Path, tmp_path: Path) -> None:
    arguments = ["--base", place / "base", "--task", place / "task.yaml", "--device", "cpu", "--out", tmp_path / "x"]
    run("sample", *arguments, "--roles", "erase", "--set", "steps=1", "size=16", "--precision", "bf16")
    rows, images = read_image_set(tmp_path / "x" / "images.parquet")
    assert set(rows["role"]) == {"erase"} and images.shape == (4, 3, 16, 16)


def test_the_installed_module_runs_by_itself() -> None:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-m", "resurgence.cli", "finetune", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    assert "--images" in told and "shuffle_captions=false" in told and "lr=0.0001" in told


def test_help_does_not_import_torch() -> None:
    code = "import sys; from resurgence.cli.main import make_parser; make_parser().format_help(); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)}, check=True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("erase --base {p}/base --task {p}/none.yaml --eraser uce --out {t}/x", "none.yaml"),
        ("erase --base {p}/none --task {p}/task.yaml --eraser uce --out {t}/x", "correct the path"),
        ("erase --base {p}/base --task {p}/task.yaml --eraser uce --out {t}/x --set lam=1", "did you mean 'lamb'"),
        ("erase --base {p}/base --task {p}/task.yaml --eraser uce --out {t}/x --set lamb", "key=value"),
        ("erase --base {p}/base --task {p}/task.yaml --eraser uce --out {p}/pictures", "not replaced"),
        ("erase --base {p}/base --task {p}/task.yaml --eraser mace --out {t}/x --prior {p}/none.txt", "none.txt"),
        ("erase --base {p}/base --task {p}/task.yaml --eraser mace --out {t}/x --template photo", "--template"),
        ("finetune --base {p}/base --images {p}/clip --out {t}/x", "no pictures"),
        ("finetune --base {p}/base --images {p}/pictures --out {t}/x --set lr=-1", "lr"),
        ("sample --base {p}/base --task {p}/task.yaml --out {t}/x --delta {p}/mace {p}/lora", "step-000002"),
        ("sample --base {p}/base --task {p}/task.yaml --out {t}/x --device cuda:99", "cuda:99"),
        ("sample --base {p}/base --task {p}/task.yaml --out {t}/x --roles general", "captions with --general"),
        ("score --images {p}/images --task {p}/cat.yaml --out {t}/x --clip {p}/clip", "has no 'ship' for the images"),
        ("score --images {p}/images --task {p}/task.yaml --out {t}/x", "at least one scorer"),
        ("score --images {p}/pictures --task {p}/task.yaml --out {t}/x --clip {p}/clip", "no image set"),
        ("export --base {p}/base --delta {p}/mace --out {p}/pictures", "not replaced"),
    ],
)
def test_mistakes_are_told_in_one_line_and_leave_nothing(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = sorted(place.iterdir())
    assert main.main([a.format(p=place, t=tmp_path) for a in arguments.split()]) == 1
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir()) and sorted(place.iterdir()) == before


def test_images_for_which_the_disk_has_no_space(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image of 8192 pixels takes a fifth of 3 * 8192^2 bytes, 38.4 MiB, or more."""
    number = shutil.disk_usage(tmp_path).free // (384 * 2**20 // 10) + 100  # of the one erased concept
    task = {**TASK, "templates": ["the {}"], "seeds": {"erase": number, "retain": 1, "synonym": 1}}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    arguments = ["--base", place / "base", "--device", "cpu", "--task", tmp_path / "task.yaml", "--out", tmp_path / "x"]
    assert main.main([str(a) for a in ("sample", *arguments, "--roles", "erase", "--set", "size=8192")]) == 1
    needed = number * 384 / 10
    assert f"{tmp_path}/x needs {needed:.0f} MiB or more, its disk has " in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["task.yaml"]


def test_verbose_shows_the_traceback(tmp_path: Path) -> None:
    arguments = f"--verbose score --images {tmp_path} --task {tmp_path}/none.yaml --clip x --out {tmp_path}/x"
    with pytest.raises(ConfigError):
        main.main(arguments.split())


def test_settings_take_json_and_yaml_values() -> None:
    pairs = ["lr=1e-4", "steps=5", "checkpoints=[1, 5]", "fusion=closed-form", "size=null", "ema=true"]
    values = {"lr": 1e-4, "steps": 5, "checkpoints": [1, 5], "fusion": "closed-form", "size": None, "ema": True}
    assert settings(pairs, "--set") == values
    for wrong in (["lr"], ["=3"], ["a=1", "a=2"]):
        with pytest.raises(ConfigError, match="--set"):
            settings(wrong, "--set")


# --- training images


def test_pictures_are_scaled_cropped_and_captioned_by_their_names(place: Path) -> None:
    images, captions, _ = read_training_images(place / "pictures", 36)
    assert images.shape == (4, 3, 36, 36) and set(captions) == {"a photo of the cat"}
    picture = np.asarray(Image.open(place / "pictures" / "a photo of the cat_0.png"))  # (40, 36, 3)
    back = ((images[0].permute(1, 2, 0).numpy() + 1) * 127.5).round()
    assert np.array_equal(back, picture[2:38])


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_names_the_captions(place: Path, tmp_path: Path, kind: str) -> None:
    for number in range(2):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [{"file_name": "1.png", "text": "one, two"}, {"file_name": "0.png", "text": "zero"}]
    if kind == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        pd.DataFrame(rows).to_csv(tmp_path / "metadata.csv", index=False)
    images, captions, _ = read_training_images(tmp_path, 8)
    assert captions == ["one, two", "zero"] and images[0, 0, 0, 0] == 1 / 127.5 - 1
    (tmp_path / "1.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"1\.png cannot be read"):
        read_training_images(tmp_path, 8)


def test_image_sets_are_training_images_too(place: Path) -> None:
    rows, pixels = read_image_set(place / "images" / "images.parquet")
    images, captions, _ = read_training_images(place / "images", 32)
    assert captions == rows["prompt"].tolist()
    assert torch.equal(((images + 1) * 127.5).round().to(torch.uint8), pixels)
    assert images.stride() == pixels.stride()  # the autoencoder rounds otherwise in another layout
    assert read_training_images(place / "images" / "images.parquet", 16)[0].shape == (12, 3, 16, 16)
