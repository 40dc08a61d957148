"""General prompts in every model's set, and the Fréchet distance of their images to real ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from resurgence.analysis import tables
from resurgence.analysis.estimates import estimates
from resurgence.analysis.score_sets import ImageSet
from resurgence.data.prompts import prompt_set
from resurgence.scorers import RecogniserConfig, frechet, recogniser
from resurgence.scorers.recogniser_model import Recogniser, save_recogniser
from resurgence.stages import prompts, reference_features
from resurgence.stages.job import Job
from scored import FEATURES, study_sets, write_scores_folder
from test_scorers import TASK

CAPTIONS = ["two dogs on a sofa", "a man rides a horse", "two dogs on a sofa"]


def test_general_prompts_keep_their_seeds(tmp_path: Path) -> None:
    plain = prompt_set(TASK)
    rows = prompt_set(TASK, CAPTIONS, [7, 8, 9])
    general = rows[rows["role"] == "general"]
    pd.testing.assert_frame_equal(rows[: len(plain)], plain)
    assert general["prompt"].tolist() == CAPTIONS and general["seed"].tolist() == [7, 8, 9]
    assert general["index"].tolist() == [0, 0, 1] and set(general["concept"]) == {""}
    file = tmp_path / "sample.csv"
    pd.DataFrame({"prompt": CAPTIONS, "seed": [7, 8, 9], "image_id": 1}).to_csv(file, index=False)
    task = {key: value for key, value in dataclasses.asdict(TASK).items() if key not in ("labels", "erasers")}
    job = Job({"task": task, "general": str(file)}, tmp_path / "manifest.json", (), "cpu")
    assert prompts.make(job, tmp_path) == {"images": len(rows)}
    read = pd.read_csv(tmp_path / "prompts.csv", keep_default_na=False)
    assert read["seed"].tolist() == rows["seed"].tolist()
    file.write_text("caption\nx\n")
    with pytest.raises(ValueError, match=r"tasks\.general = .*has \['caption'\]; it needs the columns prompt, seed"):
        prompts.make(job, tmp_path)


def with_general(one: ImageSet, seed: int) -> ImageSet:
    """The set with 40 images of general prompts."""
    rows = pd.DataFrame({"prompt": [f"caption {i}" for i in range(40)], "concept": "", "role": "general", "seed": 0})
    features = np.random.default_rng(seed).normal(0.5, 1, (40, FEATURES)).astype(np.float32)
    joined = pd.concat([one.rows, rows.assign(template="", index=0, clip_score=20.0)], ignore_index=True)
    return ImageSet(one.key, joined, np.concatenate([one.features, features]))


def test_distance_to_real_images_is_that_of_the_general_prompts(tmp_path: Path) -> None:
    sets = [with_general(one, i) for i, one in enumerate(study_sets(steps=(100,), erasers=("mace",)))]
    real = np.random.default_rng(99).normal(0, 1, (60, FEATURES))
    made, _ = estimates(sets, real)
    found = made[made["metric"] == "frechet_reference"]
    assert set(found["role"]) == {"general"} and len(found) == len(sets)
    for row in found.to_dict("records"):
        (own,) = (s for s in sets if all(s.key[k] == row[k] for k in ("task", "state", "step")))
        mask = (own.rows["role"] == "general").to_numpy()
        assert row["estimate"].value == pytest.approx(frechet.distance(real, own.features[mask]), rel=1e-9)
        assert len(row["estimate"].parts[0].table) == 32 and row["estimate"].n == 40
    entries = [write_scores_folder(tmp_path / str(i), one) for i, one in enumerate(sets)]
    tables.write_tables(entries, tmp_path / "tables", 0.95, real)
    table = pd.read_csv(tmp_path / "tables/resurgence.csv")
    assert (table["metric"] == "frechet_reference").sum() == 2
    assert "Fréchet distance to real images" in (tmp_path / "tables/resurgence.md").read_text()
    with pytest.raises(ValueError, match="has 5 features, the real images 7: of another scorer"):
        estimates(sets, np.zeros((9, 7)) + np.arange(9)[:, None])


def test_features_of_a_folder_of_pictures_of_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_recogniser(Recogniser(3, 8), ["a", "b", "c"], tmp_path / "recogniser")
    (tmp_path / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for name, size in (("b.png", (40, 60)), ("a.jpg", (64, 64)), ("c.png", (100, 30))):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / name, quality=100)
    (tmp_path / "pictures/licence.txt").write_text("CC BY 4.0")
    settings = {"path": str(tmp_path / "recogniser")}
    block = {"scorer": "recogniser", "settings": settings, "pictures": str(tmp_path / "pictures")}
    job = Job(block, tmp_path / "out/manifest.json", (), "cpu")
    left_out = [str(tmp_path / "pictures/licence.txt")]
    assert reference_features.make(job, tmp_path) == {"images": 3, "left_out": left_out}
    stored = load_file(tmp_path / "features.safetensors")["recogniser"]
    scorer = recogniser.load(RecogniserConfig(str(tmp_path / "recogniser")))
    for row, name in enumerate(("a.jpg", "b.png", "c.png")):
        with Image.open(tmp_path / "pictures" / name) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        np.testing.assert_allclose(stored[row], scorer.features(pixels)[0], atol=1e-5)
    for name in ("a.jpg", "b.png"):
        (tmp_path / "pictures" / name).unlink()
    with pytest.raises(ValueError, match="holds 1 pictures; give at least 2"):
        reference_features.make(job, tmp_path)
