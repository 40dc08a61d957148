"""Bases that cannot be used are refused when they are read: file and key, value, remedy; easy remedies are applied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from resurgence.config.fields import ConfigError
from resurgence.diffusion.pipeline import export, load_base
from resurgence.diffusion.sampling import latent_shape
from resurgence.diffusion.text import encode_prompts
from tiny import make_pipeline, predict

Change = Callable[[Path], None]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 3438167534\n"
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "base"
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def base(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "base")


def put(file: str, **values: Any) -> Change:
    """Change settings of a configuration; None removes one."""

    def change(base: Path) -> None:
        settings = json.loads((base / file).read_text()) | values
        (base / file).write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))

    return change


def write(file: str, content: bytes) -> Change:
    return lambda base: (base / file).write_bytes(content) and None


def remove(file: str) -> Change:
    def change(base: Path) -> None:
        shutil.rmtree(base / file) if (base / file).is_dir() else (base / file).unlink()

    return change


def rebuilt_unet(**values: Any) -> Change:
    """Weights and configuration of a UNet with other settings."""

    def change(base: Path) -> None:
        shutil.rmtree(base / "unet")
        config = {key: value for key, value in make_pipeline().unet.config.items() if not key.startswith("_")}
        UNet2DConditionModel(**config | values).save_pretrained(base / "unet")

    return change


def scheduler(name: str, **values: Any) -> Change:
    """Another class of scheduler with these settings."""

    def change(base: Path) -> None:
        put("model_index.json", scheduler=["diffusers", name])(base)
        put(SCHEDULER, _class_name=name, **values)(base)

    return change


def flow_matching(base: Path) -> None:
    shutil.rmtree(base / "scheduler")
    FlowMatchEulerDiscreteScheduler().save_pretrained(base / "scheduler")
    put("model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])(base)


def another_text_encoder(base: Path) -> None:
    shutil.rmtree(base / "text_encoder")
    make_pipeline(cross_attention_dim=64, heads=4).text_encoder.save_pretrained(base / "text_encoder")


def another_autoencoder(base: Path) -> None:
    shutil.rmtree(base / "vae")
    make_pipeline(latent_channels=8).vae.save_pretrained(base / "vae")


def added_tokens(base: Path) -> None:
    tokenizer = make_pipeline().tokenizer
    tokenizer.add_tokens(["<cat-toy>", "<dog-toy>"])
    tokenizer.save_pretrained(base / "tokenizer")


def another_tokenizer(base: Path) -> None:
    shutil.rmtree(base / "tokenizer")
    vocabulary = {"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(base / "tokenizer")


def pickled(base: Path) -> None:
    (base / "unet/diffusion_pytorch_model.safetensors").rename(base / "unet/diffusion_pytorch_model.bin")


UNET, VAE, SCHEDULER = "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"
BLOCKS = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "mid_block_type": None}
BAD: dict[str, tuple[Change, tuple[str, str, str]]] = {  # what is done -> where, value, remedy
    # the index
    "no index": (remove("model_index.json"), ("base", "no model_index.json", "written by diffusers' save_pretrained")),
    "index is text": (write("model_index.json", b"SD 1.4"), ("model_index.json: line 1", "'SD 1.4'", "correct it")),
    "index is a list": (write("model_index.json", b"[1]"), ("model_index.json", "[1]", "write the folder again")),
    "index in UTF-16": (
        write("model_index.json", "{}".encode("utf-16")), ("model_index.json", "UTF-16", "save it in UTF-8")
    ),
    "SDXL": (
        put("model_index.json", _class_name="StableDiffusionXLPipeline"),
        ("model_index.json: _class_name", "'StableDiffusionXLPipeline'", "give a StableDiffusionPipeline"),
    ),
    "no class": (put("model_index.json", _class_name=...), ("_class_name", "None", "give a StableDiffusionPipeline")),
    "no UNet in the index": (put("model_index.json", unet=...), ("model_index.json: unet", "None", "give a base of")),
    "UNet without text": (
        put("model_index.json", unet=["diffusers", "UNet2DModel"]),
        ("model_index.json: unet", "'UNet2DModel'", "must be a UNet2DConditionModel"),
    ),
    "tiny autoencoder": (
        put("model_index.json", vae=["diffusers", "AutoencoderTiny"]),
        ("model_index.json: vae", "'AutoencoderTiny'", "must be a AutoencoderKL"),
    ),
    "T5": (
        put("model_index.json", text_encoder=["transformers", "T5EncoderModel"]),
        ("model_index.json: text_encoder", "'T5EncoderModel'", "must be a CLIPTextModel"),
    ),
    "tokenizer of T5": (
        put("model_index.json", tokenizer=["transformers", "T5Tokenizer"]),
        ("model_index.json: tokenizer", "'T5Tokenizer'", "must be a CLIPTokenizer"),
    ),
    # files
    **{
        f"{part} is a pointer": (
            write(f"{part}/{name}.safetensors", POINTER),
            (f"{part}/{name}.safetensors", f"pointer of {len(POINTER)} bytes", "run git lfs pull"),
        )
        for part, name in WEIGHTS.items()
    },
    **{
        f"{part} is empty": (
            write(f"{part}/{name}.safetensors", b""),
            (f"{part}/{name}.safetensors", "0 bytes", "fetch it or run its step again"),
        )
        for part, name in WEIGHTS.items()
    },
    "a web page": (
        write("unet/diffusion_pytorch_model.safetensors", b"<!DOCTYPE html><html>Sign in</html>"),
        ("diffusion_pytorch_model.safetensors", "web page of 35 bytes", "download the file itself"),
    ),
    "a pickle by another name": (
        write("unet/diffusion_pytorch_model.safetensors", b"PK\x03\x04" + bytes(100)),
        ("diffusion_pytorch_model.safetensors", "pickle", "convert it"),
    ),
    "pickles only": (pickled, ("unet", "only config.json, diffusion_pytorch_model.bin", "fetch it again with")),
    "no configuration": (remove(UNET), ("unet", "no config.json", "fetch the whole folder")),
    "broken configuration": (write(UNET, b'{"in_channels": 4,'), (UNET, "line 1", "write the file again")),
    "configuration in Latin-1": (write(VAE, b'{"a": "\xe9"}'), (VAE, "byte 0xe9", "save the file in UTF-8")),
    "no scheduler": (remove("scheduler"), ("base", "no scheduler/scheduler_config.json", "copy it from")),
    "broken scheduler": (write(SCHEDULER, b"{]"), (SCHEDULER, "line 1", "correct it")),
    "no text encoder": (remove("text_encoder"), ("text_encoder", "no config.json", "fetch the whole folder")),
    "no tokenizer": (remove("tokenizer"), ("tokenizer", "neither tokenizer.json nor", "fetch the whole folder")),
    "another tokenizer": (another_tokenizer, ("tokenizer: tokens", "3", "text encoder has 575 embeddings")),
    # parts that do not fit
    "inpainting": (rebuilt_unet(in_channels=9), (f"{UNET}: in_channels", "9", "inpainting")),
    "depth": (rebuilt_unet(in_channels=5), (f"{UNET}: in_channels", "5", "give a base of the kind")),
    "learned variance": (rebuilt_unet(out_channels=8), (f"{UNET}: out_channels", "8", "the autoencoder has 4")),
    "other width": (another_text_encoder, (f"{UNET}: cross_attention_dim", "32", "embeddings have 64")),
    "other latents": (another_autoencoder, (f"{UNET}: in_channels", "4", "has 8 latent channels")),
    "no side": (put(UNET, sample_size=None), (f"{UNET}: sample_size", "None", "e.g. 64 for images of 512 pixels")),
    "two sides": (put(UNET, sample_size=[8, 16]), (f"{UNET}: sample_size", "[8, 16]", "must be a whole number")),
    "no side at all": (put(UNET, sample_size=0), (f"{UNET}: sample_size", "0", "must be a whole number")),
    "no cross-attention": (rebuilt_unet(**BLOCKS), (f"{UNET}: down_block_types", "DownBlock2D", "text has no effect")),
    "classes": (
        rebuilt_unet(class_embed_type="timestep"), (f"{UNET}: class_embed_type", "'timestep'", "has a further input")
    ),
    "distilled": (
        rebuilt_unet(time_cond_proj_dim=8), (f"{UNET}: time_cond_proj_dim", "8", "give a base of the kind of")
    ),
    "shifted latents": (put(VAE, shift_factor=0.1159), (f"{VAE}: shift_factor", "0.1159", "of later models")),
    "no scale": (put(VAE, scaling_factor=0.0), (f"{VAE}: scaling_factor", "0.0", "SD has 0.18215")),
    "added tokens": (added_tokens, ("tokenizer: token", "'<cat-toy>'", "resize_token_embeddings")),
    "no room": (
        put("tokenizer/tokenizer_config.json", model_max_length=2),
        ("tokenizer: model_max_length", "2", "write 77"),
    ),
    # schedules
    "flow matching": (
        flow_matching, (f"{SCHEDULER}: _class_name", "'FlowMatchEulerDiscreteScheduler'", "cannot be used")
    ),
    "flow sigmas": (put(SCHEDULER, use_flow_sigmas=True), (f"{SCHEDULER}: _class_name", "'PNDM", "cannot be used")),
    "sample": (
        scheduler("DDIMScheduler", prediction_type="sample"),
        (f"{SCHEDULER}: prediction_type", "'sample'", "known: epsilon, v_prediction"),
    ),
    "sigmoid": (
        scheduler("DDPMScheduler", beta_schedule="sigmoid"),
        (f"{SCHEDULER}: beta_schedule", "'sigmoid'", "known: linear, scaled_linear"),
    ),
    "noise above 1": (put(SCHEDULER, beta_end=3.0), ("scheduler: prediction_type", "alpha_bar is 0", "or the betas")),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_base_that_cannot_be_used(case: str, base: Path) -> None:
    change, told = BAD[case]
    change(base)
    with pytest.raises((ValueError, OSError)) as error:
        load_base(base)
    message = str(error.value)
    assert [part for part in told if part not in message] == [], message
    assert "hf download /" not in message and str(base) in message


def test_prompts_are_as_long_as_the_text_encoder_reads(base: Path, whole: Path, tmp_path: Path) -> None:
    """A tokenizer without a length, or with a larger one, pads and cuts to the encoder's positions."""
    expected = encode_prompts(load_base(whole), ["a photo of the ship"])
    for length in (..., 1000):
        put("tokenizer/tokenizer_config.json", model_max_length=length)(base)
        pipe = load_base(base)
        assert pipe.tokenizer.model_max_length == 77
        assert torch.equal(encode_prompts(pipe, ["a photo of the ship"]), expected)
    export(base, [], tmp_path / "out")
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "out").tokenizer.model_max_length == 77


@pytest.mark.parametrize("parts", [("unet", "vae", "text_encoder"), ("unet",), ("text_encoder",), ("vae",)])
def test_weights_of_a_variant_are_read_where_there_are_no_others(parts: tuple[str, ...], base: Path) -> None:
    for part in parts:
        file = base / part / f"{WEIGHTS[part]}.safetensors"
        half = {name: value.half() for name, value in load_file(file).items()}
        save_file(half, file.with_name(f"{WEIGHTS[part]}.fp16.safetensors"), metadata={"format": "pt"})
        file.unlink()
    pipe = load_base(base)
    rounded = make_pipeline()
    for part in parts:
        getattr(rounded, part).half().float()
    assert torch.allclose(predict(pipe), predict(rounded), atol=1e-5)
    for part in WEIGHTS:
        assert getattr(pipe, part).dtype == torch.float32


def test_full_weights_are_read_where_a_variant_is_there_too(base: Path) -> None:
    file = base / "unet/diffusion_pytorch_model.safetensors"
    zeros = {name: torch.zeros_like(value).half() for name, value in load_file(file).items()}
    save_file(zeros, file.with_name("diffusion_pytorch_model.fp16.safetensors"), metadata={"format": "pt"})
    assert torch.allclose(predict(load_base(base)), predict(make_pipeline()), atol=1e-5)


@pytest.mark.parametrize("size", [15, 17, 33])
def test_a_size_that_the_autoencoder_cannot_make(size: int) -> None:
    with pytest.raises(ConfigError, match=f"size = {size}: must be a multiple of 2, the autoencoder's factor"):
        latent_shape(make_pipeline(), size)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/no/such/base", ["no such file or folder", "correct the path"]),
        ("a/b/c", ["a/b/c", "correct the path"]),
        ("stable-diffusion", ["stable-diffusion", "correct the path"]),
        ("base.ckpt", ["base.ckpt", "convert them to .safetensors"]),
    ],
)
def test_a_path_without_a_base(path: str, told: list[str]) -> None:
    with pytest.raises((ValueError, OSError)) as error:
        load_base(path)
    assert [part for part in told if part not in str(error.value)] == [], error.value
    assert f"hf download {path}" not in str(error.value)
