"""Tiny random Stable Diffusion pipelines with real classes, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SPECIAL = ("<|startoftext|>", "<|endoftext|>")
SENTENCES = (
    "a photo of the ship",
    "a photo of the person",
    "a portrait of the doctor",
    "a sketch of the queen in an official photo",
    "an oil painting of the cat",
    "the dog and the bird on the ground",
    "a picture of the sky above a street",
)
# of a byte-level BPE trained on SENTENCES once; kept, since the trainer breaks ties (`ue`, `en` in `queen`) by chance
MERGES = """
h+e</w> t+he</w> o+f</w> h+o p+ho t+o</w> pho+to</w> a+i a+n</w> c+t d+o e+e n+d</w> o+n</w> s+k t+r a+b
a+t</w> a+l</w> a+nd</w> b+i c+i c+h</w> c+at</w> e+r e+t f+f g+r h+i i+n i+n</w> i+l</w> i+ct i+ci n+t o+r
o+u o+v o+r</w> o+ff o+il</w> p+ai p+er p+ict p+or q+u r+d</w> r+e</w> s+on</w> s+tr s+hi u+re</w> ai+t</w>
ct+or</w> do+g</w> do+ctor</w> ee+n</w> ee+t</w> sk+y</w> sk+et tr+ait</w>
"""


def make_tokenizer(pad: str = "eos", max_length: int = 77) -> CLIPTokenizer:
    """A CLIPTokenizer with a byte-level BPE vocabulary of about 600 tokens; '!' has id 0 as in CLIP.

    pad: "eos" as in SD 1.x, "zero" as in SD 2.x (pads with '!', id 0).
    """
    alphabet, merges = sorted(ByteLevel.alphabet()), [tuple(merge.split("+")) for merge in MERGES.split()]
    tokens = [*alphabet, *(symbol + "</w>" for symbol in alphabet), *map("".join, merges), *SPECIAL]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    padding = {"eos": SPECIAL[1], "zero": "!"}[pad]
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=padding, model_max_length=max_length)


def make_pipeline(
    cross_attention_dim: int = 32,
    heads: int = 2,
    block_out_channels: tuple[int, ...] = (32, 64),
    prediction_type: str = "epsilon",
    pad: str = "eos",
    max_length: int = 77,
    seed: int = 0,
    layers_per_block: int = 1,
    sample_size: int = 8,
    vae_channels: tuple[int, ...] = (8, 16),
    latent_channels: int = 4,
) -> StableDiffusionPipeline:
    """A random pipeline built like Stable Diffusion: PNDM configuration of SD 1.4, attention in all but the last level.

    `heads` is the number of heads of the UNet's attentions; images have sample_size * 2 ** (len(vae_channels) - 1)
    pixels, 16 x 16 by default.
    """
    tokenizer = make_tokenizer(pad, max_length)
    levels = len(block_out_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=cross_attention_dim, intermediate_size=2 * cross_attention_dim,
                num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=max_length,
                projection_dim=cross_attention_dim, bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=sample_size, in_channels=latent_channels, out_channels=latent_channels,
            layers_per_block=layers_per_block, block_out_channels=block_out_channels, norm_num_groups=8,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=heads,  # diffusers' name for the number of heads
            down_block_types=["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
            up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1),
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=vae_channels, down_block_types=["DownEncoderBlock2D"] * len(vae_channels),
            up_block_types=["UpDecoderBlock2D"] * len(vae_channels), layers_per_block=1, norm_num_groups=4,
            latent_channels=latent_channels, sample_size=sample_size * 2 ** (len(vae_channels) - 1),
        )  # fmt: skip
        with torch.no_grad():  # spread the random embeddings: prompts must matter
            text_encoder.get_input_embeddings().weight.normal_()
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction_type,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=text_encoder.eval(), tokenizer=tokenizer, unet=unet.eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def predict(pipe: StableDiffusionPipeline, prompt: str = "a photo of the ship") -> torch.Tensor:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ids = pipe.tokenizer([prompt], padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return pipe.unet(x, 501, pipe.text_encoder(ids).last_hidden_state).sample


def save_lora(pipe: StableDiffusionPipeline, out: Path, metadata: bool, **config) -> None:
    """Save a random LoRA of the UNet and of the text encoder the way diffusers' own scripts do."""
    layers, meta = {}, {}
    for part, targets in (("unet", ["to_k", "to_v", "to_out.0", "conv1"]), ("text_encoder", ["q_proj", "out_proj"])):
        module = getattr(pipe, part)
        module.add_adapter(LoraConfig(target_modules=targets, **config))
        for name, p in sorted(module.named_parameters()):
            if "lora_" in name:
                p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(module)
        values = module.peft_config["default"].to_dict()
        meta[f"{part}_lora_adapter_metadata"] = json.loads(json.dumps(values, default=list))
    StableDiffusionPipeline.save_lora_weights(out, **layers, **(meta if metadata else {}))
