"""Erased models of several parts: each part is read, or the model is refused; none is left out unsaid."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import constants
from safetensors.torch import save_file

import tiny
from resurgence.diffusion.deltas import parameters, save_delta
from resurgence.diffusion.model_files import read_erased_model
from resurgence.diffusion.model_headers import check_model
from test_bad_lora import kohya_lora
from test_checkpoint import KEY, TEXT, equal, erased, erasure, in_compvis, write_unet

OPENCLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.": "ln_final.", "encoder.layers.": "transformer.resblocks.", ".layer_norm": ".ln_",
    ".mlp.fc1.": ".mlp.c_fc.", ".mlp.fc2.": ".mlp.c_proj.", ".self_attn.": ".attn.",
}  # fmt: skip


@pytest.fixture(scope="module")
def base() -> StableDiffusionPipeline:
    return tiny.make_pipeline()


def in_openclip(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """The tensors of the text encoder as Stable Diffusion 2's single files have them."""
    tensors: dict[str, torch.Tensor] = {}
    for name, value in pipe.text_encoder.state_dict().items():
        for ours, theirs in OPENCLIP.items():
            name = name.replace(ours, theirs)
        tensors[f"cond_stage_model.model.{name}"] = value
    for name in [name for name in tensors if ".q_proj." in name]:
        parts = [tensors.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        tensors[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return tensors


def test_text_encoder_of_stable_diffusion_2_in_a_single_file(base: StableDiffusionPipeline, tmp_path: Path) -> None:
    delta = erasure(base, KEY, TEXT, TEXT.replace("q_proj.weight", "v_proj.bias"), TEXT.replace("q_", "out_"))
    model = erased(base, delta)
    unet = {name: value for name, value in in_compvis(model).items() if name.startswith("model.")}
    save_file({**unet, **in_openclip(model)}, tmp_path / "sd2.safetensors")
    kind, found = read_erased_model(base, str(tmp_path / "sd2.safetensors"))
    assert kind == "pipeline" and equal(found, delta)


def test_both_parts_of_a_pickle_with_other_entries(base: StableDiffusionPipeline, tmp_path: Path) -> None:
    delta = erasure(base, KEY, TEXT)
    parts = {part: {n.removeprefix(f"{part}."): v for n, v in delta.items() if n.startswith(f"{part}.")}
             for part in ("unet", "text_encoder")}  # fmt: skip
    torch.save({**parts, "epoch": 3}, tmp_path / "parts.pt")
    assert equal(read_erased_model(base, str(tmp_path / "parts.pt"))[1], delta)


@pytest.mark.parametrize("part", ["", "text_encoder."])
@pytest.mark.parametrize("place", ["te.pt", "te/model.safetensors"])
def test_a_text_encoder_alone_in_the_names_of_earlier_transformers(
    base: StableDiffusionPipeline, part: str, place: str, tmp_path: Path
) -> None:
    """As AdvUnlearn publishes: names with text_model, and a buffer of positions."""
    delta = erasure(base, TEXT)
    tensors = {n: v for n, v in parameters(erased(base, delta)).items() if n.startswith("text_encoder.")}
    named = {n.replace("text_encoder.", f"{part}text_model."): v.detach().clone() for n, v in tensors.items()}
    named[f"{part}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    (torch.save if file.suffix == ".pt" else save_file)(named, file)
    model = file if file.suffix == ".pt" else file.parent
    assert equal(read_erased_model(base, str(model))[1], delta)
    base.save_pretrained(tmp_path / "base")
    check_model(tmp_path / "base", model, "checkpoint")


def test_a_lora_beside_a_pipeline_is_not_the_model(base: StableDiffusionPipeline, tmp_path: Path) -> None:
    delta = erasure(base, KEY, TEXT)
    erased(base, delta).save_pretrained(tmp_path / "model")
    save_file(kohya_lora(base), tmp_path / "model/pytorch_lora_weights.safetensors")
    kind, found = read_erased_model(base, str(tmp_path / "model"))
    assert kind == "pipeline" and equal(found, delta)


def test_a_hub_id_of_tensors_alone(
    base: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot, delta = tmp_path / "models--they--esd/snapshots" / (40 * "a"), erasure(base, KEY)
    snapshot.mkdir(parents=True)
    write_unet(base, delta, snapshot / "esd")
    assert equal(read_erased_model(base, "they/esd", 40 * "a")[1], delta)


def refused(base: StableDiffusionPipeline, place: Path, text: str, by_header: bool = True) -> None:
    """Check that a model is refused, by reading it and, where names say it, by the headers of its files."""
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        read_erased_model(base, str(place))
    assert place.name in str(caught.value)
    if by_header:
        base.save_pretrained(place.parent / "base")
        with pytest.raises(ValueError, match=re.escape(text)):
            check_model(place.parent / "base", place, "checkpoint")


def test_a_model_of_fewer_layers_is_refused(base: StableDiffusionPipeline, tmp_path: Path) -> None:
    """As models that skip the last layer of CLIP: in its place the base's would be audited."""
    short = erased(base, {})
    short.text_encoder = type(short.text_encoder)(
        type(short.text_encoder.config)(**{**short.text_encoder.config.to_dict(), "num_hidden_layers": 1})
    )
    short.save_pretrained(tmp_path / "short")
    refused(base, tmp_path / "short", "lacks text_encoder.encoder.layers.1.", by_header=False)


def test_a_model_that_predicts_something_else_is_refused(base: StableDiffusionPipeline, tmp_path: Path) -> None:
    tiny.make_pipeline(prediction_type="v_prediction").save_pretrained(tmp_path / "velocity")
    text = "its scheduler has prediction_type = 'v_prediction', that of the base 'epsilon'; give the base"
    refused(base, tmp_path / "velocity", text, by_header=False)


@pytest.mark.parametrize("part", ["model.diffusion_model.middle_block", "cond_stage_model.transformer.text_model.fi"])
def test_part_of_a_single_file_is_refused(base: StableDiffusionPipeline, part: str, tmp_path: Path) -> None:
    tensors = {name: value for name, value in in_compvis(base).items() if not name.startswith(part)}
    save_file(tensors, tmp_path / "part.safetensors")
    refused(base, tmp_path / "part.safetensors", "which the base has (")


def test_changed_tensors_in_the_names_of_compvis_are_refused(base: StableDiffusionPipeline, tmp_path: Path) -> None:
    tensors = {name: value for name, value in in_compvis(base).items() if ".attn2." in name}
    save_file(tensors, tmp_path / "changed.safetensors")
    refused(base, tmp_path / "changed.safetensors", "lacks unet.conv_in.bias, which the base has (")


def test_folders_of_which_a_part_would_be_left_out_are_refused(base: StableDiffusionPipeline, tmp_path: Path) -> None:
    model = erased(base, erasure(base, KEY, TEXT))
    for part in ("unet", "text_encoder"):
        getattr(model, part).save_pretrained(tmp_path / "parts" / part)
    refused(base, tmp_path / "parts", "parts holds unet and text_encoder, and no model_index.json; complete it")
    shutil.rmtree(tmp_path / "parts/text_encoder")
    assert set(read_erased_model(base, str(tmp_path / "parts"))[1]) == {KEY}
    (tmp_path / "step").mkdir()
    save_delta(erasure(base, KEY), tmp_path / "step/delta.safetensors")
    save_file(kohya_lora(base), tmp_path / "step/pytorch_lora_weights.safetensors")
    refused(base, tmp_path / "step", "step holds delta.safetensors and pytorch_lora_weights.safetensors; name one")
