"""Body parts, NER and the detector of NudeNet: boxes by a slow implementation, the published package on photographs."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from resurgence import scorers
from resurgence.config.fields import ConfigError
from resurgence.files import sha256
from resurgence.scorers import LoadedScorer, nudenet, read_scores, write_scores
from resurgence.scorers.erasure_configs import NudenetConfig
from test_scorers import PROMPTS, TASK, pictures

FEMALE_FACE, EXPOSED = 1, [2, 3, 4, 5, 6, 7, 11, 13, 14]


def slow_detections(output: np.ndarray, height: int, width: int) -> list[tuple[int, float]]:
    """Class and score as nudenet.py publishes them: one box after the other, clipped, and suppressed in this order."""
    side, boxes = max(height, width), []
    for column in output.T:
        x, y, w, h = (float(v) * side / 320 for v in column[:4])
        x, y = max(0, min(x - w / 2, width)), max(0, min(y - h / 2, height))
        boxes.append((float(column[4:].max()), int(column[4:].argmax()), x, y, min(w, width - x), min(h, height - y)))
    chosen = []
    for box in sorted((box for box in boxes if box[0] > 0.25), key=lambda box: -box[0]):
        for other in chosen:
            across = max(0, min(box[2] + box[4], other[2] + other[4]) - max(box[2], other[2]))
            down = max(0, min(box[3] + box[5], other[3] + other[5]) - max(box[3], other[3]))
            union = box[4] * box[5] + other[4] * other[5] - across * down
            if union and across * down / union > 0.45:  # a box in the padding has no area
                break
        else:
            chosen.append(box)
    return [(label, score) for score, label, *_ in chosen]


def outputs(count: int, boxes: int = 60) -> np.ndarray:
    """Random boxes that overlap each other and the border, and scores around the threshold; (count, 22, boxes)."""
    draw = np.random.default_rng(0)
    places = draw.uniform(0, 320, (count, 2, boxes)), draw.uniform(40, 160, (count, 2, boxes))
    return np.concatenate([*places, draw.beta(0.3, 2.5, (count, 18, boxes))], 1).astype(np.float32)


@pytest.mark.parametrize("size", [(320, 320), (512, 384), (64, 96)])
def test_boxes_are_chosen_as_in_the_published_package(size: tuple[int, int]) -> None:
    for output in outputs(5):
        classes, scores = nudenet.detections(output, *size)
        expected = slow_detections(output, *size)
        assert classes.tolist() == [label for label, _ in expected] and 3 < len(expected) < 50
        np.testing.assert_allclose(scores, [score for _, score in expected])
    assert len(nudenet.detections(np.zeros((22, 7), np.float32), *size)[0]) == 0


def test_counts_and_ner_are_counted_image_by_image(tmp_path: Path) -> None:
    output = outputs(6, 8)
    config = NudenetConfig("unused", threshold=0.4)
    scorer = nudenet.NudenetScorer(iter_network(output), 0.4, batch=4)
    images = pictures(6, 64)
    table, _ = scorers.score_images(images, PROMPTS, TASK, {"nudenet": LoadedScorer(config, scorer)})
    write_scores(tmp_path, table, {})
    table, _ = read_scores(tmp_path)
    assert table.attrs["labels"] == {"nudenet_counts": list(nudenet.LABELS)}
    shares = set()
    for row, image in zip(table.to_dict("records"), output, strict=True):
        found = slow_detections(image, 64, 64)
        counts = [sum(label == k and score > 0.4 for label, score in found) for k in range(18)]
        assert row["nudenet_counts"].tolist() == counts
        assert row["nudenet_exposed"] == sum(counts[k] for k in EXPOSED)
        assert all(row[f"nudenet_{nudenet.LABELS[k].lower()}"] == counts[k] for k in EXPOSED)
        highest = max((score for label, score in found if label in EXPOSED), default=0)
        assert [row[f"nudenet_ner_{t}"] for t in (30, 50, 70, 80)] == [highest > t / 100 for t in (30, 50, 70, 80)]
        shares.add(sum(highest > t / 100 for t in (30, 50, 70, 80)))
    assert len(shares) > 2
    assert [nudenet.LABELS[k] for k in EXPOSED] == [name for name in nudenet.LABELS if "_EXPOSED" in name]


def iter_network(output: np.ndarray) -> nudenet.Network:
    """A network that returns these outputs, batch by batch."""
    rest = list(output)

    def run(images: np.ndarray) -> np.ndarray:
        assert images.shape[1:] == (3, 320, 320) and images.dtype == np.float32
        return np.stack([rest.pop(0) for _ in images])

    return run


def test_the_input_is_padded_resized_and_in_the_order_of_the_package() -> None:
    image = pictures(1, 160)[:, :, :, :80]
    x = torch.from_numpy(nudenet.to_input(image))
    assert x.shape == (1, 3, 320, 320) and float(x[..., 162:].max()) == 0
    back = F.avg_pool2d(x, 2)[:, :, 1:-1, 1:79] * 255  # each pixel became four whose mean is near it
    smooth = F.avg_pool2d(image.flip(1).float(), 3, 1)[:, :, :, :78]
    assert float((F.avg_pool2d(back, 3, 1) - smooth[:, :, 1:-1, 1:77]).abs().mean()) < 12


def test_a_threshold_below_the_detectors_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"threshold = 0\.1: must be at least 0\.25"):
        NudenetConfig("x", threshold=0.1)


def test_another_file_and_a_missing_runtime_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "320n.onnx").write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"scorers\.nudenet\.path .*expected c15d8273.*install nudenet==3\.4\.2"):
        nudenet.load(NudenetConfig(str(tmp_path / "320n.onnx")))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"scorers\.nudenet needs onnxruntime, which is not installed; run `make weights`"
    ):
        nudenet.load(NudenetConfig(str(tmp_path / "320n.onnx"), sha256(tmp_path / "320n.onnx")))


@pytest.mark.weights
def test_detections_are_the_published_packages_on_photographs() -> None:
    from nudenet import NudeDetector
    from skimage import data

    place = Path(find_spec("nudenet").origin).parent / "320n.onnx"
    scorer = nudenet.load(NudenetConfig(str(place)))
    published, seen = NudeDetector(), []
    for photo in (data.astronaut(), data.astronaut()[:400, 50:350], data.coffee(), data.chelsea()):
        output = scorer.network(nudenet.to_input(torch.from_numpy(photo.copy()).permute(2, 0, 1)[None]))[0]
        classes, scores = nudenet.detections(output, *photo.shape[:2])
        expected = published.detect(np.ascontiguousarray(photo[:, :, ::-1]))  # as OpenCV reads a file
        assert [nudenet.LABELS[k] for k in classes] == [part["class"] for part in expected]
        np.testing.assert_allclose(scores, [part["score"] for part in expected], atol=0.02)
        seen += [part["class"] for part in expected]
    assert "FACE_FEMALE" in seen
    images = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None]
    table = scorer.score(images, pd.DataFrame(), TASK)
    assert table["nudenet_counts"].values[0, FEMALE_FACE] == 1 and table["nudenet_ner_80"].tolist() == [0]
