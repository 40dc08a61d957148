"""Count the arithmetic of Stable Diffusion 1.4 and 2.1 from their published configurations, without weights:

    python benchmarks/count_work.py

prints, in TFLOP, the lines `work` of workflow/rates.yaml. torch's FlopCounterMode counts matrix products, convolutions
and attention on the meta device, which computes nothing: seconds on a laptop.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

TEXT = {  # hidden size, layers, heads, intermediate size
    "sd14": (768, 12, 12, 3072),
    "sd21": (1024, 23, 16, 4096),
}
HEADS = {"sd14": 8, "sd21": [5, 10, 20, 20]}
LATENTS = {"sd14": ("sd14", 64), "sd21": ("sd21", 64), "sd21-768": ("sd21", 96)}


def count(function: Callable[[], object]) -> float:
    """TFLOP of a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e12


def make_unet(family: str) -> UNet2DConditionModel:
    """The UNet as published, on the meta device."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, attention_head_dim=HEADS[family],
            block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=TEXT[family][0],
            use_linear_projection=family == "sd21",
        )  # fmt: skip


def unet_work(family: str, side: int) -> dict[str, float]:
    """One image of side x side latents: forward; forward and backward for a LoRA; for all weights."""
    unet = make_unet(family)
    with torch.device("meta"):
        x, t, text = torch.empty(1, 4, side, side), torch.ones(1), torch.empty(1, 77, TEXT[family][0])
        with torch.no_grad():
            work = {"unet": count(lambda: unet(x, t, text))}
        unet.requires_grad_(False)  # a LoRA: gradients of all activations, none of the weights
        noisy = x.requires_grad_(True)
        work["lora"] = count(lambda: unet(noisy, t, text).sample.sum().backward())
        unet.requires_grad_(True)
        work["full"] = count(lambda: unet(x.detach(), t, text).sample.sum().backward())
    return work | {"parameters": sum(p.numel() for p in unet.parameters())}


@torch.no_grad()
def vae_work(side: int) -> dict[str, float]:
    """Decoding to 8 side x 8 side pixels, and encoding them."""
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=2, latent_channels=4,
        )  # fmt: skip
        decode = count(lambda: vae.decode(torch.empty(1, 4, side, side)))
        return {"decode": decode, "encode": count(lambda: vae.encode(torch.empty(1, 3, 8 * side, 8 * side)))}


@torch.no_grad()
def text_work(family: str) -> dict[str, float]:
    """The text encoder on 77 tokens."""
    hidden, layers, heads, middle = TEXT[family]
    with torch.device("meta"):
        model = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=middle,
                projection_dim=hidden,
            )
        )  # fmt: skip
        return {"text": count(lambda: model(torch.zeros(1, 77, dtype=torch.long)))}


def main() -> None:
    """Print the lines of workflow/rates.yaml."""
    for name, (family, side) in LATENTS.items():
        work = unet_work(family, side) | vae_work(side) | text_work(family)
        text = ", ".join(f"{k}: {v:.3g}" if k == "text" else f"{k}: {round(v, 3)}" for k, v in work.items())
        print(f"  {name}: {{{text}}}")


if __name__ == "__main__":
    main()
