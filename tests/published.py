"""Stable Diffusion 1.4 and 2.1 of full size with random weights, from their published configurations, and CLIP's own
tokenizer from the vocabulary that open_clip ships."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from open_clip.tokenizer import SimpleTokenizer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

# unet/config.json, text_encoder/config.json, scheduler/scheduler_config.json and tokenizer/tokenizer_config.json of
# CompVis/stable-diffusion-v1-4, stabilityai/stable-diffusion-2-1-base and stabilityai/stable-diffusion-2-1
BASES = {
    "sd14": {
        "unet": {"cross_attention_dim": 768, "attention_head_dim": 8},
        "text": {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "hidden_act": "quick_gelu", "projection_dim": 768,
        },
        "pad": "<|endoftext|>",
        "sizes": {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863},
    },
    "sd21": {
        "unet": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        "text": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
            "hidden_act": "gelu", "projection_dim": 512,
        },
        "pad": "!",
        "sizes": {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863},
    },
}  # fmt: skip
BASES["sd21-768"] = {**BASES["sd21"], "sample_size": 96, "prediction_type": "v_prediction"}


def clip_tokenizer(pad: str) -> CLIPTokenizer:
    """CLIP's tokenizer with its 49,408 tokens; SD 1.x pads with the end token, SD 2.x with `!`, id 0."""
    published = SimpleTokenizer()
    named = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {named.get(token, token): number for token, number in published.encoder.items()}
    merges = [pair for pair, _ in sorted(published.bpe_ranks.items(), key=lambda item: item[1])]
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)


def counted(model: nn.Module) -> nn.Module:
    """The model on the meta device with weights that are allocated now, so that `live_bytes.Live` counts them."""
    model.to("meta")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = torch.empty_like(tensor.data)
    return model


def make_published(name: str) -> StableDiffusionPipeline:
    """The pipeline; under `torch.device("meta")` without memory for its weights."""
    base = BASES[name]
    unet = UNet2DConditionModel(
        sample_size=base.get("sample_size", 64), block_out_channels=(320, 640, 1280, 1280), layers_per_block=2,
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, **base["unet"],
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407, **base["text"]
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, norm_num_groups=32,
        sample_size=8 * base.get("sample_size", 64), down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, set_alpha_to_one=False,
        steps_offset=1, prediction_type=base.get("prediction_type", "epsilon"),
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=text.eval(), tokenizer=clip_tokenizer(base["pad"]), unet=unet.eval(),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe
