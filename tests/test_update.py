"""Updates of an erased model that need no pictures: rounded weights, and a LoRA merged."""

import copy

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

import tiny
from resurgence.config.fields import ConfigError
from resurgence.config.task import make_task
from resurgence.diffusion.deltas import apply_delta, lora_delta, parameters, save_delta
from resurgence.diffusion.model_files import read_erased_model
from resurgence.diffusion.model_headers import check_lora
from resurgence.erasers import EraserData, method
from resurgence.erasers.checkpoint.config import UpdateConfig
from resurgence.erasers.checkpoint.update import rounded
from test_bad_lora import kohya_lora
from test_checkpoint import KEY, VALUE, erased, erasure
from test_config import TASK

EMBEDDING = "text_encoder.embeddings.token_embedding.weight"


@pytest.fixture(scope="module")
def base() -> StableDiffusionPipeline:
    return tiny.make_pipeline()


def updated(pipe: StableDiffusionPipeline, **settings: object) -> dict[str, torch.Tensor]:
    return method("update").erase(pipe, make_task(TASK), UpdateConfig(**settings), EraserData(), 0)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_have_at_most_the_levels_of_the_bits_and_no_value_moves_further_than_half_a_step(bits):
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    result = rounded(weight, bits)
    for row, before in zip(result.flatten(1).numpy(), weight.flatten(1).numpy(), strict=True):
        step = np.abs(before).max() / (2 ** (bits - 1) - 1)
        levels = row / (step or 1)
        np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
        assert np.abs(levels).max() < 2 ** (bits - 1)
        assert np.abs(row - before).max() <= step / 2 + 1e-6
        assert np.abs(row).max() == pytest.approx(np.abs(before).max())


def test_rounding_changes_the_erased_model_and_leaves_embeddings_biases_and_norms(base, tmp_path):
    model = erasure(base, KEY, VALUE)
    save_delta(model, tmp_path / "delta.safetensors")
    before = {name: value.clone() for name, value in parameters(base).items()}
    delta = updated(base, path=str(tmp_path), bits=4)
    assert all(torch.equal(before[name], value) for name, value in parameters(base).items())  # the base is left
    torch.testing.assert_close(delta[KEY], rounded(model[KEY], 4))
    matrices = {name for name, value in before.items() if value.ndim > 1 and "embedding.weight" not in name}
    assert delta.keys() == matrices and EMBEDDING not in delta
    assert "unet.time_embedding.linear_1.weight" in delta


def test_a_lora_is_merged_into_the_erased_model_and_not_into_the_base(base, tmp_path):
    model = erasure(base, KEY, VALUE)
    save_delta(model, tmp_path / "delta.safetensors")
    lora = tmp_path / "lora.safetensors"
    save_file(kohya_lora(base), lora)
    both = erased(base, model)
    expected = lora_delta(both, lora)
    delta = updated(base, path=str(tmp_path), lora=str(lora))
    assert delta.keys() == {*model, *expected}
    for name, value in delta.items():
        torch.testing.assert_close(value, expected.get(name, model.get(name)))
    rounded_after = updated(base, path=str(tmp_path), lora=str(lora), bits=8)
    apply_delta(both, expected)
    name = next(iter(expected))
    torch.testing.assert_close(rounded_after[name], rounded(parameters(both)[name], 8))


def test_without_a_path_the_base_itself_is_rounded(base):
    torch.testing.assert_close(updated(base, bits=8)[KEY], rounded(parameters(base)[KEY], 8))


def test_an_update_that_changes_nothing_is_refused():
    with pytest.raises(ConfigError, match="bits = None: changes nothing without a LoRA"):
        UpdateConfig(path="model")


def test_a_scale_without_a_lora_is_refused():
    with pytest.raises(ConfigError, match=r"scale = 2\.0: multiplies a LoRA, and none is named; leave it out"):
        UpdateConfig(bits=8, scale=2.0)


@pytest.mark.parametrize("initial", ["gaussian", "pissa", "olora"])
def test_a_lora_that_began_with_other_weights_than_the_base_is_refused(base, initial, tmp_path):
    """peft's own merged weights are W + B A only where its start has left W as it was."""
    base.save_pretrained(tmp_path / "base")
    settings = LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=initial)
    model = get_peft_model(copy.deepcopy(base.unet), settings)
    for number, (name, p) in enumerate(model.named_parameters()):
        if "lora_" in name:
            p.data += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
    model.save_pretrained(tmp_path / "lora")
    trained = {f"unet.{name}": value for name, value in model.merge_and_unload().named_parameters()}
    file = tmp_path / "lora/adapter_model.safetensors"
    differences = [float((value - trained[name]).abs().max()) for name, value in lora_delta(base, file).items()]
    if initial == "gaussian":
        assert max(differences) < 1e-6
        assert read_erased_model(base, str(file))[0] == "lora" and updated(base, lora=str(tmp_path / "lora"))
        return check_lora(tmp_path / "base", tmp_path / "lora", "--lora")
    assert max(differences) > 0.1
    for read in (
        lambda: read_erased_model(base, str(file)),
        lambda: updated(base, lora=str(tmp_path / "lora")),
        lambda: check_lora(tmp_path / "base", tmp_path / "lora", "--lora"),
    ):
        with pytest.raises(ValueError, match=f"began as {initial}, which changes the weights of the base too"):
            read()
