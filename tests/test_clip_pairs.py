"""CS and CA with an anchor, and the concept sensitivity, against open_clip's own embeddings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from resurgence.config.fields import ConfigError
from resurgence.config.scorers import scorer_config
from resurgence.scorers import clip_pairs
from resurgence.scorers.erasure_configs import AnchorConfig, SensitivityConfig
from test_scorers import TASK, pictures, write_clip

CONCEPTS = ["ship", "cat", "", "dog", "ship", "cat"]
ANCHORS = {"ship": "boat", "cat": "animal"}
ROWS = pd.DataFrame({"prompt": [f"a photo of the {c}" for c in CONCEPTS], "concept": CONCEPTS, "role": "retain"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    return folder


def cosine(folder: Path, image: torch.Tensor, word: str) -> float:
    """By open_clip itself, one image and one word."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        e = model.encode_image(preprocess(Image.fromarray(image.permute(1, 2, 0).numpy()))[None])
        return float(F.cosine_similarity(e, model.encode_text(tokenizer([word]))))


def test_cs_and_ca_compare_with_the_concept_and_its_anchor(folder: Path) -> None:
    images = pictures(6, 40)
    scorer = clip_pairs.load_anchored(AnchorConfig(str(folder), anchors=ANCHORS, anchor="bird"))
    table = scorer.score(images, ROWS, TASK)
    nearer = []
    for row, (image, concept) in enumerate(zip(images, CONCEPTS, strict=True)):
        if not concept:
            assert np.isnan(table["anchor_cs"][row]) and np.isnan(table["anchor_nearer"][row])
            continue
        own, other = (cosine(folder, image, word) for word in (concept, ANCHORS.get(concept, "bird")))
        assert table["anchor_cs"][row] == pytest.approx(100 * 2.5 * max(own, 0), abs=1e-3)
        assert table["anchor_nearer"][row] == float(own > other)
        nearer.append(own > other)
    assert set(nearer) == {True, False}


def test_a_negative_cosine_gives_no_score(folder: Path) -> None:
    scorer = clip_pairs.load_anchored(AnchorConfig(str(folder), anchor="bird"))
    scorer.clip.features = lambda images: -scorer.clip.text_features(["ship"])
    table = scorer.score(pictures(1), pd.DataFrame({"concept": ["ship"]}), TASK)
    assert table["anchor_cs"].tolist() == [0.0] and table["anchor_nearer"].tolist() == [0.0]


def test_the_sensitivity_is_the_score_that_is_lost_on_the_same_noise(folder: Path) -> None:
    images, base = pictures(6, 40, 1), pictures(6, 40, 2)
    base[0] = images[0]
    values = clip_pairs.load_sensitivity(SensitivityConfig(str(folder))).score(images, ROWS, TASK, base)
    values = values["concept_sensitivity"]
    assert values[0] == 0 and np.isnan(values[2])
    for row in (1, 3, 4, 5):
        lost = cosine(folder, base[row], CONCEPTS[row]) - cosine(folder, images[row], CONCEPTS[row])
        assert values[row] == pytest.approx(100 * lost, abs=1e-3) and abs(lost) > 1e-4


def test_the_sensitivity_of_a_general_prompt_is_that_of_its_own_words(folder: Path) -> None:
    images, base = pictures(2, 40, 1), pictures(2, 40, 2)
    rows = pd.DataFrame({"concept": ["ship", ""], "role": "general", "prompt": ["a photo of the dog", "bird"]})
    values = clip_pairs.load_sensitivity(SensitivityConfig(str(folder))).score(images, rows, TASK, base)
    for row, prompt in enumerate(rows["prompt"]):
        lost = cosine(folder, base[row], prompt) - cosine(folder, images[row], prompt)
        assert values["concept_sensitivity"][row] == pytest.approx(100 * lost, abs=1e-3) and abs(lost) > 1e-4


def test_each_concept_has_an_anchor_other_than_itself(folder: Path) -> None:
    study = SimpleNamespace(loaded={"ship": TASK})
    AnchorConfig(str(folder), anchors=ANCHORS, anchor="bird").check(study, Path())
    AnchorConfig(str(folder), kinds=("person",)).check(study, Path())
    for config, message in (
        (AnchorConfig(str(folder), anchors=ANCHORS), r"anchors\.dog = '': task ship has it; name its anchor"),
        (AnchorConfig(str(folder), anchors={"dog": "Dog"}, anchor="x"), r"anchors\.dog = 'Dog': is the concept itself"),
    ):
        with pytest.raises(ConfigError, match=message):
            config.check(study, Path())


def test_settings_are_read_as_in_a_study(folder: Path, tmp_path: Path) -> None:
    config = scorer_config("clip_anchor", {"path": str(folder), "anchors": {"Snoopy": "dog"}, "anchor": "animal"})
    assert [config.anchor_of(concept) for concept in ("Snoopy", "Pikachu")] == ["dog", "animal"]
    with pytest.raises(FileNotFoundError, match=r"scorers\.sensitivity\.path = .*no such file"):
        clip_pairs.load_sensitivity(SensitivityConfig(str(tmp_path)))


def test_the_similarity_is_that_of_the_word_to_the_nearest_erased_one(folder: Path) -> None:
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    images = pictures(6, 40)
    task = SimpleNamespace(erase=("ship", "bird"))
    values = clip_pairs.load_sensitivity(SensitivityConfig(str(folder))).score(images, ROWS, task, images)
    for row, word in enumerate(CONCEPTS):
        if not word:
            assert np.isnan(values["concept_similarity"][row])
            continue
        with torch.no_grad():
            own, *erased = (model.encode_text(tokenizer([text])) for text in (word, "ship", "bird"))
        nearest = max(float(F.cosine_similarity(own, other)) for other in erased)
        assert values["concept_similarity"][row] == pytest.approx(nearest, abs=1e-5)
    assert values["concept_similarity"][0] == pytest.approx(1, abs=1e-5) and values["concept_similarity"][1] < 0.9999
