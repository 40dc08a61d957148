"""Scores of many models in one Parquet file: unpacked, they are to the bit what was packed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from resurgence.analysis.score_archive import add_models, pack, unpack

MODELS = {"pets": [0], "pets/mace.to-object/s0": [0], "pets/mace.to-object/s0/lora/f1": [5, 50, 300]}


def scores_of(seed: int) -> pd.DataFrame:
    """Text, whole numbers, both widths of floats, missing values."""
    draw = np.random.default_rng(seed)
    return pd.DataFrame({
        "prompt": [f"a photo of {draw.choice(['cat', 'dog'])}" for _ in range(6)],
        "concept": ["cat", None, "dog", "cat", None, "dog"],
        "seed": draw.integers(0, 2**63, 6),
        "score": np.where(draw.random(6) < 0.3, np.nan, draw.normal(size=6)),
        "probability": draw.random(6, dtype=np.float32),
    })  # fmt: skip


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """The scores of three models as stages write them; the weight movement of one."""
    root = tmp_path / "scores"
    for model, steps in MODELS.items():
        for step in steps:
            folder = root / "mini" / model / "scores" / f"step-{step:06d}"
            folder.mkdir(parents=True)
            scores_of(step).to_parquet(folder / "scores.parquet", index=False)
    movement = root / "mini/pets/mace.to-object/s0/lora/f1/geometry"
    movement.mkdir()
    groups = {"all": {"cosine": 0.1 + 0.2, "undone": None}, "erased": {"cosine": 1e-300}}
    (movement / "geometry.json").write_text(json.dumps({"5": groups, "50": {"all": {"cosine": -1.0}}}))
    return root


def folders_of(root: Path) -> list[Path]:
    return [root / "mini" / model / "scores" for model in MODELS]


def test_unpacked_scores_and_movements_are_those_that_were_packed(scores: Path, tmp_path: Path) -> None:
    packed, again = tmp_path / "packed", tmp_path / "again"
    packed.mkdir()
    pack(scores, folders_of(scores), packed)
    assert {path.name for path in packed.iterdir()} == {"scores.parquet", "geometry.parquet"}
    unpack(packed, again)
    names = {path.relative_to(scores) for path in scores.rglob("*") if path.is_file()}
    assert names == {path.relative_to(again) for path in again.rglob("*") if path.is_file()} and len(names) == 6
    for name in names:
        if name.suffix == ".parquet":
            own, other = pd.read_parquet(scores / name), pd.read_parquet(again / name)
            pd.testing.assert_frame_equal(own, other, check_exact=True)
        else:
            assert json.loads((scores / name).read_text()) == json.loads((again / name).read_text())


def test_the_packed_table_names_base_model_and_step(scores: Path, tmp_path: Path) -> None:
    pack(scores, folders_of(scores), tmp_path)
    table = pd.read_parquet(tmp_path / "scores.parquet")
    keys = table[["base", "model", "step"]].drop_duplicates().itertuples(index=False, name=None)
    assert sorted(keys) == sorted(("mini", model, step) for model, steps in MODELS.items() for step in steps)


def test_a_column_that_a_model_lacks_is_empty_and_another_type_is_refused(scores: Path, tmp_path: Path) -> None:
    file = scores / "mini/pets/scores/step-000000/scores.parquet"
    scores_of(0).drop(columns="score").to_parquet(file, index=False)
    pack(scores, folders_of(scores), tmp_path)
    table = pd.read_parquet(tmp_path / "scores.parquet")
    assert table.loc[table["model"] == "pets", "score"].isna().all() and table["score"].notna().any()
    scores_of(0).astype({"score": str}).to_parquet(file, index=False)
    with pytest.raises(TypeError, match="score"):
        pack(scores, folders_of(scores), tmp_path)


def test_a_model_without_scores_is_named(scores: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pets/none/scores holds no step-"):
        pack(scores, [*folders_of(scores), scores / "mini/pets/none/scores"], tmp_path)


def test_models_that_were_packed_apart_are_those_that_were_packed_at_once(scores: Path, tmp_path: Path) -> None:
    """Added one by one, with the weight movement of the last; one that is there already stays as it is."""
    pairs = [("mini", model) for model in MODELS]
    once, first, second = (tmp_path / name for name in ("once", "first", "second"))
    for folder, packed in ((once, folders_of(scores)), (first, folders_of(scores)[:1]), (second, folders_of(scores))):
        folder.mkdir()
        pack(scores, packed, folder)
    assert add_models(first, second, set(pairs[:2])) == 2 and not (first / "geometry.parquet").exists()
    assert add_models(first, second, set(pairs)) == 3 and add_models(first, second, set(pairs)) == 3
    for name in ("scores.parquet", "geometry.parquet"):
        own, other = pd.read_parquet(first / name), pd.read_parquet(once / name)
        pd.testing.assert_frame_equal(own, other, check_exact=True)
    assert add_models(once, first, {("mini", "pets")}) == 3 and len(pd.read_parquet(once / "scores.parquet")) == 30
