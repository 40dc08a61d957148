"""The scorer of reference pictures: nearest centroids and their errors, against direct computation."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

from resurgence.config.fields import ConfigError, read_yaml
from resurgence.config.load import make_study
from resurgence.config.task import Task
from resurgence.diffusion.image_sets import read_image_set
from resurgence.scorers import ReferenceConfig, load_scorers, reference, score_images
from resurgence.scorers.reference_pictures import reference_pictures
from resurgence.workflow import graph

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "data/miniature-2"
CLIP = SHIPPED / "clip"
ARCHITECTURE = "shufflenet_v2_x0_5"
TASK = Task(
    name="ship", kind="object", erase=("ship",), retain=("cat",), mapping={"ship": "ground"},
    templates=("a photo of the {}",), seeds={"erase": 1, "retain": 1},
)  # fmt: skip


def write_pictures(folder: Path, groups: dict[str, int], size: tuple[int, int] = (40, 32)) -> Path:
    """Random pictures, a colour a group."""
    generator = np.random.default_rng(0)
    for number, (name, count) in enumerate(groups.items()):
        colour = generator.integers(0, 200, 3)
        for picture in range(count):
            pixels = colour + generator.integers(0, 56, (*size, 3))
            place = folder / name / f"{number}-{picture}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(place)
    return folder


def direct(features: np.ndarray, groups: np.ndarray, count: int) -> list[int]:
    """The nearest centroid of each picture, all centroids computed anew without it."""
    found = []
    for at, row in enumerate(features):
        rest = np.arange(len(groups)) != at
        centroids = np.stack([features[rest & (groups == g)].mean(0) for g in range(count)])
        found.append(int(np.argmax(centroids @ row / np.linalg.norm(centroids, axis=1))))
    return found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 5), min_size=2, max_size=5), st.integers(0, 1000))
def test_leaving_a_picture_out_is_computing_the_centroids_without_it(sizes: list[int], seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    features = np.random.default_rng(seed).normal(size=(len(groups), 6))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    expected = direct(features, groups, len(sizes))
    found = reference.nearest(torch.from_numpy(features), torch.from_numpy(groups), len(sizes))
    assert found.tolist() == expected
    names = [f"g{g}" for g in range(len(sizes))]
    rates = reference.error_rates(torch.from_numpy(features), torch.from_numpy(groups), names)
    assert sum(rate.hits + rate.false_alarms for rate in rates.values()) == len(groups)  # each is nearest to one
    for g, name in enumerate(names):
        hits = sum(e == g for e, own in zip(expected, groups, strict=True) if own == g)
        assert rates[name][:2] == (hits, sizes[g]) and rates[name].others == len(groups) - sizes[g]


def test_two_pictures_that_differ_do_not_recognise_each_other() -> None:
    """By hand: in the plane, group 0 at 0 and 90 degrees, group 1 at 80 and 85, so that 90 is 90 from 0, 7.5 from 1."""
    angles = torch.deg2rad(torch.tensor([0.0, 90.0, 80.0, 85.0], dtype=torch.float64))
    features, groups = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0, 0, 1, 1])
    assert reference.nearest(features, groups, 2).tolist() == [1, 1, 1, 1]
    rates = reference.error_rates(features, groups, ["ship", "others"])
    assert rates["ship"] == (0, 2, 0, 2) and rates["others"] == (2, 2, 2, 2)


def test_groups_are_concepts_and_the_folders_of_others(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"ship": 2, "cat/indoor": 1, "cat/outdoor": 1, "others": 2, "others/trees": 2,
                              "others/trees/oak": 1, ".cache": 3})  # fmt: skip
    (tmp_path / "ship/captions.txt").write_text("a ship")
    groups = reference_pictures(tmp_path, "others")
    counts = {name: len(files) for name, files in groups.items()}
    assert counts == {"cat": 2, "ship": 2, "others": 2, "others/trees": 3}
    assert list(groups)[:2] == ["cat", "ship"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"ship": 2}, r"has no folder with pictures of others \(others\); add one"),
        ({"others": 2}, r"has no folder with pictures of a concept"),
        ({"ship": 1, "others": 2}, r"has 1 picture of ship; give at least 2"),
        ({}, r"no such folder"),
    ],
)
def test_missing_pictures_are_named(tmp_path: Path, groups: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"scorers.reference.pictures = .*{message}"):
        reference_pictures(write_pictures(tmp_path / "pictures", groups), "others")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a small classifier of torchvision."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("torchvision") / "model.safetensors"
    save_file(models.get_model(ARCHITECTURE, weights=None).state_dict(), file)
    return file


def settings_of(weights: Path, pictures: Path) -> dict[str, Any]:
    """The settings of the scorer with that classifier."""
    checksum = hashlib.sha256(weights.read_bytes()).hexdigest()
    return {"path": str(weights), "pictures": str(pictures), "architecture": ARCHITECTURE, "sha256": checksum}


def test_columns_are_those_of_the_centroids(tmp_path: Path, weights: Path) -> None:
    """With torchvision: features are the inputs of the last layer, of length 1; everything else follows from them."""
    pictures = write_pictures(tmp_path, {"ship": 3, "cat": 4, "others": 3, "others/trees": 2})
    loaded = load_scorers({"reference": settings_of(weights, pictures)})["reference"]
    images = torch.randint(0, 256, (4, 3, 48, 48), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    concepts = ["ship", "cat", "", "ship"]
    roles = ["erase", "retain", "general", "synonym"]
    prompts = pd.DataFrame({"prompt": ["p"] * 4, "concept": concepts, "role": roles, "seed": range(4)})
    scores, features = score_images(images, prompts, TASK, {"reference": loaded}, ["reference"])

    model = models.get_model(ARCHITECTURE, weights=None)
    tensors = reference.read_tensors(weights, "", "")
    model.load_state_dict(tensors)
    inputs: list[torch.Tensor] = []
    model.fc.register_forward_pre_hook(lambda module, values: inputs.append(values[0]))
    with torch.inference_mode():
        model.eval()(models.get_model_weights(ARCHITECTURE).DEFAULT.transforms()(images))
    expected = inputs[0] / inputs[0].norm(dim=1, keepdim=True)
    torch.testing.assert_close(features["reference"], expected, rtol=1e-5, atol=1e-6)

    names = ["cat", "ship", "others", "others/trees"]
    cosines = (expected @ loaded.scorer.centroids.T).numpy()
    top1 = [names[at] for at in cosines.argmax(1)]
    assert loaded.scorer.names == names and scores["reference_top1"].tolist() == top1
    assert scores["reference_correct"].isna().tolist() == [False, False, True, False]
    for row in (0, 1, 3):
        concept = concepts[row]
        assert scores["reference_correct"][row] == (top1[row] == concept)
        assert scores["reference_similarity"][row] == pytest.approx(100 * cosines[row, names.index(concept)], rel=1e-5)
        rate = loaded.scorer.rates[concept]
        assert scores["reference_false_alarm_rate"][row] == rate.false_alarms / rate.others
        assert scores["reference_other_pictures"][row] == {"ship": 9, "cat": 8}[concept]
    assert scores["false_alarm"].tolist()[1] == (top1[1] == "ship")  # of the detector that comes first


def test_model_and_pictures_must_fit(tmp_path: Path, weights: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", {"ship": 2, "others": 2})
    good = settings_of(weights, pictures)
    for change, message in (
        ({"sha256": "0" * 64}, "expected 0{64}"),
        ({"architecture": "resnet18"}, "weights of another architecture"),
        ({"architecture": "resnet0"}, r"scorers.reference.architecture = 'resnet0'"),
        ({"architecture": None}, "cannot be loaded by open_clip .* or give `architecture`"),
        ({"architecture": None, "path": str(tmp_path)}, r"cannot be loaded by open_clip \(.*no such file"),
        ({"path": None}, f"path = None: must name the file of weights of {ARCHITECTURE}"),
        ({"architecture": None, "path": None}, "give either a folder or a name"),
        ({"architecture": None, "path": None, "name": "ViT-B-32"}, "pretrained = None: is missing for 'ViT-B-32'"),
    ):
        with pytest.raises((ConfigError, ValueError), match=message):
            load_scorers({"reference": {**good, **change}})
    scorer = load_scorers({"reference": good})["reference"].scorer
    prompts = pd.DataFrame({"prompt": ["p"], "concept": ["cat"], "role": ["retain"]})
    with pytest.raises(ConfigError, match="concept = 'cat': has no folder of reference pictures; add one"):
        scorer.score(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), prompts, TASK)


def test_study_names_concepts_without_pictures_and_reads_every_file(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = read_yaml(ROOT / "params.yaml")
    values["tasks"]["names"] = ["ship"]
    task = read_yaml(ROOT / "config/tasks/miniature-2/ship.yaml")
    concepts = {name: 2 for name in (*task["erase"], *task["retain"])}
    pictures = write_pictures(tmp_path / "pictures", {**concepts, "others": 2})
    values["scorers"] = {"reference": settings_of(weights, pictures)}
    values |= {"figures": {"metrics": ["reference_accuracy"]}, "experiments": {}}
    monkeypatch.chdir(ROOT)
    study = make_study(values, ROOT)
    files = graph.scorer_files(study, ["reference"])
    assert str(weights) in files and len(files) == 1 + 2 * (len(concepts) + 1)
    (pictures / "ship").rename(pictures / "boat")
    with pytest.raises(ConfigError, match=r"ship.yaml = 'ship': has no folder of reference pictures in .*; add one"):
        make_study(values, ROOT)
    values["scorers"]["reference"]["path"] = "absent"
    with pytest.raises(ConfigError, match=r"scorers.reference.path = 'absent': no such file or folder"):
        make_study(values, ROOT)


@pytest.mark.world("miniature-2")
def test_drawings_of_the_miniature_are_recognised_by_those_of_other_artists(tmp_path: Path) -> None:
    """Reference: four artists' drawings of three concepts, and of ten others; judged: two other artists' drawings."""
    rows, drawings = read_image_set(SHIPPED / "drawings/drawings.parquet")
    artists, names = sorted(rows["artist"].unique()), ["ship", "cat", "apple"]
    others = [name for name in sorted(rows["concept"].unique()) if name not in names][::15][:10]
    chosen = rows["concept"].isin([*names, *others]) & rows["artist"].isin(artists[:4])
    for at in rows.index[chosen]:
        concept = rows["concept"][at]
        folder = tmp_path / (concept if concept in names else f"others/{concept}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawings[at].permute(1, 2, 0).numpy()).save(folder / f"{rows['artist'][at]}.png")
    scorer = reference.load(ReferenceConfig(str(tmp_path), str(CLIP)))
    features, groups = [], []
    for number, files in enumerate(reference_pictures(tmp_path, "others").values()):
        pixels = torch.from_numpy(np.stack([np.asarray(reference.read_picture(file, "")) for file in files]))
        features.append(scorer.features(pixels.permute(0, 3, 1, 2)).double().numpy())
        groups += [number] * len(files)
    found = np.array(direct(np.concatenate(features), np.array(groups), len(scorer.names)))
    for name, rate in scorer.rates.items():
        own = np.array(groups) == scorer.names.index(name)
        is_name = found == scorer.names.index(name)
        assert rate == ((own & is_name).sum(), own.sum(), (~own & is_name).sum(), (~own).sum())
        assert rate.hits / rate.pictures >= 0.75 and rate.false_alarms / rate.others <= 0.1
    judged = rows.index[rows["concept"].isin([*names, *others]) & rows["artist"].isin(artists[4:])]
    concepts = rows["concept"][judged].where(rows["concept"][judged].isin(names), "")
    prompts = pd.DataFrame({"prompt": "", "concept": concepts.to_numpy(), "role": "erase"})
    columns = scorer.score(drawings[judged], prompts, TASK)
    assert np.nanmean(columns["reference_correct"]) >= 0.8
    top1 = np.array(columns["reference_top1"])[(concepts == "").to_numpy()]
    assert np.isin(top1, names).mean() <= 0.15
