"""One LoRA in the files of four writers (kohya's trainer, diffusers, its older versions, peft): the merged weights are
W + alpha / r * up down, written out by hand in float64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from resurgence.config.task import make_task
from resurgence.diffusion.deltas import Delta, lora_delta, parameters
from resurgence.diffusion.model_files import read_erased_model
from resurgence.erasers import EraserData, method
from resurgence.erasers.checkpoint.config import UpdateConfig
from resurgence.workflow.graph import files_of
from test_config import TASK
from tiny import make_pipeline

RANK, ALPHA = 3, 2.0
BLOCK = "down_blocks.0.attentions.0"
MODULES = {
    "unet": (f"{BLOCK}.transformer_blocks.0.attn2.to_k", f"{BLOCK}.transformer_blocks.0.attn1.to_out.0",
             f"{BLOCK}.transformer_blocks.0.ff.net.0.proj", f"{BLOCK}.proj_in", "down_blocks.0.resnets.0.conv1"),
    "text_encoder": ("encoder.layers.1.self_attn.q_proj", "encoder.layers.0.mlp.fc2"),
}  # fmt: skip
Matrices = dict[str, tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def base() -> StableDiffusionPipeline:
    return make_pipeline()


def matrices(base: StableDiffusionPipeline, part: str) -> Matrices:
    """Module of a part -> down (r, inputs, kernel) and up (outputs, r, 1, 1), random."""
    draws, pairs = torch.Generator().manual_seed(len(part)), {}
    for name in MODULES[part]:
        outputs, inputs, *kernel = getattr(base, part).get_submodule(name).weight.shape
        down = torch.randn((RANK, inputs, *kernel), generator=draws)
        pairs[name] = down, torch.randn((outputs, RANK, *(1 for _ in kernel)), generator=draws)
    return pairs


def by_hand(base: StableDiffusionPipeline, parts: tuple[str, ...]) -> Delta:
    """W + alpha / r * sum over the ranks of up[:, rank] x down[rank], in float64."""
    delta = {}
    for part in parts:
        for name, (down, up) in matrices(base, part).items():
            weight = getattr(base, part).get_submodule(name).weight.detach().numpy().astype(np.float64)
            for rank in range(RANK):
                column = up[:, rank].flatten().numpy().astype(np.float64)
                row = down[rank].flatten().numpy().astype(np.float64)
                weight = weight + ALPHA / RANK * np.outer(column, row).reshape(weight.shape)
            delta[f"{part}.{name}.weight"] = torch.from_numpy(weight)
    return delta


def written_by_kohya(base: StableDiffusionPipeline, folder: Path) -> Path:
    tensors = {}
    for part, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_text_model_")):
        for name, (down, up) in matrices(base, part).items():
            key = prefix + name.replace(".", "_")
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


def with_adapter(base: StableDiffusionPipeline, part: str) -> torch.nn.Module:
    """A part of the tiny base with the matrices as an adapter of peft, and the scale in its configuration."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(MODULES[part]))
    model = get_peft_model(getattr(make_pipeline(), part), config)
    for name, (down, up) in matrices(base, part).items():
        layer = model.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = down, up
    return model


def written_by_diffusers(base: StableDiffusionPipeline, folder: Path) -> Path:
    layers = {}
    for part in MODULES:
        model = with_adapter(base, part)
        states = get_peft_model_state_dict(model)
        layers[f"{part}_lora_layers"] = {name.removeprefix("base_model.model."): t for name, t in states.items()}
        values = json.loads(json.dumps(model.peft_config["default"].to_dict(), default=list))
        layers[f"{part}_lora_adapter_metadata"] = values
    StableDiffusionPipeline.save_lora_weights(folder, **layers)
    return folder / "pytorch_lora_weights.safetensors"


def written_by_older_diffusers(base: StableDiffusionPipeline, folder: Path) -> Path:
    tensors = {}
    for part in MODULES:
        for name, (down, up) in matrices(base, part).items():
            tensors |= {f"{part}.{name}.lora.down.weight": down, f"{part}.{name}.lora.up.weight": up}
            tensors[f"{part}.{name}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, folder / "older.safetensors")
    return folder / "older.safetensors"


@pytest.mark.parametrize("write", [written_by_kohya, written_by_diffusers, written_by_older_diffusers])
def test_files_of_a_whole_pipeline_merge_to_the_weights_by_hand(base, write, tmp_path):
    assert_equal(base, lora_delta(base, write(base, tmp_path)), tuple(MODULES))


def assert_equal(base: StableDiffusionPipeline, delta: Delta, parts: tuple[str, ...]) -> None:
    expected, weights = by_hand(base, parts), parameters(base)
    assert delta.keys() == expected.keys()
    for name, value in expected.items():
        assert (value - weights[name]).abs().max() > 0.1
        torch.testing.assert_close(delta[name].double(), value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("given", ["folder", "file"])
@pytest.mark.parametrize("part", MODULES)
def test_a_file_of_peft_is_of_one_part_and_has_its_scale_beside_it(base, part, given, tmp_path):
    with_adapter(base, part).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    kind, delta = read_erased_model(base, str(tmp_path if given == "folder" else file))
    assert kind == "lora"
    assert_equal(base, delta, (part,))
    settings = UpdateConfig(lora=str(tmp_path if given == "folder" else file))
    assert_equal(base, method("update").erase(base, make_task(TASK), settings, EraserData(), 0), (part,))
    assert files_of(file) == [str(tmp_path / "adapter_config.json"), str(file)]  # what a study digests


def test_the_text_encoder_of_peft_in_the_names_of_earlier_transformers(base, tmp_path):
    with_adapter(base, "text_encoder").save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace(".model.encoder.", ".model.text_model.encoder."): t for name, t in tensors.items()}, file)
    assert_equal(base, lora_delta(base, file), ("text_encoder",))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "adapter_config.json is not beside it, and holds its lora_alpha; put both into one folder"),
        ("{", "adapter_config.json is not JSON .*; save the LoRA again"),
        ('{"r": 3}', "has no lora_alpha"),
        ('{"lora_alpha": 3, "use_dora": true}', "DoRA adapters cannot be merged"),
    ],
)
def test_a_file_of_peft_without_its_scale_is_refused(base, config, message, tmp_path):
    with_adapter(base, "unet").save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.unlink()
    if config is not None:
        file.write_text(config)
    with pytest.raises(ValueError, match=message):
        lora_delta(base, tmp_path / "adapter_model.safetensors")
