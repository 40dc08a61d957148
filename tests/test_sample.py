"""The sampler against diffusers' own pipeline, and its independence of batch size, order and memory."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from resurgence.config.fields import ConfigError, build
from resurgence.diffusion import image_sets
from resurgence.diffusion import sampling as s
from resurgence.diffusion.text import encode_prompts
from resurgence.diffusion.unet import ddim, ddim_of, predict, text_projected_once
from resurgence.progress import Progress, duration
from tiny import SENTENCES, make_pipeline

CFG = s.SamplingConfig(steps=4, guidance=5.0, batch=7)
LATENT_TOLERANCE = 1e-4  # of latents of order 1, between batch sizes and against diffusers


def prompt_table(rows: int, prompts: int = 5) -> pd.DataFrame:
    """Interleaved prompts, so that rows of one prompt are not neighbours."""
    return pd.DataFrame(
        {
            "prompt": [SENTENCES[i % prompts] for i in range(rows)],
            "concept": "ship",
            "role": "erase",
            "seed": [1000 + i for i in range(rows)],
            "index": range(rows),
        }
    )


def run(pipe: StableDiffusionPipeline, table: pd.DataFrame, cfg: s.SamplingConfig) -> dict[int, np.ndarray]:
    return {row: np.asarray(image).astype(int) for row, image in s.sample(pipe, table, cfg)}


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return make_pipeline(prediction_type="v_prediction")


@torch.no_grad()
def test_the_text_is_projected_once_a_batch_and_the_latents_are_the_same(pipe: StableDiffusionPipeline) -> None:
    text, empty = encode_prompts(pipe, list(SENTENCES[:3])), encode_prompts(pipe, [""])
    noise = s.initial_noise([1, 2, 3], s.latent_shape(pipe, None))
    layers = [part for n, part in pipe.unet.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))]

    def each_step() -> torch.Tensor:
        states = ddim(pipe.scheduler, partial(predict, pipe.unet), noise, text, empty, CFG.steps, CFG.guidance)
        return list(states)[-1][1]

    def counted(sampled: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
        with FlopCounterMode(display=False) as flops:
            return sampled(), flops.get_total_flops()

    (expected, every), (latents, once) = counted(each_step), counted(lambda: s.denoise(pipe, noise, text, empty, CFG))
    assert torch.equal(latents, expected)
    projections = sum(2 * 2 * len(text) * text.shape[1] * layer.in_features * layer.out_features for layer in layers)
    assert every - once == (CFG.steps - 1) * projections > 0
    before = [layer.weight.clone() for layer in layers]
    for layer in layers:  # nothing of the last call is left
        layer.weight.mul_(1.5)
    changed = each_step()
    assert torch.equal(s.denoise(pipe, noise, text, empty, CFG), changed) and not torch.equal(changed, expected)
    for layer, weight in zip(layers, before, strict=True):
        layer.weight.copy_(weight)
    with pytest.raises(RuntimeError), text_projected_once(pipe.unet):
        raise RuntimeError
    assert not any("forward" in vars(layer) for layer in layers)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("pad", ["eos", "zero"])
def test_latents_and_images_equal_diffusers(prediction_type: str, guidance: float, pad: str) -> None:
    pipe = make_pipeline(prediction_type=prediction_type, pad=pad, layers_per_block=2, heads=4)
    pipe.scheduler = ddim_of(pipe.scheduler)
    prompts, cfg = list(SENTENCES[:3]), s.SamplingConfig(steps=5, guidance=guidance)
    noise = s.initial_noise([1, 2, 3], s.latent_shape(pipe, None))
    options = {"latents": noise, "num_inference_steps": 5, "guidance_scale": guidance}
    theirs = pipe(prompts, output_type="latent", **options).images
    ours = s.denoise(pipe, noise, s.encode_prompts(pipe, prompts), s.encode_prompts(pipe, [""]), cfg)
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() < LATENT_TOLERANCE
    images = np.stack([np.asarray(image) for image in pipe(prompts, **options).images]).astype(int)
    decoded = s.decode(pipe, ours)[0].permute(0, 2, 3, 1).numpy().astype(int)
    assert abs(images - decoded).max() <= 1


def test_images_of_the_iterator_equal_diffusers_with_the_rows_generator(pipe: StableDiffusionPipeline) -> None:
    table = prompt_table(3)
    images = run(pipe, table, CFG)
    pipe.scheduler = ddim_of(pipe.scheduler)
    for row, (prompt, seed) in enumerate(zip(table["prompt"], table["seed"], strict=True)):
        generator = torch.Generator().manual_seed(seed)
        theirs = pipe(prompt, num_inference_steps=4, guidance_scale=5.0, generator=generator).images[0]
        assert abs(images[row] - np.asarray(theirs).astype(int)).max() <= 1


def test_same_images_for_batch_1_7_and_64(pipe: StableDiffusionPipeline) -> None:
    table = prompt_table(66)
    results = {batch: run(pipe, table, s.SamplingConfig(steps=3, guidance=5.0, batch=batch)) for batch in (1, 7, 64)}
    for batch in (7, 64):
        assert set(results[batch]) == set(range(66))
        assert max(abs(results[1][row] - results[batch][row]).max() for row in range(66)) <= 1
    pictures = np.stack(list(results[1].values()))
    assert pictures.std() > 5 and len(np.unique(pictures.reshape(66, -1), axis=0)) == 66


def test_same_latents_for_batch_1_7_and_64(pipe: StableDiffusionPipeline) -> None:
    table = prompt_table(64)
    text, empty = s.encode_prompts(pipe, table["prompt"]), s.encode_prompts(pipe, [""])
    noise = s.initial_noise(table["seed"], s.latent_shape(pipe, None))

    def latents(batch: int) -> torch.Tensor:
        parts = zip(noise.split(batch), text.split(batch), strict=True)
        return torch.cat([s.denoise(pipe, n, t, empty, CFG) for n, t in parts])

    whole = latents(64)
    assert whole.std() > 0.1
    assert (latents(1)[:9] - whole[:9]).abs().max() < LATENT_TOLERANCE
    assert (latents(7) - whole).abs().max() < LATENT_TOLERANCE


def test_rerun_is_bit_identical_and_the_global_seed_has_no_say(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    table = prompt_table(9)
    for name, seed in (("a", 0), ("b", 1)):
        torch.manual_seed(seed)
        image_sets.write_image_set(tmp_path / name, table, s.sample(pipe, table, CFG))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_subset_and_another_order_give_the_same_images(pipe: StableDiffusionPipeline) -> None:
    table = prompt_table(12)
    whole = run(pipe, table, CFG)
    part = table.iloc[[11, 3, 7]]
    images = run(pipe, part, CFG)
    for position, row in enumerate([11, 3, 7]):
        assert abs(images[position] - whole[row]).max() <= 1


def test_each_unique_prompt_is_encoded_once(pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s, "WINDOW", 2)
    encoded, forward = [], pipe.text_encoder.forward

    def counting(ids: torch.Tensor, **options: object) -> object:
        encoded.extend(pipe.tokenizer.batch_decode(ids, skip_special_tokens=True))
        return forward(ids, **options)

    monkeypatch.setattr(pipe.text_encoder, "forward", counting)
    table = prompt_table(20, prompts=5)
    images = run(pipe, table, s.SamplingConfig(steps=1, guidance=5.0, batch=7))
    assert sorted(encoded) == sorted(["", *SENTENCES[:5]]) and len(images) == 20


def test_window_returns_the_embedding_of_each_prompt(
    pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s, "WINDOW", 3)
    whole = s.encode_prompts(pipe, SENTENCES)
    window = s.PromptWindow(pipe, SENTENCES)
    for codes in ([0, 0, 1], [1, 1], [1, 2, 3, 4, 5], [5], [5, 6]):
        assert torch.allclose(window[codes], whole[torch.tensor(codes)], atol=1e-5)
    assert len(window.held) <= 4


def test_guidance_goes_through_one_forward_pass(pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = pipe.unet.forward
    monkeypatch.setattr(pipe.unet, "forward", lambda x, *a, **k: (seen.append(len(x)), forward(x, *a, **k))[1])
    run(pipe, prompt_table(3), CFG)
    assert seen == [6] * 4
    seen.clear()
    run(pipe, prompt_table(3), s.SamplingConfig(steps=2, guidance=1.0))
    assert seen == [3] * 2


MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
]


@pytest.mark.parametrize("error", MEMORY)
def test_out_of_memory_halves_the_batch_and_changes_no_image(
    error: RuntimeError,
    pipe: StableDiffusionPipeline,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = prompt_table(10)
    expected = run(pipe, table, CFG)
    forward = pipe.unet.forward

    def small(x: torch.Tensor, *args: object, **options: object) -> object:
        if len(x) > 4:
            raise error
        return forward(x, *args, **options)

    monkeypatch.setattr(pipe.unet, "forward", small)
    with caplog.at_level(logging.WARNING):
        images = run(pipe, table, s.SamplingConfig(steps=4, guidance=5.0, batch=8))
    assert [record.args[1] for record in caplog.records] == [4, 2]
    assert max(abs(images[row] - expected[row]).max() for row in range(10)) <= 1
    monkeypatch.setattr(pipe.unet, "forward", lambda *a, **k: (_ for _ in ()).throw(error))
    with pytest.raises(MemoryError, match="one image"):
        run(pipe, table, CFG)


def test_another_error_of_a_pass_ends_the_sampling(
    pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(pipe.unet, "forward", lambda *a, **k: (_ for _ in ()).throw(error))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(pipe, prompt_table(2), CFG)


def test_decode_in_chunks_is_the_whole(pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, decoded = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0)), []
    hook = pipe.vae.decoder.register_forward_pre_hook(lambda module, args: decoded.append(len(args[0])))
    whole = s.decode(pipe, latents)[0].int()
    monkeypatch.setattr(s, "CPU_DECODE_PIXELS", 2 * 16 * 16)
    chunks = s.decode(pipe, latents)[0].int()
    hook.remove()
    assert decoded == [5, 3, 2]  # a rest of one image is not decoded alone
    assert whole.shape == (5, 3, 16, 16) and (chunks - whole).abs().max() <= 1


def test_size_in_pixels(pipe: StableDiffusionPipeline) -> None:
    images = run(pipe, prompt_table(1), s.SamplingConfig(steps=1, size=24))
    assert images[0].shape == (24, 24, 3)
    with pytest.raises(ConfigError, match="multiple of 2"):
        run(pipe, prompt_table(1), s.SamplingConfig(size=17))


@pytest.mark.parametrize(("key", "value"), [("steps", 0), ("batch", 0), ("guidance", -1.0), ("size", 0), ("shard", 0)])
def test_bad_settings_are_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        build(s.SamplingConfig, {key: value}, "sampling")


def test_channels_last_and_compiling_change_no_image(pipe: StableDiffusionPipeline) -> None:
    """The memory format exactly as set; compiled by the backend that runs the traced graph as it is."""
    table = prompt_table(3)
    expected = run(pipe, table, CFG)
    other = make_pipeline(prediction_type="v_prediction")
    images = run(other, table, dataclasses.replace(CFG, channels_last=True))
    assert other.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert max(abs(images[row] - expected[row]).max() for row in range(3)) <= 1
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        calls.append(len(graph.graph.nodes))
        return graph.forward

    with pytest.MonkeyPatch.context() as patch:
        compile_with = torch.compile
        patch.setattr(torch, "compile", lambda f, **options: compile_with(f, backend=backend, **options))
        images = run(other, table, dataclasses.replace(CFG, compile=True))
    assert calls and sum(calls) > 100
    assert max(abs(images[row] - expected[row]).max() for row in range(3)) <= 1


def test_attention_is_pytorchs_sdpa(pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: (calls.append(1), original(*a, **k))[1]
    )
    run(pipe, prompt_table(1), s.SamplingConfig(steps=1))
    attentions = sum(type(module).__name__ == "Attention" for module in pipe.unet.modules())
    assert attentions > 0 and len(calls) >= attentions


def test_half_precision_pipeline_keeps_its_type() -> None:
    pipe = make_pipeline().to(dtype=torch.bfloat16)
    image = run(pipe, prompt_table(1), s.SamplingConfig(steps=2))[0]
    reference = run(make_pipeline(), prompt_table(1), s.SamplingConfig(steps=2))[0]
    assert 0 < abs(image - reference).mean() < 20


def test_image_set_round_trip_is_lossless_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sets, "ROW_GROUP", 4)
    table = prompt_table(11).assign(score=np.linspace(0, 1, 11), note="é")
    pixels = np.random.default_rng(0).integers(0, 256, (11, 8, 9, 3), dtype=np.uint8)
    images = ((int(row), Image.fromarray(pixels[row])) for row in np.random.default_rng(1).permutation(11))
    image_sets.write_image_set(tmp_path / "set" / "images.parquet", table, images)
    read, back = image_sets.read_image_set(tmp_path / "set" / "images.parquet")
    assert np.array_equal(back.permute(0, 2, 3, 1).numpy(), pixels) and back.dtype == torch.uint8
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    assert read["seed"].dtype == "int64" and read["score"].dtype == "float64"
    assert [p.name for p in (tmp_path / "set").iterdir()] == ["images.parquet"]
    assert pq.ParquetFile(tmp_path / "set" / "images.parquet").num_row_groups == 3


def test_image_set_follows_the_hugging_face_convention(tmp_path: Path) -> None:
    table = prompt_table(1)
    image_sets.write_image_set(tmp_path / "x.parquet", table, [(0, Image.new("RGB", (4, 4), "red"))])
    read = pq.read_table(tmp_path / "x.parquet")
    cell = read.column("image")[0].as_py()
    assert set(cell) == {"bytes", "path"} and Image.open(io.BytesIO(cell["bytes"])).getpixel((0, 0)) == (255, 0, 0)
    features = json.loads(read.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"} and features["seed"] == {"dtype": "int64", "_type": "Value"}
    assert list(features) == read.column_names


def test_incomplete_and_doubled_image_sets_are_refused(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4))
    with pytest.raises(ValueError, match="1 of 2 rows have no image"):
        image_sets.write_image_set(tmp_path / "x.parquet", prompt_table(2), [(0, image)])
    with pytest.raises(ValueError, match="two images"):
        image_sets.write_image_set(tmp_path / "x.parquet", prompt_table(2), [(0, image), (0, image)])
    assert not (tmp_path / "x.parquet").exists()
    with pytest.raises(FileNotFoundError, match=r"x\.parquet"):
        image_sets.read_image_set(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match=r"x\.parquet is damaged"):
        image_sets.read_image_set(tmp_path / "x.parquet")


def test_progress_says_rate_and_time_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    monkeypatch.setattr("resurgence.progress.time.monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO):
        progress = Progress("sampling", 100, "images", done=20)
        for now[0] in (5.0, 10.0, 20.0, 25.0):
            progress.add(10)
    assert [r.getMessage() for r in caplog.records] == ["sampling: 50 of 100 images, 1.50 images/s, 33 s left"]
    assert [duration(x) for x in (41.6, 185, 7800)] == ["42 s", "3 min 05 s", "2 h 10 min"]
