"""The published configurations without their weights: sizes, token selection of real prompts, sizes of deltas."""

from __future__ import annotations

import open_clip
import pytest
import torch

from published import BASES, clip_tokenizer, make_published
from resurgence.diffusion.attention import projection_weights
from resurgence.diffusion.text import concept_positions
from resurgence.training.lora import prepare

PROMPTS = ["a photo of a cat", "An image capturing Anjelica Huston at a public event", "Amber Heard", "beyoncé!"]


@pytest.mark.parametrize("name", BASES)
def test_models_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        pipe = make_published(name)
    assert {part: getattr(pipe, part).num_parameters() for part in BASES[name]["sizes"]} == BASES[name]["sizes"]
    weights = projection_weights(pipe.unet)
    values = sum(weight.numel() for weight in weights.values())
    # to_k and to_v of 16 cross-attentions: 5 of 320 and 640 channels, 6 of 1,280
    assert (
        len(weights) == 32 and values == 2 * (5 * 320 + 5 * 640 + 6 * 1280) * BASES[name]["unet"]["cross_attention_dim"]
    )
    assert 4 * values / 2**20 == pytest.approx(
        {768: 73.1, 1024: 97.5}[BASES[name]["unet"]["cross_attention_dim"]], abs=0.1
    )


@pytest.mark.parametrize(("name", "values"), [("sd14", 797_184), ("sd21", 829_952)])
def test_lora_of_rank_4_has_the_published_size(name: str, values: int) -> None:
    """797,184 values for SD 1.4 (3.2 MB), as diffusers' training script tells."""
    with torch.device("meta"):
        unet = make_published(name).unet
        trainable = prepare(unet, 4, 0)
    assert sum(p.numel() for p in trainable.values()) == values


def test_prompts_have_clips_own_tokens() -> None:
    tokenizer, theirs = clip_tokenizer("<|endoftext|>"), open_clip.get_tokenizer("ViT-B-32")
    assert len(tokenizer) == 49408 and tokenizer("a photo of a cat").input_ids == [
        49406,
        320,
        1125,
        539,
        320,
        2368,
        49407,
    ]
    ours = tokenizer(PROMPTS, padding="max_length").input_ids
    for row, expected in zip(ours, theirs(PROMPTS).tolist(), strict=True):
        end = expected.index(49407) + 1  # open_clip pads with 0
        assert row[:end] == expected[:end] and set(row[end:]) <= {49407}
    padded = clip_tokenizer("!")("cat", padding="max_length").input_ids
    assert padded == [49406, 2368, 49407] + [0] * 74


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_names_of_several_tokens_are_found_with_either_padding(pad: str) -> None:
    tokenizer = clip_tokenizer(pad)
    caption = "An image capturing Anjelica Huston at a public event"
    found = concept_positions(tokenizer, caption, "Anjelica Huston")
    ids = tokenizer(caption).input_ids
    assert tokenizer.decode([ids[i] for i in found]) == "anjelica huston" and found == list(range(4, 4 + len(found)))
