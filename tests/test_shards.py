"""Image sets in several files: the same rows, images, scores and grids as in one, and resume from finished files."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from image_readers import read_sets
from resurgence.diffusion import image_sets
from resurgence.diffusion.deltas import load_delta
from resurgence.diffusion.image_sets import write_image_set
from resurgence.scorers import score_files
from resurgence.scorers.recogniser_model import Recogniser, save_recogniser
from resurgence.stages import grids, sample, score
from resurgence.stages.job import Job
from tiny import make_pipeline

CONCEPTS = ["ship", "cat", "dog", "bird"]


@pytest.mark.parametrize(
    ("rows", "most", "batch", "sizes"),
    [
        (10, 4, 1, [4, 4, 2]),
        (8, 4, 2, [4, 4]),
        (3, 9, 4, [3]),
        (5, None, 4, [5]),
        (0, 4, 4, [0]),
        (20, 9, 4, [8, 8, 4]),
        (7, 3, 4, [3, 3, 1]),
    ],
)
def test_rows_of_shards(rows: int, most: int | None, batch: int, sizes: list[int]) -> None:
    parts = image_sets.shard_rows(rows, most, batch)
    assert [len(part) for part in parts] == sizes
    assert [row for part in parts for row in part] == list(range(rows))


def prompt_set(rows: int) -> pd.DataFrame:
    pairs = [(CONCEPTS[i % 4], "erase" if i % 4 < 2 else "retain") for i in range(rows)]
    return pd.DataFrame(
        {
            "prompt": [f"a photo of the {concept}" for concept, _ in pairs],
            "concept": [concept for concept, _ in pairs],
            "role": [role for _, role in pairs],
            "template": "a photo of the {}",
            "seed": range(rows),
            "index": [i // 4 for i in range(rows)],
        }
    )


def write_shards(folder: Path, most: int | None, rows: int = 11) -> tuple[pd.DataFrame, np.ndarray]:
    prompts, pixels = prompt_set(rows), np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8)
    parts = image_sets.shard_rows(rows, most)
    for number, part in enumerate(parts):
        images = [(i, Image.fromarray(pixels[row])) for i, row in enumerate(part)]
        own = prompts.iloc[part.start : part.stop].reset_index(drop=True)
        write_image_set(image_sets.shard_file(folder, "step-000007", number, len(parts)), own, images)
    return prompts, pixels


@pytest.mark.parametrize("most", [None, 3])
def test_a_set_in_several_files_is_read_as_one(
    most: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resurgence.diffusion.image_sets.ROW_GROUP", 2)
    prompts, pixels = write_shards(tmp_path, most)
    (name, files), *others = image_sets.image_files(tmp_path).items()
    assert name == "step-000007" and not others and len(files) == (1 if most is None else 4)
    rows, images = read_sets(files)
    pd.testing.assert_frame_equal(rows, prompts, check_dtype=False)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), pixels)
    some, chosen = image_sets.read_rows(files, lambda table: [9, 2, 2, 0])
    assert some["seed"].tolist() == [0, 2, 9] and np.array_equal(chosen.permute(0, 2, 3, 1).numpy(), pixels[[0, 2, 9]])


@pytest.mark.parametrize("most", [None, 1, 3, 4, 8])
@pytest.mark.parametrize(("rows", "sizes"), [(11, [4, 4, 3]), (8, [4, 4]), (3, [3])])
def test_the_blocks_that_are_scored_do_not_depend_on_the_files(
    rows: int, sizes: list[int], most: int | None, tmp_path: Path
) -> None:
    prompts, pixels = write_shards(tmp_path, most, rows)
    read = list(score_files.blocks(image_sets.image_files(tmp_path)["step-000007"], 4))
    assert [len(part) for part, _ in read] == [len(images) for _, images in read] == sizes
    told = pd.concat([part for part, _ in read], ignore_index=True)
    pd.testing.assert_frame_equal(told, prompts, check_dtype=False)
    assert np.array_equal(torch.cat([images for _, images in read]).permute(0, 2, 3, 1).numpy(), pixels)


@pytest.mark.parametrize("most", [None, 1, 3, 5])
def test_the_bases_images_are_read_in_step_with_the_models(most: int | None, tmp_path: Path) -> None:
    prompts, pixels = write_shards(tmp_path / "model", 4)
    write_shards(tmp_path / "base", most)
    sets = [image_sets.image_files(tmp_path / name)["step-000007"] for name in ("model", "base")]
    read = list(score_files.paired_blocks(*sets, 4))
    assert [len(rows) for rows, _, _ in read] == [4, 4, 3]
    for _, images, theirs in read:
        assert torch.equal(images, theirs)  # the same pictures were written
    assert [seed for rows, _, _ in read for seed in rows["seed"]] == prompts["seed"].tolist()
    assert all(theirs is None for _, _, theirs in score_files.paired_blocks(sets[0], None, 4))
    assert sum(len(images) for _, images, _ in score_files.paired_blocks(sets[0], None, 4)) == len(pixels)


@pytest.mark.parametrize(("rows", "place"), [(12, 11), (8, 8), (6, 6)])
def test_a_base_of_other_rows_is_refused(rows: int, place: int, tmp_path: Path) -> None:
    write_shards(tmp_path / "model", None, 11)
    write_shards(tmp_path / "base", None, rows)
    sets = [image_sets.image_files(tmp_path / name)["step-000007"] for name in ("model", "base")]
    with pytest.raises(ValueError, match=f"model/.* and .*base/.* from row {place} on; sample both") as told:
        list(score_files.paired_blocks(*sets, 4))
    assert all(str(files[0]) in str(told.value) for files in sets)


def test_the_base_has_one_image_set(tmp_path: Path) -> None:
    write_shards(tmp_path, 3)
    assert score_files.base_files(tmp_path) == image_sets.image_files(tmp_path)["step-000007"]
    (tmp_path / "step-000009.parquet").write_bytes((tmp_path / "step-000007.0001-of-0004.parquet").read_bytes())
    with pytest.raises(ValueError, match="image sets step-000007, step-000009; give the folder of the base"):
        score_files.base_files(tmp_path)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_missing_shard_is_named(number: int, tmp_path: Path) -> None:
    write_shards(tmp_path, 3)
    gone = tmp_path / f"step-000007.{number:04d}-of-0004.parquet"
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"{gone.name} is missing"):
        image_sets.image_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no image set"):
        image_sets.image_files(tmp_path / "none")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, a prompt set and a recogniser in the working folder."""
    monkeypatch.chdir(tmp_path)
    make_pipeline(max_length=24).save_pretrained("base")
    torch.manual_seed(0)
    save_recogniser(Recogniser(4, 8), CONCEPTS, Path("recogniser"))
    Path("prompts").mkdir()
    prompt_set(10).to_csv("prompts/prompts.csv", index=False)
    Path("prompts/manifest.json").write_text(json.dumps({"kind": "prompt set", "files": {}}))
    return tmp_path


def sample_job(shard: int | None, out: str) -> Job:
    sampling = {"steps": 1, "guidance": 2.0, "batch": 4, "size": 64, "precision": "fp32", "shard": shard}
    block = {"base": {"path": "base", "revision": None}, "sampling": sampling}
    return Job(block, Path(out) / "manifest.json", {"prompts": (Path("prompts/manifest.json"),)}, "cpu")


def test_an_interrupted_job_goes_on_with_the_next_shard(
    study: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped in the third of four files: the first two are not sampled again, and all images are the same."""
    whole, parts = study / "whole", study / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    assert sample.make(sample_job(None, "whole"), whole) == {"images": 10, "resampled_fp32": 0}
    sampled, original = [], sample.sample

    def stopped(pipe, rows, *settings):
        sampled.append(len(rows))
        if len(sampled) == 3:
            raise SystemExit(143)
        return original(pipe, rows, *settings)

    monkeypatch.setattr(sample, "sample", stopped)
    with pytest.raises(SystemExit):
        sample.make(sample_job(3, "parts"), parts)
    assert not list(parts.iterdir())
    with caplog.at_level(logging.INFO):
        assert sample.make(sample_job(3, "parts"), parts) == {"images": 10, "resampled_fp32": 0}
    assert sampled == [3, 3, 3, 3, 1] and "2 of 4 files were there" in caplog.text
    rows, images = read_sets(image_sets.image_files(parts)["step-000000"])
    alone, expected = read_sets(image_sets.image_files(whole)["step-000000"])
    pd.testing.assert_frame_equal(rows, alone)
    assert (images.int() - expected.int()).abs().max() <= 1
    assert [file.name for file in sample_job(3, "parts").state.iterdir()] == ["inputs.json"]


def test_other_inputs_start_from_the_beginning(study: Path) -> None:
    job = sample_job(3, "parts")
    (sample.unfinished(job) / "step-000000.0001-of-0004.parquet").write_text("of a former prompt set")
    assert len(list(sample.unfinished(job).iterdir())) == 2
    Path("prompts/manifest.json").write_text(json.dumps({"kind": "prompt set", "files": {"prompts.csv": "other"}}))
    assert [path.name for path in sample.unfinished(job).iterdir()] == ["inputs.json"]


def test_scores_and_grids_of_shards_are_those_of_one_file(study: Path) -> None:
    for name, most in (("whole", None), ("parts", 3)):
        write_shards(study / name, most)
        (study / name / "manifest.json").write_text(json.dumps({"kind": "image set", "files": {}}))
    task = {"name": "pets", "kind": "object", "erase": CONCEPTS[:2], "retain": CONCEPTS[2:], "labels": CONCEPTS}
    scorers = {"recogniser": {"path": "recogniser"}, "frechet": {"features": "recogniser"}}
    read = []
    for name in ("whole", "parts"):
        job = Job({"scorers": scorers, "task": task}, Path("none"), {"images": (Path(name) / "manifest.json",)}, "cpu")
        assert score.make(job, study / f"scores-{name}") == {"images": 11}
        read.append(score_folder(study / f"scores-{name}/step-000007"))
    pd.testing.assert_frame_equal(read[0][0], read[1][0], atol=1e-6)
    np.testing.assert_allclose(read[0][1], read[1][1], atol=1e-5)
    whole, parts = (grids.last_images(str(study / name)) for name in ("whole", "parts"))
    pd.testing.assert_frame_equal(whole[0], parts[0])
    assert len(whole[0]) == 4 and np.array_equal(whole[1], parts[1])  # the first image of each concept, no more


def score_folder(folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    from resurgence.scorers import read_scores

    rows, features = read_scores(folder)
    return rows, features["recogniser"]


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_full_fine_tune_is_kept_in_the_precision_of_the_study(study: Path, precision: str, kind: torch.dtype) -> None:
    from resurgence.stages import finetune

    prompts = prompt_set(2)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    write_image_set(study / "set/images.parquet", prompts, [(0, picture), (1, picture)])
    (study / "set/manifest.json").write_text(json.dumps({"kind": "fine-tuning set", "files": {}}))
    settings = {"algorithm": "full", "steps": 2, "checkpoints": [1, 2], "lr": 1e-3, "batch": 1, "accumulation": 1}
    block = {
        "base": {"path": "base", "revision": None}, "settings": settings, "seed": 0, "delta_precision": precision,
    }  # fmt: skip
    out = study / "weights"
    out.mkdir()
    finetune.make(Job(block, Path("weights/manifest.json"), {"set": (Path("set/manifest.json"),)}, "cpu"), out)
    files = sorted(out.glob("step-*/delta.safetensors"))
    assert len(files) == 2
    assert {value.dtype for file in files for value in load_delta(file).values()} == {kind}
