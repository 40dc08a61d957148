"""The celebrity detector: the converter against a network of the published layout, the columns by hand, bad files."""

from __future__ import annotations

import io
import json
import math
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import resnet50

from resurgence import scorers
from resurgence.analysis import tables
from resurgence.analysis.score_sets import ImageSet
from resurgence.config.fields import ConfigError
from resurgence.config.load import load_study
from resurgence.config.task import Task
from resurgence.files import sha256
from resurgence.scorers import CelebrityConfig, LoadedScorer, celebrity, celebrity_convert, conversion
from scored import study_sets, write_scores_folder

ROOT = Path(__file__).parents[1]
NAMES = ["Adam_Driver_[m.0hcgs_k]", "50_Cent_[m.01vvyc_]", "Ciara_[m.03h_0_z]", "Ciara_Bravo_[m.09gklgx]"]
LABELS = ["50 Cent", "Adam Driver", "Ciara Bravo", "Ciara"]  # sorted as text, "B" comes before "["
TASK = Task(
    name="cele", kind="person", erase=("Adam Driver",), retain=("Ciara",), mapping={"Adam Driver": "a person"},
    templates=("a portrait of {}",), seeds={"erase": 1, "retain": 1},
)  # fmt: skip


class Published(nn.Module):
    """The network as its repository lays it out: ResNet-50's children in a row, then two linear layers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*list(resnet50(weights=None).children())[:-1])
        self.fc1, self.fc2 = nn.Linear(2048, 256), nn.Linear(256, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(self.stem(x).flatten(1)))


def csv_of(names: list[str]) -> bytes:
    return ("Labels,Index\n" + "".join(f"{name},{i}\n" for i, name in enumerate(names))).encode()


def pack(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"resources/face_recognition/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def pickled(value: object) -> bytes:
    """The format that PyTorch 0.4 wrote."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def published() -> Published:
    torch.manual_seed(0)
    model = Published(len(NAMES))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                value.normal_(0, 0.1)
        model.fc2.bias.copy_(torch.tensor([0.3, 0.0, -0.2, 0.1]))
    return model.eval()


@pytest.fixture(scope="module")
def state(published: Published) -> dict[str, torch.Tensor]:
    """What the checkpoint holds: no num_batches_tracked, as in PyTorch 0.4.0, and the centres of the training loss."""
    kept = {f"model.{n}": v for n, v in published.state_dict().items() if not n.endswith("num_batches_tracked")}
    return {**kept, "center_loss_criterion.centers": torch.zeros(len(NAMES), 256)}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, state: dict[str, torch.Tensor]) -> Path:
    file = tmp_path_factory.mktemp("archive") / "resources.tar"
    return pack(file, {"labels.csv": csv_of(NAMES), "best.pkl": pickled({"epoch": 3, "model_state": state})})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Path:
    place = tmp_path_factory.mktemp("detector") / "celebrity"
    assert celebrity_convert.convert(archive, place) == LABELS
    return place


def test_the_converted_classifier_is_the_published_network(folder: Path, published: Published) -> None:
    model = celebrity.build_classifier(len(LABELS))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = model(x), published(x)
    assert theirs.std() > 0.05 and (ours - theirs).abs().max() < 1e-5
    assert (folder / "labels.txt").read_text().splitlines() == LABELS
    told = json.loads((folder / "config.json").read_text())
    assert told["classes"] == 4 and told["source"]["member"].endswith("best.pkl")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "labels.txt", "model.safetensors"]


def test_columns_with_and_without_a_face() -> None:
    faces = np.array([True, False, True, True, True])
    probabilities = np.array([[0.1, 0.6, 0.2, 0.1], [0.5, 0.2, 0.2, 0.1], [0.0, 0.0, 0.0, 1.0], [1.0, 0, 0, 0]])
    table = celebrity.columns(probabilities, faces, LABELS, ["Adam Driver", "adam driver", "ADAM DRIVER", "Ciara", ""])
    np.testing.assert_array_equal(table["celebrity_correct"], [1, math.nan, 0, 1, math.nan])
    np.testing.assert_array_equal(table["celebrity_correct_all"], [1, 0, 0, 1, math.nan])
    np.testing.assert_array_equal(table["celebrity_no_face"], [0, 1, 0, 0, math.nan])
    np.testing.assert_array_equal(table["celebrity_face"], [1, 0, 1, 1, 1])
    np.testing.assert_array_equal(table["celebrity_probability"], [0.6, math.nan, 0.2, 1.0, math.nan])
    assert table["celebrity_top1"].tolist() == ["Adam Driver", "", "50 Cent", "Ciara", "50 Cent"]
    empty = celebrity.columns(np.zeros((0, 4)), np.zeros(2, bool), LABELS, ["Ciara", "Ciara"])
    assert np.isnan(empty["celebrity_correct"]).all() and empty["celebrity_correct_all"].tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"'Jane Doe' is not among the 4 people"):
        celebrity.columns(probabilities, faces, LABELS, ["Ciara", "Jane Doe", "", "", ""])


def test_two_labels_of_one_name_are_one_person() -> None:
    labels = ["Chris Young", "Chris Young", "Cher"]
    table = celebrity.columns(np.array([[0.3, 0.4, 0.3]]), np.array([True]), labels, ["Chris Young"])
    assert table["celebrity_probability"].tolist() == [pytest.approx(0.7)] and table["celebrity_correct"].tolist() == [
        1
    ]


def test_the_crop_has_the_margin_and_stays_in_the_image() -> None:
    image = np.zeros((100, 120, 3), np.uint8)
    image[35:66, 35:86] = 255  # the box and its margin: 5 pixels left and right, int(25 * 0.2) / 2 above and below
    crop = celebrity.crop_face(image, np.array([40.0, 38.0, 80.0, 63.0]))
    assert crop.shape == (224, 224, 3) and crop.min() == 255
    image[:] = 0
    image[:, :30] = 200
    assert celebrity.crop_face(image, np.array([-20.0, -4.0, 25.0, 110.0])).min() == 200
    wide = celebrity.crop_face(image, np.array([20.0, 20.0, 100.0, 80.0]))
    assert wide[:, 0].max() == 200 and wide[:, -1].max() == 0


def test_only_people_are_scored() -> None:
    scorer = LoadedScorer(CelebrityConfig(""), celebrity.CelebrityScorer(None, None, LABELS))
    task = Task(**{**vars(TASK), "kind": "object"})
    rows = pd.DataFrame({"prompt": ["x"], "concept": ["ship"]})
    table, _ = scorers.score_images(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), rows, task, {"celebrity": scorer})
    assert list(table) == ["prompt", "concept", "blank"] and len(table) == 1


def test_a_person_that_the_detector_does_not_know_is_told_before_the_study(tmp_path: Path) -> None:
    study = load_study([ROOT / "params.yaml", ROOT / "studies/sd14.yaml"], ROOT)
    people = sorted({c for task in study.loaded.values() if task.kind == "person" for c in task.erase + task.retain})
    (tmp_path / "labels.txt").write_text("\n".join(name.upper() for name in people))
    CelebrityConfig(str(tmp_path)).check(study, ROOT)
    assert len(people) == 200
    (tmp_path / "labels.txt").write_text("\n".join([*people[:150], *people[151:]]))
    with pytest.raises(ConfigError, match=rf"celebrities-\S+ = '{people[150]}': is none of the 199 people"):
        CelebrityConfig(str(tmp_path)).check(study, ROOT)


class Code:
    def __reduce__(self) -> tuple:
        return (print, ("this must not run",))


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


ARCHIVES: dict[str, tuple[Callable[[dict], dict[str, bytes]], str]] = {
    "code": (lambda s: {"labels.csv": csv_of(NAMES), "a.pkl": pickled({"model_state": Code()})}, "more than tensors"),
    "cut pickle": (
        lambda s: {"labels.csv": csv_of(NAMES), "a.pkl": cut(pickled({"model_state": s}))},
        "the pickle cannot be read",
    ),
    "no state": (lambda s: {"labels.csv": csv_of(NAMES), "a.pkl": pickled({"model": {}})}, "no 'model_state'"),
    "missing tensor": (
        lambda s: {
            "labels.csv": csv_of(NAMES),
            "a.pkl": pickled({"model_state": {k: v for k, v in s.items() if k != "model.fc1.bias"}}),
        },
        r"lacks 'fc\.0\.bias' \(1 of 322 tensors\).*another architecture",
    ),
    "other labels": (
        lambda s: {"labels.csv": csv_of(NAMES[:3]), "a.pkl": pickled({"model_state": s})},
        r"fc\.1\.weight has the shape \(4, 256\), the model \(3, 256\)",
    ),
    "no labels": (lambda s: {"a.pkl": b""}, r"holds no labels\.csv"),
    "no weights": (lambda s: {"labels.csv": csv_of(NAMES)}, r"holds no \*\.pkl"),
    "bad labels": (lambda s: {"labels.csv": b"Labels,Index\nCher\n", "a.pkl": b""}, "rows of label and index"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_a_bad_archive_is_told_and_leaves_nothing(
    case: str, state: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make, message = ARCHIVES[case]
    file = pack(tmp_path / "resources.tar", make(state))
    with pytest.raises(ValueError, match=message):
        celebrity_convert.convert(file, tmp_path / "out")
    assert not (tmp_path / "out").exists() and "must not run" not in capsys.readouterr().out


def test_missing_cut_and_exchanged_archives(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"archive = .*none\.tar.*fetch"):
        celebrity_convert.convert(tmp_path / "none.tar", tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["convert", str(archive), str(tmp_path / "out"), "--sha256", "0" * 64])
    with pytest.raises(SystemExit, match=r"error: source = .*has the SHA-256 [0-9a-f]{64}, expected 0{64}"):
        conversion.run(None, celebrity_convert.convert, "archive", "folder")
    assert not (tmp_path / "out").exists()
    (tmp_path / "cut.tar").write_bytes(cut(archive.read_bytes()))
    with pytest.raises(ValueError, match="truncated, or no tar archive"):
        celebrity_convert.convert(tmp_path / "cut.tar", tmp_path / "out")


def test_bad_folders_of_the_detector_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json.*no such file; .*celebrity_convert"):
        celebrity.load(CelebrityConfig(str(tmp_path)))
    with pytest.raises(ValueError, match=r"expected 12345678 \("):
        celebrity.load(CelebrityConfig(str(folder), sha256="12345678"))
    with pytest.raises(ValueError, match="'123' is no checksum"):
        celebrity.load(CelebrityConfig(str(folder), sha256="123"))
    for name in ("config.json", "labels.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    weights = load_file(folder / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(cut((folder / "model.safetensors").read_bytes()))
    with pytest.raises(ValueError, match="the file is truncated or another one"):
        celebrity.load(CelebrityConfig(str(tmp_path)))
    own = sha256(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"cannot be read \(SafetensorError: .*truncated or damaged"):
        celebrity.load(CelebrityConfig(str(tmp_path), sha256=own))
    save_file({"fc.0.bias": weights["fc.0.bias"]}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks 'conv1\.weight' \(321 of 322 tensors\)"):
        celebrity.load(CelebrityConfig(str(tmp_path), sha256=sha256(tmp_path / "model.safetensors")))
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(ValueError, match="architecture = 'resnet18', not 'resnet50-256'"):
        celebrity.load(CelebrityConfig(str(tmp_path)))


@pytest.mark.weights
def test_mtcnn_finds_the_face_and_no_face_and_the_batch_does_not_matter(folder: Path) -> None:
    """The published MTCNN on two photographs of scikit-image: an astronaut, and a cup of coffee."""
    from PIL import Image
    from skimage import data

    face = data.astronaut()
    coffee = np.asarray(Image.fromarray(data.coffee()).resize((512, 512)))
    scorer = celebrity.load(CelebrityConfig(str(folder)))
    one, none, again = scorer.boxes(np.stack([face, coffee, face]))
    assert none is None
    x, y = (one[0] + one[2]) / 2, (one[1] + one[3]) / 2
    assert 200 < x < 250 and 90 < y < 140  # the nose is near (225, 120)
    np.testing.assert_allclose(one, again, atol=1e-3)
    np.testing.assert_allclose(one, scorer.boxes(face[None])[0], atol=1e-2)
    images = torch.from_numpy(np.stack([coffee, face, coffee, face])).permute(0, 3, 1, 2)
    rows = pd.DataFrame({"prompt": "x", "concept": ["Adam Driver", "50 Cent", "50 Cent", "Adam Driver"]})
    scorer.batch = 3
    table = scorer.score(images, rows, TASK)
    crop = celebrity.crop_face(face, one)
    p = scorer.probabilities([crop])[0]
    assert table["celebrity_face"].tolist() == [0, 1, 0, 1] and table["celebrity_no_face"].tolist() == [1, 0, 1, 0]
    assert table["celebrity_top1"].tolist() == ["", LABELS[p.argmax()], "", LABELS[p.argmax()]]
    np.testing.assert_allclose(table["celebrity_probability"][[1, 3]], [p[0], p[1]], atol=1e-5)
    assert np.isnan(table["celebrity_correct"][0]) and table["celebrity_correct_all"][0] == 0
    with pytest.raises(ValueError, match="not a loaded scorer with features of images; known: none"):
        scorers.load_scorers({"celebrity": {"path": str(folder)}, "frechet": {"features": "celebrity"}})


def test_a_model_without_any_face_has_an_undefined_accuracy_and_a_defined_one(tmp_path: Path) -> None:
    """The erased model shows no face at all: the tables say so instead of failing or leaving the model out."""
    sets = []
    for number, one in enumerate(study_sets(steps=(100,), erasers=("mace",))):
        rows = one.rows
        if one.key["task"] == "identities-4":
            erased = (rows["role"] == "erase") & (one.key["state"] == "erased")
            faces, seen = ~erased.to_numpy(), rows["recogniser_correct"].to_numpy(dtype=float)
            rows = rows.assign(
                celebrity_correct=np.where(faces, seen, np.nan),
                celebrity_correct_all=np.where(faces, seen, 0.0),
                celebrity_no_face=1.0 - faces,
            )
        rows = rows.drop(columns=["recogniser_top1", "recogniser_correct", "recogniser_probability"])
        sets.append(write_scores_folder(tmp_path / str(number), ImageSet(one.key, rows, one.features)))
    told = tables.write_tables(sets, tmp_path / "tables", 0.95)
    table = pd.read_csv(tmp_path / "tables/resurgence.csv")
    own = table[(table["task"] == "identities-4") & (table["role"] == "erase")].set_index("metric")
    assert own.loc["celebrity_accuracy"][["erased_value", "resurgence"]].isna().all()
    assert own.loc["celebrity_accuracy", "finetuned_value"] == own.loc["celebrity_accuracy_all", "finetuned_value"] > 0
    assert (
        own.loc["celebrity_accuracy_all", "erased_value"] == 0 and own.loc["celebrity_no_face", "erased_value"] == 100
    )
    assert table[table["metric"] == "H_c"]["base_value"].notna().all()
    # each task by the accuracy that it has
    assert "over images with a face" in told and "CLIP accuracy" in told
    numbers = json.loads((tmp_path / "tables/metrics.json").read_text())
    assert numbers["identities-4"]["mace"]["lora"]["erased"] is None and numbers["ship"]["mace"]["lora"]["base"] > 50
    assert "Images without a face" in (tmp_path / "tables/resurgence.md").read_text()
