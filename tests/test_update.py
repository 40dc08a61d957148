"""Updates of an erased model that need no pictures: rounded weights, and a LoRA merged."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

import tiny
from resurgence.config.fields import ConfigError
from resurgence.config.task import make_task
from resurgence.diffusion.deltas import apply_delta, lora_delta, parameters, save_delta
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
        assert len(np.unique(row)) <= 2**bits - 1
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
