"""A model that differs from its base in more than UNet and text encoder would be sampled with the base's parts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from transformers import CLIPTextModel

import tiny
from resurgence.diffusion.model_files import read_erased_model
from test_checkpoint import KEY, equal, erased, erasure, in_compvis


@pytest.fixture(scope="module")
def base() -> StableDiffusionPipeline:
    return tiny.make_pipeline()


def another_schedule(pipe: StableDiffusionPipeline) -> None:
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, beta_end=0.02)


def more_timesteps(pipe: StableDiffusionPipeline) -> None:
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, num_train_timesteps=1200)


def another_activation(pipe: StableDiffusionPipeline) -> None:
    old, config = pipe.text_encoder, pipe.text_encoder.config.to_dict() | {"hidden_act": "gelu"}
    pipe.text_encoder = CLIPTextModel(type(old.config)(**config))
    pipe.text_encoder.load_state_dict(old.state_dict())


def other_heads(pipe: StableDiffusionPipeline) -> None:
    pipe.unet.register_to_config(attention_head_dim=4)


def another_scale_of_latents(pipe: StableDiffusionPipeline) -> None:
    pipe.vae.register_to_config(scaling_factor=0.13025)


def another_decoder(pipe: StableDiffusionPipeline) -> None:
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.add_(0.01)


def another_order_of_words(pipe: StableDiffusionPipeline) -> None:
    words = pipe.tokenizer.get_vocab()
    first, second = list(words)[:2]
    words[first], words[second] = words[second], words[first]
    pipe.tokenizer = type(pipe.tokenizer)(vocab=words, merges=[], model_max_length=pipe.tokenizer.model_max_length)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (another_schedule, "its noise schedule ends at alpha_bar = "),
        (more_timesteps, "after 1200 timesteps, that of the base at "),
        (another_activation, "text_encoder.hidden_act = 'gelu', in the base 'quick_gelu'"),
        (other_heads, "unet.attention_head_dim = (4, 4), in the base (2, 2)"),
        (another_scale_of_latents, "vae.scaling_factor = 0.13025, in the base 0.18215"),
        (another_decoder, "its VAE is not the base's (vae.decoder.conv_out.bias)"),
        (another_order_of_words, "its tokenizer is not the base's"),
    ],
)
def test_a_model_with_another_part_than_its_base_is_refused(
    base: StableDiffusionPipeline, change: Callable[[StableDiffusionPipeline], None], text: str, tmp_path: Path
) -> None:
    model = tiny.make_pipeline()
    change(model)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        read_erased_model(base, str(tmp_path / "model"))
    assert str(tmp_path / "model") in str(caught.value)


def test_a_model_in_half_precision_with_heads_for_each_block_is_its_base(
    base: StableDiffusionPipeline, tmp_path: Path
) -> None:
    model = tiny.make_pipeline()
    model.unet.register_to_config(attention_head_dim=[2, 2])
    model.to(torch.float16).save_pretrained(tmp_path / "model")
    assert read_erased_model(base, str(tmp_path / "model")) == ("pipeline", {})


def vae_in_compvis(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """The tensors of the VAE in the names of Stable Diffusion's first code, where its attentions are convolutions."""
    last, tensors = len(pipe.vae.config.up_block_types) - 1, {}
    for name, value in pipe.vae.state_dict().items():
        name = re.sub(r"up_blocks\.(\d+)\.", lambda found: f"up.{last - int(found[1])}.", name)
        name = re.sub(r"mid_block\.resnets\.(\d+)\.", lambda found: f"mid.block_{int(found[1]) + 1}.", name)
        for ours, theirs in {
            "down_blocks.": "down.", ".resnets.": ".block.", "samplers.0.": "sample.", "conv_norm_out": "norm_out",
            "conv_shortcut": "nin_shortcut", "mid_block.attentions.0.": "mid.attn_1.", "group_norm": "norm",
            "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
        }.items():  # fmt: skip
            name = name.replace(ours, theirs)
        convolution = ".attn_1." in name and value.ndim == 2
        tensors[f"first_stage_model.{name}"] = value[..., None, None].clone() if convolution else value.clone()
    return tensors


def test_the_vae_of_a_single_file_is_compared(base: StableDiffusionPipeline, tmp_path: Path) -> None:
    delta = erasure(base, KEY)
    tensors = {**in_compvis(erased(base, delta)), **vae_in_compvis(base)}
    save_file(tensors, tmp_path / "model.safetensors")
    kind, found = read_erased_model(base, str(tmp_path / "model.safetensors"))
    assert kind == "pipeline" and equal(found, delta)
    for part in ("decoder.mid.attn_1.q.weight", "encoder.down.0.block.0.norm1.bias"):
        name = f"first_stage_model.{part}"
        save_file({**tensors, name: tensors[name] + 0.01}, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match=r"other\.safetensors: its VAE is not the base's \(vae\."):
            read_erased_model(base, str(tmp_path / "other.safetensors"))
