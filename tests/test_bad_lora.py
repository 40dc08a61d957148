"""LoRA files: kohya's names are read; what is no LoRA of the base is refused with file, module and remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from resurgence.diffusion import deltas
from resurgence.diffusion.sampling import SamplingConfig
from resurgence.erasers.gradient.spm_transport import sample_opened
from resurgence.erasers.lora import load_loras
from test_bad_base import POINTER
from tiny import make_pipeline, predict

Tensors = dict[str, torch.Tensor]
KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
A, B = f"unet.{KEY}.lora_A.weight", f"unet.{KEY}.lora_B.weight"
PLAIN = {A: torch.ones(2, 32), B: torch.ones(32, 2)}
KOHYA = "lora_unet_" + KEY.replace(".", "_")


def kohya_lora(
    pipe: StableDiffusionPipeline, prefix: str = "lora_te_", alpha: float | None = 2.0, rank: int = 3
) -> Tensors:
    """A random LoRA of linear layers and convolutions as kohya's trainer names and shapes it."""
    tensors, generator = {}, torch.Generator().manual_seed(0)
    parts = {"lora_unet_": pipe.unet, f"{prefix}text_model_": pipe.text_encoder}
    ends = (
        "attn2.to_k",
        "attn1.to_q",
        "attn2.to_out.0",
        "ff.net.0.proj",
        "ff.net.2",
        "proj_in",
        "conv1",
        "fc1",
    )
    for start, model in parts.items():
        for name, module in model.named_modules():
            if not name.endswith(ends) or not hasattr(module, "weight"):
                continue
            outputs, inputs, *kernel = module.weight.shape
            key = start + name.removeprefix("text_model.").replace(".", "_")
            tensors[f"{key}.lora_down.weight"] = torch.randn((rank, inputs, *kernel), generator=generator) * 0.2
            tensors[f"{key}.lora_up.weight"] = (
                torch.randn((outputs, rank, *(1 for _ in kernel)), generator=generator) * 0.2
            )
            if alpha is not None:
                tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return tensors


@pytest.mark.parametrize("alpha", [2.0, None])
@pytest.mark.parametrize("prefix", ["lora_te_", "lora_te1_"])
def test_kohyas_names_give_what_diffusers_gives(prefix: str, alpha: float | None, tmp_path: Path) -> None:
    tensors = kohya_lora(make_pipeline(), prefix, alpha)
    save_file(tensors, tmp_path / deltas.LORA_FILE)
    unfused, merged, base = make_pipeline(), make_pipeline(), make_pipeline()
    unfused.load_lora_weights(tmp_path)
    deltas.apply_folder(merged, tmp_path)
    difference = (predict(merged) - predict(unfused)).abs().max()
    effect = (predict(merged) - predict(base)).abs().max()
    assert effect > 0.05 and difference < 1e-4 * effect, (effect, difference)
    delta = deltas.lora_delta(base, tmp_path / deltas.LORA_FILE)
    assert 3 * len(delta) == len(tensors) * (1 if alpha else 1.5)  # every module of the file


@pytest.mark.parametrize(
    ("part", "module", "flat"),
    [
        ("unet", KEY, KOHYA),
        ("unet", "down_blocks.0.resnets.0.conv1", "lora_unet_down_blocks_0_resnets_0_conv1"),
        ("unet", "time_embedding.linear_1", "lora_unet_time_embedding_linear_1"),
        ("text_encoder", "encoder.layers.1.self_attn.q_proj", "lora_te_text_model_encoder_layers_1_self_attn_q_proj"),
        ("text_encoder", "encoder.layers.0.mlp.fc2", "lora_te1_text_model_encoder_layers_0_mlp_fc2"),
    ],
)
def test_kohyas_alpha_scales_by_the_rank(part: str, module: str, flat: str, tmp_path: Path) -> None:
    """W' = W + alpha / rank B A, by hand: 1 / 4 of four products of ones."""
    pipe = make_pipeline()
    weight = getattr(pipe, part).get_submodule(module).weight
    outputs, inputs, *kernel = weight.shape
    down, up = torch.ones(4, inputs, *kernel), torch.ones(outputs, 4, *(1 for _ in kernel))
    pair = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    save_file({f"{flat}.{end}": value for end, value in pair.items()}, tmp_path / "lora.safetensors")
    ((name, merged),) = deltas.lora_delta(pipe, tmp_path / "lora.safetensors").items()
    assert name == f"{part}.{module}.weight"
    assert torch.allclose(merged - weight, torch.ones_like(weight), atol=1e-6)


@pytest.mark.parametrize("names", [("lora_A", "lora_B"), ("lora.down", "lora.up")], ids="-".join)
@pytest.mark.parametrize(
    ("part", "module", "stem"),
    [
        ("unet", KEY, f"unet.{KEY}"),
        ("text_encoder", "encoder.layers.1.mlp.fc1", "text_encoder.text_model.encoder.layers.1.mlp.fc1"),
    ],
)
def test_alpha_counts_in_files_with_diffusers_names(
    part: str, module: str, stem: str, names: tuple, tmp_path: Path
) -> None:
    """W' = W + alpha / rank B A of the merged pipeline, by hand: 3 / 2 of two products of ones; without alpha, 2."""
    for alpha, added in ((3.0, 3.0), (None, 2.0)):
        pipe = make_pipeline()
        weight = getattr(pipe, part).get_submodule(module).weight
        before, (outputs, inputs) = weight.detach().clone(), weight.shape
        sides = {names[0]: torch.ones(2, inputs), names[1]: torch.ones(outputs, 2)}
        tensors = {f"{stem}.{name}.weight": value for name, value in sides.items()}
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
        save_file(tensors, tmp_path / deltas.LORA_FILE)
        deltas.apply_folder(pipe, tmp_path)
        assert torch.allclose(weight - before, torch.full_like(weight, added), atol=1e-5)


BAD: dict[str, tuple[Tensors, tuple[str, str]]] = {  # tensors of the file -> what is told beside the file, remedy
    "another width": ({A: torch.ones(2, 40), B: torch.ones(32, 2)}, ("(32, 40)", "use the base that the LoRA was")),
    "other outputs": ({A: torch.ones(2, 32), B: torch.ones(64, 2)}, ("(64, 32)", "use the base that the LoRA was")),
    "no B": ({A: torch.ones(2, 32)}, (f"{KEY} has lora_A and no lora_B", "fetch or save the LoRA again")),
    "no A": ({B: torch.ones(32, 2)}, (f"{KEY} has lora_B and no lora_A", "fetch or save the LoRA again")),
    "two ranks": ({A: torch.ones(2, 32), B: torch.ones(32, 3)}, ("not of one rank", "fetch or save the LoRA again")),
    "no rank": ({A: torch.ones(0, 32), B: torch.ones(32, 0)}, ("not of one rank", "fetch or save the LoRA again")),
    "vectors": ({A: torch.ones(32), B: torch.ones(32)}, ("not of one rank", "fetch or save the LoRA again")),
    "no tensors": ({}, ("holds no tensors of a LoRA", "fetch or save it again")),
    "alpha of two": (
        {**PLAIN, f"unet.{KEY}.alpha": torch.ones(2)}, (f"{KEY}.alpha of shape (2,)", "save the LoRA again")
    ),
    "alpha is not finite": (
        {**PLAIN, f"unet.{KEY}.alpha": torch.tensor(torch.nan)}, ("alpha", "again")
    ),
    "a module of SDXL": (
        {name.replace("unet.", "text_encoder_2."): value for name, value in PLAIN.items()},
        ("no module 'text_encoder_2", "use the base that the LoRA was trained on"),
    ),
    "kohya of SDXL": (
        {f"lora_te2_{KOHYA}.lora_down.weight": torch.ones(1, 4)},
        ("no module 'lora_te2_", "use the base that the LoRA was trained on"),
    ),
    "kohya, half a pair": (
        {f"{KOHYA}.lora_down.weight": torch.ones(2, 32)}, (f"{KEY} has lora_A and no lora_B", "fetch or save")
    ),
    "kohya, another width": (
        {f"{KOHYA}.lora_down.weight": torch.ones(2, 1024), f"{KOHYA}.lora_up.weight": torch.ones(32, 2)},
        ("(32, 1024)", "use the base that the LoRA was trained on"),
    ),
    "LoHa": ({f"{KOHYA}.hada_w1_a": torch.ones(2, 2)}, ("hada_w1_a is no part of a plain", "save it in diffusers")),
    "DoRA of kohya": (
        {f"{KOHYA}.lora_down.weight": torch.ones(2, 32), f"{KOHYA}.lora_up.weight": torch.ones(32, 2),
         f"{KOHYA}.dora_scale": torch.ones(32)},
        ("dora_scale is no part of a plain LoRA", "save it in diffusers format"),
    ),
    "a whole UNet": ({"conv_in.weight": torch.ones(1)}, ("conv_in.weight is no part", "save it in diffusers format")),
}  # fmt: skip


def refused(folder: Path, *told: str) -> None:
    """Assert that a folder is refused with its file and these words, and that nothing of it was applied."""
    pipe = make_pipeline()
    with pytest.raises((ValueError, OSError)) as error:
        deltas.apply_folder(pipe, folder)
    message = str(error.value)
    assert [part for part in (str(folder / deltas.LORA_FILE), *told) if part not in message] == [], message
    assert torch.equal(pipe.unet.get_submodule(KEY).weight, make_pipeline().unet.get_submodule(KEY).weight)


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_lora_of_this_base(case: str, tmp_path: Path) -> None:
    tensors, told = BAD[case]
    save_file(tensors, tmp_path / deltas.LORA_FILE)
    refused(tmp_path, *told)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("{", ("lora_adapter_metadata is not JSON", "save the LoRA again")),
        ('{"unet.r": 2}', ("no lora_alpha", "save_lora_weights")),
        ('{"unet.lora_alpha": 2, "unet.use_dora": true}', ("DoRA", "export plain LoRA weights")),
    ],
)
def test_metadata_that_say_no_scale(header: str, told: tuple[str, ...], tmp_path: Path) -> None:
    save_file(PLAIN, tmp_path / deltas.LORA_FILE, metadata={"lora_adapter_metadata": header})
    refused(tmp_path, *told)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda content: POINTER, ("Git LFS pointer", "run git lfs pull")),
        (lambda content: b"<html>404</html>", ("web page", "download the file itself")),
        (lambda content: b"", ("0 bytes", "fetch it or run its step again")),
        (lambda content: b"\x80\x04" + content, ("pickle", "convert it")),
        (cut, ("is damaged", "fetch it or run its step again")),
        (lambda content: content[:4], ("4 bytes", "fetch it or run its step again")),
    ],
)
@pytest.mark.parametrize("name", [deltas.LORA_FILE, deltas.DELTA_FILE])
def test_files_that_are_no_safetensors(name: str, damage: Callable, told: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / name
    save_file(PLAIN, file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError) as error:
        deltas.apply_folder(make_pipeline(), tmp_path)
    assert [part for part in (str(file), *told) if part not in str(error.value)] == [], error.value


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    save_file(PLAIN, tmp_path / "detail.safetensors")
    with pytest.raises(FileNotFoundError, match=r"detail\.safetensors is a file; put it into a folder, as delta\.saf"):
        deltas.apply_folder(make_pipeline(), tmp_path / "detail.safetensors")


@pytest.mark.parametrize("half", ["lora_A", "lora_B", "all"])
def test_adapters_that_are_not_whole(half: str, tmp_path: Path) -> None:
    file = tmp_path / "ship" / deltas.LORA_FILE
    file.parent.mkdir()
    save_file({name: value for name, value in PLAIN.items() if half not in name and half != "all"}, file)
    with pytest.raises(ValueError, match=r"ship/pytorch_lora_weights\.safetensors: .*train the LoRAs again"):
        load_loras(tmp_path, ["ship"])


@pytest.mark.parametrize(
    ("name", "down", "told"),
    [("nowhere.to_k", 32, "no module 'nowhere.to_k'"), (KEY, 40, "for weights of shape (32, 40)")],
)
def test_adapters_of_another_base(name: str, down: int, told: str) -> None:
    import pandas as pd

    rows = pd.DataFrame({"prompt": ["the ship"], "seed": [0]})
    adapters = {"ship": {name: (torch.ones(1, down), torch.ones(32, 1))}}
    with pytest.raises(ValueError, match=r"adapter of 'ship': .*use the base that the LoRA was trained on") as error:
        list(sample_opened(make_pipeline(), rows, SamplingConfig(steps=1), adapters))
    assert told in str(error.value)


def test_file_of_a_plain_lora_is_read(tmp_path: Path) -> None:
    """The file that the bad ones are made of is a good one."""
    save_file(PLAIN, tmp_path / deltas.LORA_FILE)
    pipe = make_pipeline()
    before = pipe.unet.get_submodule(KEY).weight.clone()
    deltas.apply_folder(pipe, tmp_path)
    assert torch.equal(pipe.unet.get_submodule(KEY).weight, before + 2)
    assert load_file(tmp_path / deltas.LORA_FILE).keys() == PLAIN.keys()
