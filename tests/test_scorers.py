"""Scorers: columns against direct computation, open_clip from folders, Fréchet against torchmetrics and scipy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from open_clip import CLIP
from PIL import Image
from safetensors.torch import save_file
from torchmetrics.image.fid import FrechetInceptionDistance

from resurgence import scorers
from resurgence.config.task import Task
from resurgence.scorers import clip, frechet, recogniser
from resurgence.scorers.recogniser_model import Recogniser, save_recogniser
from tiny import make_tokenizer

CLASSES = ["bird", "cat", "dog", "ship", "truck"]
TASK = Task(
    name="ship", kind="object", erase=("ship",), retain=("cat", "dog"), mapping={"ship": "ground"},
    templates=("a photo of the {}",), seeds={"erase": 1, "retain": 1, "synonym": 1}, synonyms={"ship": ("vessel",)},
)  # fmt: skip
PROMPTS = pd.DataFrame(
    [
        ("a photo of the ship", "ship", "erase"),
        ("a photo of the cat", "cat", "retain"),
        ("a photo of the dog", "dog", "retain"),
        ("a photo of the vessel", "ship", "synonym"),
        ("a street", "", "general"),
        ("a photo of the ship", "ship", "erase"),
    ],
    columns=["prompt", "concept", "role"],
)


def pictures(count: int = 6, size: int = 64, seed: int = 0) -> torch.Tensor:
    """Random uint8 images (N, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def recogniser_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random recogniser whose batch statistics are not the trivial ones."""
    folder = tmp_path_factory.mktemp("recogniser")
    torch.manual_seed(1)
    model = Recogniser(len(CLASSES), width=8)
    model.train()(torch.randn(16, 3, 64, 64))
    save_recogniser(model, CLASSES, folder)
    return folder


def write_clip(folder: Path, tokenizer_at: str = ".") -> CLIP:
    """A random open_clip folder with a Hugging Face tokenizer in it or below it; returns the model."""
    tokenizer = make_tokenizer(max_length=16)
    cfg = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {
            "context_length": 16, "vocab_size": len(tokenizer), "width": 32, "heads": 2, "layers": 2,
            "hf_tokenizer_name": tokenizer_at, "tokenizer_kwargs": {"clean": "whitespace"},
        },
    }  # fmt: skip
    torch.manual_seed(2)
    model = CLIP(**cfg).eval()
    preprocess = {
        "mean": [0.4, 0.5, 0.6],
        "std": [0.3, 0.2, 0.25],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    (folder / tokenizer_at).mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder / tokenizer_at)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return model


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    return folder


def test_recogniser_columns_are_the_models_softmax(recogniser_folder: Path) -> None:
    scorer = recogniser.load(recogniser_folder)
    scorer.batch = 4  # the last part is smaller
    table = scorer.score(pictures(), PROMPTS, TASK)
    with torch.no_grad():
        p = scorer.model(pictures().float() / 127.5 - 1).softmax(1).numpy()
    assert table["recogniser_top1"].tolist() == [CLASSES[i] for i in p.argmax(1)]
    for row, concept in enumerate(PROMPTS["concept"]):
        if concept:
            assert table["recogniser_probability"][row] == pytest.approx(p[row, CLASSES.index(concept)], abs=1e-6)
            assert table["recogniser_correct"][row] == float(CLASSES[p[row].argmax()] == concept)
        else:
            assert math.isnan(table["recogniser_correct"][row]) and math.isnan(table["recogniser_probability"][row])


def test_synonyms_are_scored_against_the_class() -> None:
    probabilities = np.eye(5)[[3, 3, 0]]
    table = recogniser.class_columns(probabilities, CLASSES, ["ship", "dog", "bird"])
    assert table["recogniser_correct"].tolist() == [1.0, 0.0, 1.0]
    cosines = np.array([[0.3, 0.1, 0.0], [0.1, 0.2, 0.3]])
    table = clip.label_columns(cosines, ["ship", "cat", "dog"], ["ship", "ship"])
    assert table["clip_correct"].tolist() == [1.0, 0.0]
    expected = np.exp([30, 10]) / np.exp(100 * cosines).sum(1)
    np.testing.assert_allclose(table["clip_probability"], expected, rtol=1e-12)


def test_an_unknown_concept_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'lighthouse' is no class .*5 classes"):
        recogniser.class_columns(np.eye(5), CLASSES, ["ship", "lighthouse", "", "cat", "dog"])
    with pytest.raises(ValueError, match=r"'bird' is not among the labels"):
        clip.label_columns(np.zeros((1, 2)), ["ship", "cat"], ["bird"])


def test_other_sizes_are_resized_for_the_recogniser(recogniser_folder: Path) -> None:
    scorer = recogniser.load(recogniser_folder)
    flat = torch.full((2, 3, 128, 128), 200, dtype=torch.uint8)
    small = torch.full((2, 3, 64, 64), 200, dtype=torch.uint8)
    torch.testing.assert_close(scorer.features(flat), scorer.features(small), atol=1e-5, rtol=1e-5)
    assert recogniser.to_input(pictures(2, 100), 64).shape == (2, 3, 64, 64)
    assert recogniser.to_input(pictures(2), 64).min() >= -1


def test_recogniser_features_are_the_models(recogniser_folder: Path) -> None:
    scorer = recogniser.load(recogniser_folder)
    with torch.no_grad():
        expected = scorer.model.features(pictures().float() / 127.5 - 1)
    torch.testing.assert_close(scorer.features(pictures()), expected, atol=1e-6, rtol=1e-5)


def test_clip_columns_are_open_clips_cosines(clip_folder: Path) -> None:
    scorer = clip.load(clip_folder)
    scorer.batch = 4
    images = pictures(size=48)  # not the model's size: its own preprocessing resizes
    table = scorer.score(images, PROMPTS, TASK)
    source = f"local-dir:{clip_folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(source)
    tokenizer = open_clip.get_tokenizer(source)
    with torch.no_grad():
        x = torch.stack([preprocess(Image.fromarray(i.permute(1, 2, 0).numpy())) for i in images])
        e = F.normalize(model.eval().encode_image(x), dim=-1)
        t = F.normalize(model.encode_text(tokenizer(PROMPTS["prompt"].tolist())), dim=-1)
        labels = F.normalize(
            model.encode_text(tokenizer([f"a photo of the {w}" for w in ("ship", "cat", "dog")])), dim=-1
        )
        p = (100 * e @ labels.T).softmax(1)
    np.testing.assert_allclose(table["clip_score"], 100 * (e * t).sum(1), atol=1e-4)
    for row, concept in enumerate(PROMPTS["concept"]):
        if concept:
            number = ("ship", "cat", "dog").index(concept)
            assert table["clip_probability"][row] == pytest.approx(float(p[row, number]), rel=1e-4)
            assert table["clip_correct"][row] == float(p[row].argmax() == number)
        else:
            assert math.isnan(table["clip_correct"][row])
    assert table["clip_score"].notna().all()


def test_clip_weights_come_from_the_folder(clip_folder: Path, tmp_path: Path) -> None:
    model = write_clip(tmp_path)
    with torch.no_grad():
        expected = F.normalize(model.encode_text(clip.load(tmp_path).tokenizer(["a cat"])), dim=-1)
    torch.testing.assert_close(clip.load(clip_folder).text_features(["a cat"]), expected)


def test_tokenizer_may_lie_in_a_subfolder(clip_folder: Path, tmp_path: Path) -> None:
    write_clip(tmp_path, "tokenizer")
    assert not (tmp_path / "vocab.json").exists() and not (tmp_path / "tokenizer.json").exists()
    texts = ["a photo of the ship", "an oil painting of the cat"]
    below, beside = clip.load(tmp_path).tokenizer(texts), clip.load(clip_folder).tokenizer(texts)
    assert below.shape == (2, 16) and torch.equal(below, beside)


@pytest.mark.parametrize("missing", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_an_incomplete_clip_folder_is_an_error(missing: str, tmp_path: Path) -> None:
    write_clip(tmp_path)
    (tmp_path / missing).unlink()
    (tmp_path / "open_clip_model.pth").write_bytes(b"pickled weights are never read")
    with pytest.raises(FileNotFoundError, match=missing):
        clip.load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either a folder or a name"),
        ({"path": "x", "name": "ViT-B-32"}, "give either a folder or a name"),
        ({"name": "ViT-B-32"}, "random weights score nothing"),
    ],
)
def test_clip_needs_one_source(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip.load(**arguments)


def test_weights_of_the_other_activation_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # openai's weights were trained with QuickGELU; open_clip warns and goes on, which would give other scores
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *a, **k: "nowhere")
    with pytest.raises(ValueError, match="ViT-B-32-quickgelu"):
        clip.load(name="ViT-B-32", pretrained="openai")


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 8), (30, 30, 64), (5, 40, 16)])
def test_frechet_equals_torchmetrics_over_the_same_features(n: int, m: int, d: int) -> None:
    generator = np.random.default_rng(n)
    a = generator.normal(0, 1, (n, d)) @ generator.normal(0, 1, (d, d))
    b = generator.normal(0.3, 1, (m, d)) @ generator.normal(0, 1, (d, d))

    class Stored(torch.nn.Module):
        """Takes features for images."""

        num_features = d

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    metric = FrechetInceptionDistance(feature=Stored(), normalize=True).set_dtype(torch.float64)
    metric.update(torch.from_numpy(a), real=True)
    metric.update(torch.from_numpy(b), real=False)
    assert frechet.distance(a, b) == pytest.approx(float(metric.compute()), rel=1e-6)


def test_frechet_equals_the_formula_with_a_matrix_square_root() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(0, 1, (100, 6)), generator.normal(0.5, 2, (90, 6))
    sa, sb = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(sa @ sb).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sa + sb - 2 * root)
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_a_set_with_itself_is_zero_and_it_is_symmetric() -> None:
    a, b = np.random.default_rng(1).normal(0, 1, (2, 20, 50))
    assert frechet.distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet.distance(a, b) == pytest.approx(frechet.distance(b, a), rel=1e-12)
    assert frechet.distance(a, a + 2.0) == pytest.approx(50 * 4.0)  # a shift alone


def test_small_samples_are_biased_upwards() -> None:
    generator = np.random.default_rng(4)
    far = [np.mean([frechet.distance(*generator.normal(0, 1, (2, n, 16))) for _ in range(20)]) for n in (20, 80, 320)]
    assert far[0] > 2 * far[1] > 4 * far[2] > 0
    assert far[2] > 2 * 16 / 320  # the means alone


def test_frechet_names_unusable_features() -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        frechet.moments(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="NaN"):
        frechet.moments(np.array([[0.0, 1], [np.nan, 2]]))


def test_a_set_is_scored_by_all_scorers_and_read_back(
    recogniser_folder: Path, clip_folder: Path, tmp_path: Path
) -> None:
    settings = {
        "recogniser": {"path": str(recogniser_folder)},
        "clip": {"path": str(clip_folder)},
        "frechet": {"features": "recogniser"},
    }
    loaded = scorers.load_scorers(settings, "cpu")
    assert list(loaded) == ["recogniser", "clip"] and scorers.feature_names(settings) == ["recogniser"]
    rows = PROMPTS.assign(seed=np.arange(6) + 2**62)
    table, features = scorers.score_images(pictures(), rows, TASK, loaded, scorers.feature_names(settings))
    assert table.columns[:4].tolist() == ["prompt", "concept", "role", "seed"]
    made = {metric.column for name in settings for metric in scorers.SCORERS[name].metrics.values()}
    assert made and made <= set(table)
    scorers.write_scores(tmp_path, table, features)
    again, stored = scorers.read_scores(tmp_path)
    pd.testing.assert_frame_equal(again, table)
    assert again["seed"].tolist() == rows["seed"].tolist()
    np.testing.assert_array_equal(stored["recogniser"], features["recogniser"].numpy())
    assert not list(tmp_path.glob(".*"))


def test_scores_do_not_depend_on_the_order_of_the_rows(recogniser_folder: Path) -> None:
    scorer, order = recogniser.load(recogniser_folder), [3, 5, 0, 1, 4, 2]
    straight = scorer.score(pictures(), PROMPTS, TASK)
    turned = scorer.score(pictures()[order], PROMPTS.iloc[order].reset_index(drop=True), TASK)
    pd.testing.assert_frame_equal(straight.iloc[order].reset_index(drop=True), turned, atol=1e-6)


def test_every_registered_scorer_is_a_module_with_load_or_distance() -> None:
    import importlib

    for name, entry in scorers.SCORERS.items():
        module = importlib.import_module(entry.module)
        assert hasattr(module, "load") != hasattr(module, "distance"), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lpips": {}}, "scorers.lpips: no such scorer; known: celebrity, clip, frechet, inception, recogniser"),
        ({"frechet": {"features": "recogniser"}}, "'recogniser': not a loaded scorer; known: none"),
    ],
)
def test_a_bad_list_of_scorers_is_an_error(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scorers.load_scorers(settings)


def test_images_must_be_uint8_and_as_many_as_the_prompts() -> None:
    for images in (pictures(5), pictures().float()):
        with pytest.raises(ValueError, match="for 6 prompts; expected uint8"):
            scorers.score_images(images, PROMPTS, TASK, {})


def test_missing_scores_and_cut_features_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no scores\.parquet in .*resurgence score"):
        scorers.read_scores(tmp_path)
    scorers.write_scores(tmp_path, PROMPTS, {"recogniser": torch.zeros(5, 3)})
    with pytest.raises(ValueError, match="5 rows of recogniser, 6 scores"):
        scorers.read_scores(tmp_path)


def test_a_missing_device_is_an_error(recogniser_folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises((AssertionError, RuntimeError), match=r"(?i)cuda|nvidia"):
        recogniser.load(recogniser_folder, "cuda")
