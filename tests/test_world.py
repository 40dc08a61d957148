"""The miniature world: composition, captions, tokenizer, the training and its exact resume, the networks' losses."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.functional import normalize

from resurgence.config.fields import ConfigError
from resurgence.config.task import load_task
from resurgence.miniature.autoencoder import edge_l1
from resurgence.miniature.captions import (
    CaptionConfig,
    build_tokenizer,
    caption,
    corpus,
    read_templates,
)
from resurgence.miniature.compositions import compose, scene
from resurgence.miniature.drawings import icon_svg, load_world, read_icon_set, render
from resurgence.miniature.quality import held_out
from resurgence.miniature.recogniser import start_from
from resurgence.miniature.text_to_image import build_scheduler, min_snr_weight
from resurgence.miniature.training import step_generator, train_module, warmup_cosine
from resurgence.scorers.recogniser_model import Labels, Recogniser, load_recogniser, save_recogniser
from resurgence.training.checkpoint import Saver

ROOT = Path(__file__).parent.parent
WORLD = load_world(ROOT / "config/concepts/miniature.yaml")
TEMPLATES = read_templates(ROOT / "config/prompts/closed_form.txt")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_world_is_large_enough_and_its_words_are_unambiguous() -> None:
    names = [c["name"] for c in WORLD["concepts"]]
    synonyms = [s for c in WORLD["concepts"] for s in c["synonyms"]]
    assert len(names) == len(set(names)) >= 150 and len(WORLD["artists"]) >= 5
    assert len(synonyms) == len(set(synonyms)) and not set(names) & set(synonyms)


@pytest.mark.parametrize("path", sorted((ROOT / "config/tasks/miniature").glob("*.yaml")), ids=lambda p: p.stem)
def test_no_task_fine_tunes_on_what_it_erases_or_retains(path: Path) -> None:
    task = load_task(path)
    assert not set(task.finetune) & {*task.erase, *task.retain} and not set(task.erase) & set(task.retain)


def test_icons_are_read_from_the_package_and_aliases_followed(tmp_path: Path) -> None:
    square = '<path fill="#f00" d="M0 0h8v8H0z"/>'
    icons = {"width": 8, "height": 8, "icons": {"square": {"body": square}}, "aliases": {"box": {"parent": "square"}}}
    (tmp_path / "icons.json").write_text(json.dumps(icons))
    with tarfile.open(tmp_path / "set.tgz", "w:gz") as archive:
        archive.add(tmp_path / "icons.json", "package/icons.json")
    read = read_icon_set(tmp_path / "set.tgz")
    assert icon_svg(read, "absent") is None and icon_svg(read, "box") == icon_svg(read, "square")
    assert render(icon_svg(read, "box")).startswith(b"\x89PNG")


def test_compose_keeps_opaque_drawings_and_shows_the_background_behind_transparent_ones() -> None:
    opaque = torch.full((3, 4, 64, 64), 255, dtype=torch.uint8)
    opaque[:, 1:3] = 0  # red
    still = {"degrees": 0.0, "scale": (1.0, 1.0), "shift": 0.0}
    red = compose(opaque, generator(), **still)
    assert torch.allclose(red, torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1).expand_as(red), atol=1e-5)
    clear = compose(torch.zeros(3, 4, 64, 64, dtype=torch.uint8), generator(), **still)
    assert clear.min() >= 0.39  # light: at least 0.7 in [0, 1]
    assert torch.equal(compose(opaque, generator(5)), compose(opaque, generator(5)))


def test_held_out_transformations_stay_in_range_and_repeat() -> None:
    drawings = torch.randint(0, 256, (4, 4, 64, 64), dtype=torch.uint8, generator=generator())
    images = held_out(drawings, generator(1))
    assert images.shape == (4, 3, 64, 64) and images.abs().max() <= 1
    assert torch.equal(images, held_out(drawings, generator(1)))
    assert scene([0.1] * 3, [0.2] * 3, 2, 64, generator()).shape == (2, 3, 64, 64)


def test_captions_name_the_concept_one_of_its_synonyms_or_hypernyms() -> None:
    concept = WORLD["concepts"][0]
    words, styled, draws = [concept["name"], *concept["synonyms"], *concept["hypernyms"]], 0, generator()
    for _ in range(200):
        text = caption(concept, {"name": "noto"}, TEMPLATES, CaptionConfig(), draws)
        assert any(word in text for word in words)
        styled += "in the style of noto" in text
    assert 40 <= styled <= 100  # 35 % of 200, five standard deviations


def test_every_word_of_the_world_is_one_token_and_any_text_can_be_written(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(corpus(WORLD, TEMPLATES))
    for concept in WORLD["concepts"]:
        assert len(tokenizer.tokenize(concept["name"])) == len(concept["name"].split())
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == len(tokenizer) - 1
    text = "un éléphant, 42 & co"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).replace(" ", "") == text.replace(
        " ", ""
    )
    tokenizer.save_pretrained(tmp_path)
    assert type(tokenizer).from_pretrained(tmp_path)(text).input_ids == tokenizer(text).input_ids


def test_another_process_makes_the_same_tokenizer() -> None:
    """The trainer breaks ties of pairs by numbers, which a hash table of another seed must not give."""
    code = (
        "import json, sys; from resurgence.miniature.captions import build_tokenizer;"
        "print(json.dumps(sorted(build_tokenizer(json.load(sys.stdin)).get_vocab().items())))"
    )
    texts = corpus(WORLD, TEMPLATES)[::9]
    made = [
        subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(texts), capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]
    here = json.dumps(sorted(build_tokenizer(texts).get_vocab().items()))
    assert [process.stdout.strip() for process in made] == [here, here]


def test_warmup_cosine_rises_linearly_and_ends_at_its_floor() -> None:
    assert warmup_cosine(0, 100, 10) == pytest.approx(0.1) and warmup_cosine(9, 100, 10) == pytest.approx(1)
    assert warmup_cosine(100, 100, 10) == pytest.approx(0.02)


def small_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def small_loss(model: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(8, 3, generator=step_generator(3, step))
    return ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()


def test_training_equals_torchs_averaged_model() -> None:
    """torch's plain AdamW and AveragedModel, buffers included."""
    model, reference = small_model(), small_model().train()
    curve = train_module(model, small_loss, Saver(None, ""), steps=70, lr=1e-2, warmup=5, ema_decay=0.9)
    optimiser = torch.optim.AdamW(reference.parameters(), weight_decay=0.01, fused=False, foreach=False)
    average, losses = AveragedModel(reference, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True), []
    for step in range(70):
        optimiser.param_groups[0]["lr"] = 1e-2 * warmup_cosine(step, 70, 5)
        optimiser.zero_grad()
        loss = small_loss(reference, step)
        loss.backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(reference)
        losses.append(loss.item())
    assert not model.training and [row["step"] for row in curve] == [50, 70]
    for row, part in zip(curve, (losses[:50], losses[50:]), strict=True):
        assert row["loss"] == pytest.approx(sum(part) / len(part), rel=1e-4)
    assert curve[1]["loss"] < curve[0]["loss"]
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at", [1, 23, 69])
def test_an_interrupted_training_ends_bit_identical(tmp_path: Path, at: int) -> None:
    def stopping(model: nn.Module, step: int) -> torch.Tensor:
        if step == at:
            signal.raise_signal(signal.SIGTERM)
        return small_loss(model, step)

    settings = {"steps": 70, "lr": 1e-2, "warmup": 5}
    whole, resumed = small_model(), small_model()
    curve = train_module(whole, small_loss, Saver(None, ""), **settings)
    with pytest.raises(SystemExit):
        train_module(small_model(), stopping, Saver(tmp_path, "mark"), **settings)
    assert train_module(resumed, small_loss, Saver(tmp_path, "mark"), **settings) == curve
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_min_snr_weight_is_the_papers_formula() -> None:
    for alpha_bar in build_scheduler().alphas_cumprod[[10, 300, 700, 990]].tolist():
        snr = alpha_bar / (1 - alpha_bar)
        weight = min_snr_weight(torch.tensor(alpha_bar, dtype=torch.float64))
        assert float(weight) == pytest.approx(min(snr, 5) / (snr + 1), rel=1e-9)


def test_edge_loss_ignores_a_constant_and_sees_a_step() -> None:
    flat, step = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    step[..., 4:] = 1
    assert edge_l1(flat, flat + 0.5) == 0
    assert edge_l1(flat, step) == pytest.approx(1 / 7)  # one of seven horizontal differences is 1


@pytest.mark.parametrize("styles", [[], ["plain", "sepia"]])
def test_recogniser_folder_round_trip_and_missing_file(tmp_path: Path, styles: list[str]) -> None:
    model, labels = Recogniser(5, 8, styles=len(styles)).eval(), Labels(list("abcde"), styles, (1.5, 0.5))
    save_recogniser(model, labels, tmp_path / "r")
    read, read_labels = load_recogniser(tmp_path / "r")
    images = torch.randn(2, 3, 64, 64, generator=generator())
    assert read_labels.classes == labels.classes and read_labels.styles == styles
    assert tuple(read_labels.temperatures) == labels.temperatures
    assert [logits.shape[1] for logits in read(images)] == [5, len(styles)]
    assert all(torch.equal(a, b) for a, b in zip(model(images), read(images), strict=True))
    (tmp_path / "r" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors.*dvc pull"):
        load_recogniser(tmp_path / "r")


def published_resnet(path: Path) -> torch.nn.Module:
    """A ResNet-18 whose weights lie in a file as torchvision publishes them."""
    net = torchvision.models.resnet18().eval()
    torch.save(net.state_dict(), path)
    return net


def test_a_recogniser_that_starts_from_imagenet_has_the_features_of_torchvisions_last_stage(tmp_path: Path) -> None:
    net = published_resnet(tmp_path / "net.pth")
    model, start = Recogniser(5, 64, styles=2, trunk="resnet18"), {"path": str(tmp_path / "net.pth"), "sha256": "ab"}
    with pytest.raises(ValueError, match=r"recogniser.start.path = .* have the SHA-256 (\w+), expected ab;") as error:
        start_from(model, start)
    start_from(model, {**start, "sha256": re.search(r"SHA-256 (\w+)", str(error.value))[1]})
    images = torch.rand(3, 3, 64, 64, generator=generator()) * 2 - 1
    enlarged = torch.nn.functional.interpolate(images, (96, 96), mode="bilinear")
    inputs = normalize(enlarged / 2 + 0.5, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    wanted = create_feature_extractor(net, ["layer4"])(inputs)["layer4"].mean((2, 3))
    torch.testing.assert_close(model.eval().features(images), wanted, rtol=1e-4, atol=1e-5)
    save_recogniser(model, Labels(list("abcde"), ["plain", "neon"]), tmp_path / "r")
    again, _ = load_recogniser(tmp_path / "r")
    assert all(torch.equal(a, b) for a, b in zip(model(images), again(images), strict=True))


def test_published_weights_are_for_a_resnet_only(tmp_path: Path) -> None:
    published_resnet(tmp_path / "net.pth")
    with pytest.raises(ConfigError, match=r"recogniser.start.path = .*: is for trunk: resnet18"):
        start_from(Recogniser(5, 8), {"path": str(tmp_path / "net.pth"), "sha256": "ab"})
    config = tmp_path / "r/config.json"
    save_recogniser(Recogniser(5, 8), list("abcde"), tmp_path / "r")
    config.write_text(config.read_text().replace('"small"', '"vgg"'))
    with pytest.raises(ValueError, match=r"recogniser: trunk = 'vgg' of .* is none of small, resnet18; run"):
        load_recogniser(tmp_path / "r")


def test_weights_stored_as_integers_come_back_to_half_a_step_in_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    model = Recogniser(5, 16, styles=2).eval()
    with torch.no_grad():
        model.head.weight[0] = 0
    save_recogniser(model, list("abcde"), tmp_path / "floats")
    save_recogniser(model, Labels(list("abcde"), ["plain", "neon"]), tmp_path / "integers", integers=True)
    read, _ = load_recogniser(tmp_path / "integers")
    for name, value in model.state_dict().items():
        again = read.state_dict()[name]
        if value.ndim < 2:
            assert torch.equal(again, value), name
        else:
            half_a_step = value.abs().flatten(1).amax(1, keepdim=True) / 254
            assert ((again - value).abs().flatten(1) <= half_a_step * 1.001).all(), name
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("integers", "floats")]
    assert sizes[0] < 0.35 * sizes[1]
