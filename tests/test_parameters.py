"""The selectors against the modules they mean, in a tiny UNet and in the shape of Stable Diffusion 1.4."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from resurgence.config.optimisation import Selection
from resurgence.erasers.gradient.parameters import OUTER, RULES, selected
from tiny import make_pipeline


@pytest.fixture(scope="module", params=[(32, 64), (16, 32, 64)], ids=["two levels", "three levels"])
def pipe(request):
    return make_pipeline(block_out_channels=request.param)


@pytest.fixture(scope="module")
def sd14():
    """The UNet of Stable Diffusion 1.4 without its values."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # the defaults are those of SD 1.x
    return SimpleNamespace(unet=unet, text_encoder=torch.nn.Linear(2, 2))


def of_attentions(unet, cross: bool) -> set[str]:
    """The parameters of the attentions over text, or of the image over itself, found by module and not by name."""
    width = unet.config.cross_attention_dim
    found = set()
    for name, module in unet.named_modules():
        if isinstance(module, Attention) and module.is_cross_attention == cross:
            assert (module.to_k.in_features == width) or not cross
            found |= {f"unet.{name}.{own}" for own, _ in module.named_parameters()}
    return found


def names(pipe, selection: str) -> set[str]:
    return set(selected(pipe, selection))


def test_attentions_are_those_of_the_modules(pipe):
    cross, own = of_attentions(pipe.unet, True), of_attentions(pipe.unet, False)
    assert cross and names(pipe, "xattn") == cross
    assert own and names(pipe, "selfattn") == own
    assert not cross & own and names(pipe, "attention") == cross | own


def test_selections_partition_the_unet(pipe):
    everything = {f"unet.{n}" for n, _ in pipe.unet.named_parameters()}
    assert names(pipe, "full") == everything
    assert names(pipe, "xattn") | names(pipe, "noxattn") == everything
    assert not names(pipe, "xattn") & names(pipe, "noxattn")
    rest = everything - names(pipe, "attention")
    parts = [names(pipe, "xattn"), names(pipe, "selfattn"), rest]
    assert sum(map(len, parts)) == len(everything) and set().union(*parts) == everything
    assert names(pipe, "selfattn") < names(pipe, "noxattn") and not any(".attn" in n for n in rest)


def test_key_and_value_projections_are_two_matrices_of_each_cross_attention(pipe):
    blocks = {n.split(".attn2.")[0] for n in names(pipe, "xattn")}
    expected = {f"{block}.attn2.{p}.weight" for block in blocks for p in ("to_k", "to_v")}
    assert names(pipe, "xattn-kv") == expected and len(expected) == 2 * len(blocks)


def test_official_noxattn_leaves_out_the_ends_of_the_unet(pipe):
    left_out = names(pipe, "noxattn") - names(pipe, "noxattn-official")
    heads = {n.removeprefix("unet.").split(".")[0] for n in left_out}
    assert heads == {"time_embedding", "conv_norm_out", "conv_out"} == {prefix.rstrip(".") for prefix in OUTER}
    assert names(pipe, "noxattn-official") < names(pipe, "noxattn")
    assert any("time_emb_proj" in n for n in names(pipe, "noxattn-official"))  # inside the blocks: trained


def test_selection_of_2025_is_the_linear_and_convolution_layers_outside_cross_attention(pipe):
    layers = {
        f"unet.{name}.{own}"
        for name, module in pipe.unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        for own, _ in module.named_parameters()
    }
    assert names(pipe, "noxattn-2025") == layers - of_attentions(pipe.unet, True)
    norms = names(pipe, "noxattn") - names(pipe, "noxattn-2025")
    kinds = {type(pipe.unet.get_submodule(n.removeprefix("unet.").rpartition(".")[0])) for n in norms}
    assert kinds == {torch.nn.GroupNorm, torch.nn.LayerNorm}


def test_counts_in_stable_diffusion(sd14):
    """16 blocks with an attention of each kind: q, k, v, out and its bias."""
    counts = {selection: len(names(sd14, selection)) for selection in RULES}
    assert counts["xattn"] == counts["selfattn"] == 16 * 5
    assert counts["attention"] == 160 and counts["xattn-kv"] == 32
    assert counts["full"] == 686 and counts["noxattn"] == 606
    assert counts["noxattn-official"] == 606 - 4 - 2 - 2
    norms = 22 * 4 + 16 * (2 + 3 * 2) + 2  # two of each of 22 ResNet blocks, four of each transformer, the last
    assert counts["noxattn-2025"] == 606 - norms
    assert sum(p.numel() for p in selected(sd14, "full").values()) == 859_520_964


def test_values_are_the_parameters_themselves(pipe):
    for selection in RULES:
        for name, p in selected(pipe, selection).items():
            assert p is pipe.unet.get_parameter(name.removeprefix("unet."))


def test_text_encoder(pipe):
    found = selected(pipe, "text-encoder")
    assert {n.removeprefix("text_encoder.") for n in found} == {n for n, _ in pipe.text_encoder.named_parameters()}
    assert all(n.startswith("text_encoder.") for n in found)


def test_the_settings_know_the_same_selections():
    assert {*RULES, "text-encoder"} == set(get_args(Selection))


def test_unknown_and_empty_selections_say_what_to_do(pipe):
    with pytest.raises(ValueError, match=r"parameters = 'attn2': known are xattn, .*text-encoder"):
        selected(pipe, "attn2")
    plain = SimpleNamespace(unet=torch.nn.Sequential(torch.nn.Linear(2, 2)), text_encoder=None)
    with pytest.raises(ValueError, match=r"'selfattn' selects nothing in this base; choose another"):
        selected(plain, "selfattn")
