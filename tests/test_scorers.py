"""Scorers: columns against direct computation, open_clip from folders, Fréchet against torchmetrics and scipy."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import open_clip
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from open_clip import CLIP
from PIL import Image
from safetensors.torch import save_file
from torchmetrics.image.fid import FrechetInceptionDistance

from resurgence import scorers
from resurgence.analysis import headline
from resurgence.config import registry
from resurgence.config import scorers as config_scorers
from resurgence.config.fields import ConfigError, build
from resurgence.config.scorers import entries, loader, metrics, ranked, scorer_class
from resurgence.config.task import Task
from resurgence.diffusion.image_sets import write_image_set
from resurgence.scorers import (
    ClipConfig,
    LabelValues,
    LoadedScorer,
    Metric,
    RecogniserConfig,
    ScorerConfig,
    clip,
    frechet,
    recogniser,
    score_files,
)
from resurgence.scorers.recogniser_model import Labels, Recogniser, save_recogniser
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

NO_STYLES = np.empty((3, 0))


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
    save_recogniser(model, Labels(CLASSES), folder)
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
    scorer = recogniser.load(RecogniserConfig(str(recogniser_folder)))
    scorer.batch = 4  # the last part is smaller
    table = scorer.score(pictures(), PROMPTS, TASK)
    with torch.no_grad():
        p = scorer.model(pictures().float() / 127.5 - 1)[0].softmax(1).numpy()
    assert table["recogniser_top1"] == [CLASSES[i] for i in p.argmax(1)]
    for row, concept in enumerate(PROMPTS["concept"]):
        if concept:
            assert table["recogniser_probability"][row] == pytest.approx(p[row, CLASSES.index(concept)], abs=1e-6)
            assert table["recogniser_correct"][row] == float(CLASSES[p[row].argmax()] == concept)
        else:
            assert math.isnan(table["recogniser_correct"][row]) and math.isnan(table["recogniser_probability"][row])


def test_synonyms_are_scored_against_the_class() -> None:
    probabilities = np.eye(5)[[3, 3, 0]]
    table = recogniser.class_columns(probabilities, NO_STYLES, Labels(CLASSES), ["ship", "dog", "bird"], [""] * 3)
    assert table["recogniser_correct"].tolist() == [1.0, 0.0, 1.0]
    cosines = np.array([[0.3, 0.1, 0.0], [0.1, 0.2, 0.3]])
    table = clip.label_columns(cosines, ["ship", "cat", "dog"], ["ship", "ship"])
    assert table["clip_correct"].tolist() == [1.0, 0.0]
    expected = np.exp([30, 10]) / np.exp(100 * cosines).sum(1)
    np.testing.assert_allclose(table["clip_probability"], expected, rtol=1e-12)


def test_a_style_is_scored_by_the_head_of_the_styles_and_its_content_by_that_of_the_classes() -> None:
    labels = Labels(["ship", "cat", "police car", "car"], ["plain", "sepia"])
    classes = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.6, 0.1], [0.1, 0.2, 0.6, 0.1], [0.1, 0.1, 0.2, 0.6]])
    styles = np.array([[0.2, 0.8], [0.9, 0.1], [0.3, 0.7], [0.1, 0.9]])
    prompts = ["a ship in the style of sepia", "the police car, sepia", "an art of sepia", "the police car"]
    table = recogniser.class_columns(classes, styles, labels, ["sepia", "sepia", "sepia", "car"], prompts)
    assert table["recogniser_top1"] == ["sepia", "plain", "sepia", "car"]
    assert table["recogniser_correct"].tolist() == [1, 0, 1, 1]
    assert table["recogniser_probability"].tolist() == [0.8, 0.1, 0.7, 0.6]
    assert table["recogniser_style"] == ["sepia", "plain", "sepia", "sepia"]
    np.testing.assert_array_equal(table["recogniser_content_correct"], [1, 1, np.nan, np.nan])


def test_temperatures_divide_the_logits(tmp_path: Path) -> None:
    model, labels = Recogniser(3, 4, 16, styles=2).eval(), Labels(["a", "b", "c"], ["plain", "s"], (2.0, 0.5))
    save_recogniser(model, labels, tmp_path)
    prompts = pd.DataFrame({"prompt": ["a", "s"], "concept": ["a", "s"], "role": ["erase", "erase"]})
    table = recogniser.load(RecogniserConfig(str(tmp_path))).score(pictures(2, 16), prompts, TASK)
    with torch.no_grad():
        classes, styles = model(pictures(2, 16).float() / 127.5 - 1)
    expected = [(classes[0] / 2).softmax(0)[0].item(), (styles[1] / 0.5).softmax(0)[1].item()]
    assert table["recogniser_probability"].tolist() == pytest.approx(expected, abs=1e-6)


def test_false_alarms_and_agreement_are_counted_row_by_row() -> None:
    """By hand: an erased concept in pictures of others; two detectors that both say yes or both say no."""
    rows = pd.DataFrame(
        [
            ("ship", "erase", "cat", 0.0, 1.0),
            ("ship", "synonym", "ship", 1.0, 1.0),
            ("cat", "retain", "ship", 0.0, 0.0),
            ("cat", "retain", "cat", 1.0, 0.0),
            ("", "general", "ship", math.nan, math.nan),
        ],
        columns=["concept", "role", "recogniser_top1", "recogniser_correct", "clip_correct"],
    )
    found = scorers.compared(rows.copy(), TASK.erase, ["recogniser", "clip"])
    np.testing.assert_array_equal(found["false_alarm"], [math.nan, math.nan, 1, 0, 1])
    np.testing.assert_array_equal(found["agreement"], [0, 1, 1, 0, math.nan])
    alone = scorers.compared(rows.drop(columns="recogniser_top1")[["concept", "clip_correct"]], TASK.erase, ["clip"])
    assert list(alone) == ["concept", "clip_correct"]
    chosen = rows[["concept", "clip_correct"]].assign(clip_top1="ship")  # of the labels alone, whatever an image shows
    assert "false_alarm" not in scorers.compared(chosen.copy(), TASK.erase, ["clip"])
    both = scorers.compared(rows.assign(clip_top1="ship"), TASK.erase, ["recogniser", "clip"])
    np.testing.assert_array_equal(both["false_alarm"], found["false_alarm"])


def test_a_false_alarm_has_its_name_in_any_letters() -> None:
    """The celebrity detector compares names without regard to case: in its own columns, and here."""
    task = Task(
        name="one", kind="person", erase=("Aaron Paul",), retain=("Adam Driver",), mapping={"Aaron Paul": "person"},
        templates=("{}",), seeds={"erase": 1, "retain": 1},
    )  # fmt: skip
    rows = pd.DataFrame(
        {"concept": ["Aaron Paul", "Adam Driver", "Adam Driver", ""], "celebrity_top1": ["aaron paul"] * 4}
    )
    rows.loc[2, "celebrity_top1"] = ""  # no face
    found = scorers.compared(rows, task.erase, ["celebrity"])
    np.testing.assert_array_equal(found["false_alarm"], [math.nan, 1, 0, 1])


def test_an_unknown_concept_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'lighthouse' is no class .*5 classes"):
        concepts = ["ship", "lighthouse", "", "cat", "dog"]
        recogniser.class_columns(np.eye(5), np.empty((5, 0)), Labels(CLASSES), concepts, [""] * 5)
    with pytest.raises(ValueError, match=r"'bird' is not among the labels"):
        clip.label_columns(np.zeros((1, 2)), ["ship", "cat"], ["bird"])


def test_other_sizes_are_resized_for_the_recogniser(recogniser_folder: Path) -> None:
    scorer = recogniser.load(RecogniserConfig(str(recogniser_folder)))
    flat = torch.full((2, 3, 128, 128), 200, dtype=torch.uint8)
    small = torch.full((2, 3, 64, 64), 200, dtype=torch.uint8)
    torch.testing.assert_close(scorer.features(flat), scorer.features(small), atol=1e-5, rtol=1e-5)
    assert recogniser.to_input(pictures(2, 100), 64).shape == (2, 3, 64, 64)
    assert recogniser.to_input(pictures(2), 64).min() >= -1


def test_recogniser_features_are_the_models(recogniser_folder: Path) -> None:
    scorer = recogniser.load(RecogniserConfig(str(recogniser_folder)))
    with torch.no_grad():
        expected = scorer.model.features(pictures().float() / 127.5 - 1)
    torch.testing.assert_close(scorer.features(pictures()), expected, atol=1e-6, rtol=1e-5)


def test_images_that_are_scored_pass_the_recogniser_once(recogniser_folder: Path) -> None:
    scorer, passed = recogniser.load(RecogniserConfig(str(recogniser_folder))), []
    scorer.model.stem.register_forward_pre_hook(lambda module, args: passed.append(len(args[0])))
    images, others = pictures(), pictures().flip(0)
    with torch.inference_mode():
        classes, _ = scorer.model(recogniser.to_input(images, 64))  # the slow way, in a pass of its own
        features = scorer.model.features(recogniser.to_input(images, 64))
    passed.clear()
    columns = scorer.score(images, PROMPTS, TASK)
    assert torch.equal(scorer.features(images), features) and passed == [len(images)]
    highest = classes.argmax(1).tolist()
    assert columns["recogniser_top1"] == [scorer.labels.classes[i] for i in highest]
    assert torch.equal(scorer.features(others), features.flip(0)) and passed == [len(images)] * 2


@pytest.mark.parametrize("text", [ClipConfig.label, "art by {}"])
def test_clip_columns_are_open_clips_cosines(clip_folder: Path, text: str) -> None:
    scorer = clip.load(ClipConfig(str(clip_folder), label=text))
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
        labels = F.normalize(model.encode_text(tokenizer([text.format(w) for w in ("ship", "cat", "dog")])), dim=-1)
        p = (100 * e @ labels.T).softmax(1)
    np.testing.assert_allclose(table["clip_score"], 100 * (e * t).sum(1), atol=1e-4)
    for row, concept in enumerate(PROMPTS["concept"]):
        if concept:
            number = ("ship", "cat", "dog").index(concept)
            assert table["clip_probability"][row] == pytest.approx(float(p[row, number]), rel=1e-4)
            assert table["clip_correct"][row] == float(p[row].argmax() == number)
        else:
            assert math.isnan(table["clip_correct"][row])
    assert table["clip_top1"] == [("ship", "cat", "dog")[int(row.argmax())] for row in p]
    assert np.isfinite(table["clip_score"]).all()
    assert ClipConfig.label == "a photo of the {}"  # CIFAR-10's accuracy of the study


def test_clip_weights_come_from_the_folder(clip_folder: Path, tmp_path: Path) -> None:
    model = write_clip(tmp_path)
    with torch.no_grad():
        expected = F.normalize(model.encode_text(clip.load(ClipConfig(str(tmp_path))).tokenizer(["a cat"])), dim=-1)
    torch.testing.assert_close(clip.load(ClipConfig(str(clip_folder))).text_features(["a cat"]), expected)


def test_tokenizer_may_lie_in_a_subfolder(clip_folder: Path, tmp_path: Path) -> None:
    write_clip(tmp_path, "tokenizer")
    assert not (tmp_path / "vocab.json").exists() and not (tmp_path / "tokenizer.json").exists()
    texts = ["a photo of the ship", "an oil painting of the cat"]
    below, beside = (
        clip.load(ClipConfig(str(tmp_path))).tokenizer(texts),
        clip.load(ClipConfig(str(clip_folder))).tokenizer(texts),
    )
    assert below.shape == (2, 16) and torch.equal(below, beside)


@pytest.mark.parametrize("missing", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_an_incomplete_clip_folder_is_an_error(missing: str, tmp_path: Path) -> None:
    write_clip(tmp_path)
    (tmp_path / missing).unlink()
    (tmp_path / "open_clip_model.pth").write_bytes(b"pickled weights are never read")
    with pytest.raises(FileNotFoundError, match=missing):
        clip.load(ClipConfig(str(tmp_path)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either a folder or a name"),
        ({"path": "x", "name": "ViT-B-32"}, "give either a folder or a name"),
        ({"name": "ViT-B-32"}, "clip.pretrained = None: .*random weights score nothing; name a tag"),
    ],
)
def test_clip_needs_one_source(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(ClipConfig, arguments, "scorers.clip")


def test_weights_of_the_other_activation_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # openai's weights were trained with QuickGELU; open_clip warns and goes on, which would give other scores
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *a, **k: "nowhere")
    with pytest.raises(ValueError, match="ViT-B-32-quickgelu"):
        clip.load(ClipConfig(name="ViT-B-32", pretrained="openai"))


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
    declared = ["blank", *RecogniserConfig.columns, *ClipConfig.columns, "false_alarm", "agreement"]
    assert table.columns[4:].tolist() == declared
    means = {metric.column for cls in (RecogniserConfig, ClipConfig) for metric in cls.metrics.values()}
    assert len(means) == 5 and means <= set(table)
    scorers.write_scores(tmp_path, table, features)
    again, stored = scorers.read_scores(tmp_path)
    pd.testing.assert_frame_equal(again, table)
    assert again["seed"].tolist() == rows["seed"].tolist()
    np.testing.assert_array_equal(stored["recogniser"], features["recogniser"].numpy())
    assert not list(tmp_path.glob(".*"))


def test_scores_do_not_depend_on_the_order_of_the_rows(recogniser_folder: Path) -> None:
    scorer, order = recogniser.load(RecogniserConfig(str(recogniser_folder))), [3, 5, 0, 1, 4, 2]
    straight = pd.DataFrame(scorer.score(pictures(), PROMPTS, TASK))
    turned = pd.DataFrame(scorer.score(pictures()[order], PROMPTS.iloc[order].reset_index(drop=True), TASK))
    pd.testing.assert_frame_equal(straight.iloc[order].reset_index(drop=True), turned, atol=1e-6)


def test_every_declared_loader_is_a_function_and_metrics_are_of_declared_columns() -> None:
    first = ["recogniser", "clip", "celebrity", "inception", "frechet"]
    assert list(entries())[:5] == first  # the order of published tables
    for name in entries():
        declared = scorer_class(name)
        assert all(metric.column in (None, *declared.columns) for metric in declared.metrics.values()), name
        assert not declared.loader or callable(loader(declared)), name
    assert [name for name in entries() if not scorer_class(name).loader] == ["frechet"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lpip": {}}, "scorers = 'lpip': not known here; did you mean 'lpips'.*known: celebrity.* clip, .*recogniser"),
        ({"clip": {"pth": "x"}}, "scorers.clip.pth = 'x': unknown key; did you mean 'path'"),
        ({"frechet": {"features": "recogniser"}}, "'recogniser': not a loaded scorer with features .*known: none"),
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
        recogniser.load(RecogniserConfig(str(recogniser_folder)), "cuda")


@dataclass(frozen=True)
class CornerConfig(ScorerConfig):
    """Classifies an image by its upper left pixel: the two most probable labels, and all probabilities."""

    columns: ClassVar = ("corner_top1", "corner_top2", "corner_probabilities")


class Corner:
    """The three channels of the pixel, divided by their sum, are the probabilities of three labels."""

    labels = ("ship", "cat", "dog")

    def score(
        self, images: torch.Tensor, prompts: pd.DataFrame, task: Task, base: torch.Tensor | None = None
    ) -> dict[str, Any]:
        p = images[:, :, 0, 0].double().numpy()
        p /= p.sum(1, keepdims=True)
        order = np.argsort(-p, axis=1)
        top = {f"corner_top{k + 1}": [self.labels[i] for i in order[:, k]] for k in range(2)}
        return {"corner_probabilities": LabelValues(self.labels, p), **top}


def test_top_k_and_values_of_labels_are_stored_with_their_labels(tmp_path: Path) -> None:
    images = pictures()
    images[:, :, 0, 0] = torch.tensor([[60, 30, 10], [1, 1, 2], [20, 70, 10], [8, 1, 1], [10, 20, 70], [0, 3, 1]])
    table, _ = scorers.score_images(images, PROMPTS, TASK, {"corner": LoadedScorer(CornerConfig(), Corner())})
    assert table.columns.tolist() == [*PROMPTS, "blank", *CornerConfig.columns]  # the declared order
    scorers.write_scores(tmp_path, table, {})
    again, _ = scorers.read_scores(tmp_path)
    assert again["corner_top1"].tolist() == ["ship", "dog", "cat", "ship", "dog", "cat"]
    assert again["corner_top2"].tolist()[:1] + again["corner_top2"].tolist()[4:] == ["cat", "cat", "dog"]
    np.testing.assert_allclose(again["corner_probabilities"][0], [0.6, 0.3, 0.1])
    np.testing.assert_allclose(np.stack(again["corner_probabilities"]).sum(1), 1)
    assert again.attrs["labels"] == {"corner_probabilities": ["ship", "cat", "dog"]}
    field = pq.read_schema(tmp_path / scorers.SCORES).field("corner_probabilities")
    assert json.loads(field.metadata[b"labels"]) == ["ship", "cat", "dog"]


def test_labels_are_the_same_in_all_blocks_of_a_set(tmp_path: Path) -> None:
    rows = PROMPTS.assign(seed=range(6))
    images = [(i, Image.fromarray(image.permute(1, 2, 0).numpy())) for i, image in enumerate(pictures())]
    write_image_set(tmp_path / "set.parquet", rows, images)
    loaded = {"corner": LoadedScorer(CornerConfig(), Corner())}
    table, _ = score_files.score_files([tmp_path / "set.parquet"], TASK, loaded, [], size=4)
    assert len(table) == 6 and table.attrs["labels"] == {"corner_probabilities": list(Corner.labels)}
    sizes = iter([("ship", "cat", "dog"), ("ship", "cat", "bird")])

    class Other(Corner):
        def score(self, *given: Any) -> dict[str, Any]:
            self.labels = next(sizes)
            return super().score(*given)

    with pytest.raises(ValueError, match=r"set\.parquet: the labels of a column of lists change"):
        score_files.score_files(
            [tmp_path / "set.parquet"], TASK, {"o": LoadedScorer(CornerConfig(), Other())}, [], size=4
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": [1.0] * 6}, r"scorer x returned the columns \['a'\] and declares \['a', 'b'\]"),
        ({"a": [1.0] * 6, "b": [1.0] * 5}, r"scorer x: the column 'b' has the shape \(5,\); expected \(6,\)"),
        ({"a": [1.0] * 6, "b": np.ones((6, 2))}, r"'b' has the shape \(6, 2\); expected \(6,\)"),
        ({"a": [1.0] * 6, "b": LabelValues(("u", "v"), np.ones((6, 3)))}, r"shape \(6, 3\); expected \(6, 2\)"),
    ],
)
def test_columns_that_are_not_the_declared_ones_are_refused(values: dict, message: str) -> None:
    class Given:
        def score(self, *_: Any) -> dict[str, Any]:
            return values

    @dataclass(frozen=True)
    class Config(ScorerConfig):
        columns: ClassVar = ("a", "b")

    with pytest.raises(ValueError, match=message):
        scorers.score_images(pictures(), PROMPTS, TASK, {"x": LoadedScorer(Config(), Given())})


def test_two_scorers_do_not_write_one_column_and_a_missing_base_is_told() -> None:
    one = LoadedScorer(CornerConfig(), Corner())
    with pytest.raises(ValueError, match="scorer second: the column 'corner_top1' is there already; rename it"):
        scorers.score_images(pictures(), PROMPTS, TASK, {"first": one, "second": one})

    @dataclass(frozen=True)
    class Paired(CornerConfig):
        reads_base: ClassVar = True

    with pytest.raises(ValueError, match="scorer paired reads the base's images of the same rows"):
        scorers.score_images(pictures(), PROMPTS, TASK, {"paired": LoadedScorer(Paired(), Corner())})


def test_metrics_have_the_order_of_the_tables_and_of_the_reports() -> None:
    """The order of the rows of published CSV files and of the sections of published reports; neither may move."""
    people = ["celebrity_accuracy", "celebrity_accuracy_all", "celebrity_no_face"]
    classes, common = ["recogniser_accuracy", "recogniser_content"], ["blank", "false_alarm", "agreement"]
    clips, far = ["clip_accuracy", "clip_probability", "clip_score"], ["frechet", "kid", "frechet_reference"]
    near = ["reference_accuracy", "reference_similarity"]
    papers = ["lpips", "lpips_vgg", "esr_1", "esr_5", "psr_1", "psr_5", "cs", "ca", "sensitivity"]
    papers += ["exposed_parts", "ner_30", "ner_50", "ner_70", "ner_80"]
    papers += ["buttocks_exposed", "female_breast_exposed", "female_genitalia_exposed", "male_breast_exposed"]
    papers += ["anus_exposed", "feet_exposed", "armpits_exposed", "belly_exposed", "male_genitalia_exposed"]
    papers += ["identity", "identity_no_face"]
    stand_in = [f"celebrity_stand_in{part}" for part in ("", "_all", "_no_face", "_similarity")]
    assert list(metrics()) == [*classes, *clips, *people, *far, *near, *papers, *stand_in, *common]
    assert list(headline.titles()) == [
        *people,
        *stand_in,
        *classes,
        *near,
        *clips,
        *far,
        *papers,
        *common,
        "H_c",
        "H_o",
    ]
    accuracies = {r: [m for m, d in ranked(reverse=r).items() if d.accuracy] for r in (False, True)}
    assert accuracies[False] == ["celebrity_accuracy", "recogniser_accuracy", "reference_accuracy", "clip_accuracy"]
    assert accuracies[True] == ["clip_accuracy", "recogniser_accuracy", "reference_accuracy", "celebrity_accuracy"]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs entry points, name -> value, until the end of the test."""
    caches = (config_scorers.entries, config_scorers.scorer_class, config_scorers.metrics)

    def install(**values: str) -> None:
        found = [EntryPoint(name, value, config_scorers.GROUP) for name, value in values.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: found if group == config_scorers.GROUP else ())
        for cached in caches:
            cached.cache_clear()

    yield install
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()


@dataclass(frozen=True)
class HueConfig(CornerConfig):
    """Declares metrics of a plug-in."""

    metrics: ClassVar = {
        "hue": Metric("corner_hue", "Hue"),
        "hue_accuracy": Metric("corner_hue", "Hue accuracy (%)", 100.0, shows_concept=True, accuracy=True),
    }


def test_a_plug_ins_metrics_follow_those_of_the_package(registered: Callable[..., None]) -> None:
    registered(hue="test_scorers:HueConfig")
    assert list(metrics())[-6:-2] == ["celebrity_stand_in_similarity", "hue", "hue_accuracy", "blank"]
    assert list(headline.titles())[-7:-4] == ["hue", "hue_accuracy", "blank"]
    assert headline.title_of("hue") == "Hue" and headline.title_of("unknown") == "unknown"
    order = [m for m, d in ranked(reverse=True).items() if d.accuracy]
    assert order[:2] == ["clip_accuracy", "hue_accuracy"]  # H_o takes the CLIP accuracy where there is one


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"clip": "test_scorers:HueConfig"},
            "'clip': is resurgence.scorers.configs:ClipConfig already",
        ),
        ({"hue": "no_such_module:HueConfig"}, "'no_such_module:HueConfig': cannot be imported .*uninstall its package"),
        ({"hue": "test_scorers:NoConfig"}, "'test_scorers:NoConfig': cannot be imported"),
        ({"hue": "test_scorers:Corner"}, "'test_scorers:Corner': is no subclass of resurgence.scorers.ScorerConfig"),
        ({"a": "test_scorers:HueConfig", "b": "test_scorers:HueConfig"}, "metrics of the scorer b = 'hue': another"),
    ],
)
def test_a_wrong_entry_point_is_told(registered: Callable[..., None], values: dict, message: str) -> None:
    registered(**values)
    with pytest.raises(ConfigError, match=message):
        metrics()


def test_scoring_does_not_reach_the_code_that_makes_the_miniature() -> None:
    """Nor by an import inside a function: else a change of the drawings would score every image again."""
    source = Path(scorers.__file__).parents[1]

    def file_of(name: str) -> Path | None:
        place = source.parent.joinpath(*name.split("."))
        return next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()), None)

    def imports(file: Path) -> set[Path]:
        names: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        return {found for name in names if name.startswith("resurgence") and (found := file_of(name))}

    reached, ahead = set(), {source / "stages/score.py", *(source / "scorers").glob("*.py")}
    while ahead:
        reached |= ahead
        ahead = set().union(*map(imports, ahead)) - reached
    names = {file.relative_to(source).parts[0] for file in reached}
    assert {"scorers", "diffusion", "pretrained"} <= names and "miniature" not in names
