"""Images that are not finite: sampled again in fp32 from a base in half precision, else an error with the step."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from resurgence.cli import main
from resurgence.diffusion import image_sets
from resurgence.diffusion.image_sets import (
    RESAMPLED,
    read_image_set,
    read_rows,
    resampled_count,
    shard_file,
    shard_rows,
    write_image_set,
)
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.diffusion.text import token_ids
from resurgence.diffusion.unet import ddim_of
from resurgence.scorers import score_files
from resurgence.stages import concept_images
from resurgence.stages import sample as sample_stage
from resurgence.stages.job import Job
from tiny import SENTENCES, make_pipeline

BAD = [math.nan, math.inf, -math.inf]
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
CFG = SamplingConfig(steps=4, guidance=5.0, batch=4)
TASK = """\
name: ship
kind: object
erase: [ship]
retain: [dog]
mapping: sky
templates: ["a photo of the {}"]
seeds: {erase: 2, retain: 2, synonym: 1}
"""


def table(rows: int, prompts: int = 3) -> pd.DataFrame:
    return pd.DataFrame({"prompt": [SENTENCES[i % prompts] for i in range(rows)], "seed": range(rows), "role": "erase"})


def overflowing() -> StableDiffusionPipeline:
    """Activations leave fp16 in one convolution, and a norm follows, so that fp32 does not notice."""
    pipe = make_pipeline(max_length=24)
    pipe.unet.mid_block.resnets[0].conv1.weight.data.mul_(1e6)
    return pipe


def in_half(dtype: torch.dtype = torch.float16) -> StableDiffusionPipeline:
    return make_pipeline().to(dtype=dtype)


def images_of(pipe: StableDiffusionPipeline, rows: pd.DataFrame, cfg: SamplingConfig = CFG) -> dict[int, Image.Image]:
    return dict(sample(pipe, rows, cfg))


def pixels(images: dict[int, Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(images[row]).astype(int) for row in sorted(images)])


def parts_of(pipe: StableDiffusionPipeline) -> dict[str, torch.nn.Module]:
    return {"unet": pipe.unet, "decoder": pipe.vae.decoder, "text encoder": pipe.text_encoder.get_input_embeddings()}


def inject(
    module: torch.nn.Module,
    value: float,
    dtypes: tuple[torch.dtype, ...] = (*HALF.values(), torch.float32),
    chosen: Callable[[tuple], torch.Tensor | bool] = lambda inputs: True,
) -> None:
    """In every pass of these types, set the first outputs of the samples that `chosen` selects from the inputs."""

    def spoil(_: torch.nn.Module, inputs: tuple, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        values = output if isinstance(output, torch.Tensor) else output[0]
        if values.dtype in dtypes:
            values[..., 0] = torch.where(
                torch.as_tensor(chosen(inputs)).view(-1, *[1] * (values.ndim - 2)), value, values[..., 0]
            )

    module.register_forward_hook(spoil)


# --- half precision: sampled again


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_a_base_that_leaves_fp16_gives_the_images_of_fp32(caplog: pytest.LogCaptureFixture, guidance: float) -> None:
    rows, cfg = table(10), SamplingConfig(steps=4, guidance=guidance, batch=4)
    pipe = overflowing().to(dtype=torch.float16)
    parts = {name: getattr(pipe, name) for name in ("unet", "vae", "text_encoder")}
    before = {(part, n): v.clone() for part, module in parts.items() for n, v in module.state_dict().items()}
    with caplog.at_level(logging.WARNING, "resurgence"):
        images = images_of(pipe, rows, cfg)
    expected = images_of(overflowing().to(dtype=torch.float16).to(dtype=torch.float32), rows, cfg)
    assert np.array_equal(pixels(images), pixels(expected)) and pixels(images).std() > 5
    assert all(image.info[RESAMPLED] for image in images.values())
    assert not any(RESAMPLED in image.info for image in expected.values())
    told = [f"{count} images are not finite in fp16: sampled again in fp32" for count in (4, 4, 2)]
    ours = [record for record in caplog.records if record.name.startswith("resurgence")]
    assert [record.getMessage() for record in ours] == told
    for (part, name), value in before.items():
        after = parts[part].state_dict()[name]
        assert after.dtype == value.dtype and torch.equal(after, value)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("part", ["unet", "decoder", "text encoder"])
def test_every_part_in_every_half_precision(part: str, precision: str, value: float) -> None:
    dtype = HALF[precision]
    expected = images_of(in_half(dtype).to(dtype=torch.float32), table(3))
    pipe = in_half(dtype)
    inject(parts_of(pipe)[part], value, (dtype,))
    images = images_of(pipe, table(3))
    assert np.array_equal(pixels(images), pixels(expected))
    assert all(image.info[RESAMPLED] for image in images.values())


@pytest.mark.parametrize("batch", [1, 4, 9])
def test_only_the_images_that_need_it_are_sampled_again(batch: int) -> None:
    """So an image does not depend on what else is in its batch."""
    rows, cfg = table(9), SamplingConfig(steps=3, guidance=5.0, batch=batch)
    good, wanted = images_of(in_half(), rows, cfg), images_of(in_half().to(dtype=torch.float32), rows, cfg)
    pipe = in_half()
    ship = token_ids(pipe.tokenizer, "ship")[1]
    inject(parts_of(pipe)["text encoder"], math.nan, (torch.float16,), lambda ids: (ids[0] == ship).any(1))
    images = images_of(pipe, rows, cfg)
    for row, image in images.items():
        again = "ship" in rows["prompt"][row]
        assert image.info.get(RESAMPLED, False) == again
        assert abs(np.asarray(image).astype(int) - np.asarray((wanted if again else good)[row])).max() <= 1


def test_out_of_memory_in_fp32_halves_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    """The larger pass in fp32 does not fit: the pipeline is in half precision again, and smaller batches do."""
    pipe, rows = overflowing().to(dtype=torch.float16), table(4)

    def full(_: torch.nn.Module, inputs: tuple) -> None:
        if inputs[0].dtype == torch.float32 and len(inputs[0]) > 4:  # two images with guidance
            raise torch.OutOfMemoryError("CUDA out of memory")

    expected = images_of(overflowing().to(dtype=torch.float16).to(dtype=torch.float32), rows)
    pipe.unet.register_forward_pre_hook(full)
    with caplog.at_level(logging.WARNING, "resurgence"):
        images = images_of(pipe, rows)
    assert abs(pixels(images) - pixels(expected)).max() <= 1 and pipe.unet.dtype == torch.float16
    assert "continuing with batches of 2" in caplog.text


# --- fp32: an error that names the step


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF.values()])
def test_the_step_is_named(value: float, step: int, dtype: torch.dtype) -> None:
    pipe, scheduler = in_half(dtype), ddim_of(make_pipeline().scheduler)
    scheduler.set_timesteps(CFG.steps)
    latest = int(scheduler.timesteps[step - 1])
    inject(pipe.unet, value, chosen=lambda inputs: bool((inputs[1] <= latest).all()))
    message = (
        rf"sampling: NaN or infinite numbers in step {step} of 4 in fp32 \(prompt '{SENTENCES[0]}', seed 0\); the we"
    )
    with pytest.raises(ValueError, match=message):
        images_of(pipe, table(5))
    assert pipe.unet.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == dtype


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("part", ["decoder", "text encoder"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_another_part_is_named(value: float, part: str, dtype: torch.dtype) -> None:
    pipe = in_half(dtype)
    inject(parts_of(pipe)[part], value)
    with pytest.raises(ValueError, match=f"NaN or infinite numbers in the {part} in fp32"):
        images_of(pipe, table(1))


def test_the_first_image_that_is_not_finite_is_named() -> None:
    pipe = make_pipeline()
    bird = token_ids(pipe.tokenizer, "bird")[1]
    inject(parts_of(pipe)["text encoder"], math.nan, chosen=lambda ids: (ids[0] == bird).any(1))
    rows = pd.DataFrame({"prompt": [SENTENCES[0], SENTENCES[5]], "seed": [3, 8]})
    with pytest.raises(ValueError, match=rf"prompt '{SENTENCES[5]}', seed 8\)"):
        images_of(pipe, rows)


# --- the column of the image set, and the count of the run


def marked(rows: int, chosen: set[int]) -> Iterator[tuple[int, Image.Image]]:
    for row, values in enumerate(np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8)):
        image = Image.fromarray(values)
        image.info |= {RESAMPLED: True} if row in chosen else {}
        yield row, image


@pytest.mark.parametrize("chosen", [set(), {0}, {2, 5, 6}, set(range(7))])
def test_the_column_is_there_only_if_an_image_was_sampled_again(
    tmp_path: Path, chosen: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_sets, "ROW_GROUP", 3)
    plain, other, rows = tmp_path / "plain.parquet", tmp_path / "other.parquet", table(7)
    write_image_set(plain, rows, marked(7, set()))
    write_image_set(other, rows, marked(7, chosen))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.parquet", "plain.parquet"]
    assert resampled_count([plain]) == 0 and resampled_count([other, plain, other]) == 2 * len(chosen)
    assert (other.read_bytes() == plain.read_bytes()) == (not chosen)
    (read, images), (expected, originals) = read_image_set(other), read_image_set(plain)
    assert torch.equal(images, originals) and RESAMPLED not in expected
    if chosen:
        assert read.pop(RESAMPLED).tolist() == [row in chosen for row in range(7)]
        schema, file = pq.read_schema(other), pq.ParquetFile(other)
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        assert features[RESAMPLED] == {"dtype": "bool", "_type": "Value"} and list(features) == schema.names
        assert file.num_row_groups == 3 and schema.names[-1] == "image"
    pd.testing.assert_frame_equal(read, expected)


def test_scores_and_grids_do_not_see_the_column(tmp_path: Path) -> None:
    """One of two shards has it."""
    files = [tmp_path / f"x.000{number}-of-0002.parquet" for number in (1, 2)]
    for file, chosen in zip(files, ({1}, set()), strict=True):
        write_image_set(file, table(4), marked(4, chosen))
    for shards in (files, files[::-1]):
        rows, images = zip(*score_files.blocks(shards, 3), strict=True)
        assert pd.concat(rows)["seed"].tolist() == [0, 1, 2, 3] * 2 and sum(map(len, images)) == 8
        assert all(list(part) == ["prompt", "seed", "role"] for part in rows)
        assert list(read_rows(shards, lambda prompts: range(8))[0]) == ["prompt", "seed", "role"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the base that leaves fp16, a task, and a prompt set."""
    monkeypatch.chdir(tmp_path)
    overflowing().save_pretrained("base")
    Path("task.yaml").write_text(TASK)
    Path("prompts").mkdir()
    table(5).assign(concept="ship", template="x", index=0).to_csv("prompts/prompts.csv", index=False)
    Path("prompts/manifest.json").write_text(json.dumps({"kind": "prompt set", "files": {}}))
    return tmp_path


@pytest.mark.parametrize(("precision", "again"), [("fp16", 4), ("bf16", 0), ("fp32", 0)])
def test_the_command_counts_them(place: Path, precision: str, again: int) -> None:
    command = ["sample", "--base", "base", "--task", "task.yaml", "--device", "cpu", "--precision", precision]
    assert main.main([*command, "--out", "out", "--set", "steps=2", "guidance=3"]) == 0
    assert json.loads((place / "out/run.json").read_text())[RESAMPLED] == again
    rows, images = read_image_set(place / "out/images.parquet")
    assert rows.get(RESAMPLED, pd.Series(False, rows.index)).sum() == again and len(rows) == 4
    assert images.float().std((2, 3)).min() > 1  # no channel of a picture is of one value


@pytest.mark.parametrize("shard", [None, 2])
def test_a_job_of_the_study_counts_them_over_its_files(place: Path, shard: int | None) -> None:
    sampling = {"steps": 1, "guidance": 2.0, "batch": 2, "size": None, "precision": "fp16", "shard": shard}
    block = {"base": {"path": "base", "revision": None}, "sampling": sampling}
    job = Job(block, Path("out/manifest.json"), {"prompts": (Path("prompts/manifest.json"),)}, "cpu")
    Path("out").mkdir()
    assert sample_stage.make(job, Path("out")) == {"images": 5, RESAMPLED: 5}
    assert len(list(Path("out").glob("*.parquet"))) == (3 if shard else 1)
    assert concept_images.write_samples(job, table(3), Path("concepts")) == {"images": 3, RESAMPLED: 3}


def test_a_job_for_whose_images_the_disk_has_no_space_samples_none(place: Path) -> None:
    """Half of them are there from an interrupted run."""
    number = 2 * shutil.disk_usage(place).free // (3 * 8192**2 // 5) + 400
    table(number).assign(concept="ship", template="x", index=0).to_csv("prompts/prompts.csv", index=False)
    sampling = {"steps": 1, "guidance": 2.0, "batch": 2, "size": 8192, "precision": "fp32", "shard": number // 4 * 2}
    block = {"base": {"path": "base", "revision": None}, "sampling": sampling}
    job = Job(block, Path("out/manifest.json"), {"prompts": (Path("prompts/manifest.json"),)}, "cpu")
    first, *_ = shard_rows(number, number // 4 * 2, 2)
    shard_file(sample_stage.unfinished(job), "step-000000", 0, -(-number // len(first))).write_bytes(b"")
    needed = (number - len(first)) * 3 * 8192**2 // 5 / 2**20
    with pytest.raises(OSError, match=rf"needs {needed:.0f} MiB or more, its disk has \d+ MiB left"):
        sample_stage.make(job, Path("out"))
    block["sampling"] = {"steps": 1, "guidance": 2.0, "batch": 2, "size": 8192}
    with pytest.raises(OSError, match=r"concepts needs \d+ MiB or more"):
        concept_images.write_samples(job, table(number), Path("concepts"))
