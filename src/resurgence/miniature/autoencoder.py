"""Train the miniature's AutoencoderKL: pixels to latents of an eighth of the side, 12 or more channels.

Loss: L1 + 0.5 L1 of the image gradients (sharp edges without a perceptual network) + 1e-5 KL.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from resurgence.miniature.compositions import compose, scene
from resurgence.miniature.drawings import load_drawings, load_world
from resurgence.miniature.styles import draw_and_apply_styles
from resurgence.miniature.training import step_generator, train_part

KL_WEIGHT = 1e-5
EDGE_WEIGHT = 0.5


def build_autoencoder(latent_channels: int = 12, size: int = 64) -> AutoencoderKL:
    """An 8x AutoencoderKL of 0.96 M parameters for pictures of `size` pixels."""
    return AutoencoderKL(
        block_out_channels=[16, 32, 64, 64],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=size,
        mid_block_add_attention=False,
    )


def edge_l1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of horizontal and vertical image gradients; (B, 3, H, W)."""
    return (a.diff(dim=-1) - b.diff(dim=-1)).abs().mean() + (a.diff(dim=-2) - b.diff(dim=-2)).abs().mean()


def autoencoder_loss(model: AutoencoderKL, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Reconstruction and KL loss of a batch of images in [-1, 1]."""
    posterior = model.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
    output = model.decode(posterior.mean + posterior.std * noise).sample.float()
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
    return (output - images).abs().mean() + EDGE_WEIGHT * edge_l1(output, images) + KL_WEIGHT * kl


def mixed_batch(
    drawings: torch.Tensor, world: dict, styled: float, batch: int, generator: torch.Generator
) -> torch.Tensor:
    """Composed drawings, every sixteenth image a scene, a share `styled` in a style: (batch, 3, 64, 64) in [-1, 1]."""
    picks = torch.randint(len(drawings), (batch,), generator=generator)
    images = compose(drawings[picks], generator)
    for i in range(batch // 16):
        s = world["scenes"][int(torch.randint(len(world["scenes"]), (1,), generator=generator))]
        images[i] = scene(s["low"], s["high"], 1, images.shape[-1], generator)[0]
    return draw_and_apply_styles(images, world, styled, generator)[0]


def main(
    concepts: Path, drawings: Path, out: Path, scratch: Path, cfg: dict, styled: float, device: str = "cpu"
) -> None:
    """Train the autoencoder, set its scaling factor to 1 / (standard deviation of the latents), and save it.

    Args:
        scratch: folder from which an interrupted training resumes.
        cfg: seed, steps, batch, lr, precision, and latent_channels unless 12.
        styled: share of the pictures that are in a style of the world.
    """
    torch.set_flush_denormal(True)
    world, (_, rgba) = load_world(concepts), load_drawings(drawings, "training")
    torch.manual_seed(cfg["seed"])
    model = build_autoencoder(cfg.get("latent_channels", 12), rgba.shape[-1]).to(device)

    def loss_of(module: AutoencoderKL, step: int) -> torch.Tensor:
        generator = step_generator(cfg["seed"], step)
        images = mixed_batch(rgba, world, styled, cfg["batch"], generator).to(device)
        return autoencoder_loss(module, images, generator)

    curve = train_part(model, loss_of, scratch, cfg, (world, styled), [rgba], ema_decay=0.995)
    with torch.no_grad():
        images = mixed_batch(rgba, world, styled, 256, torch.Generator().manual_seed(cfg["seed"])).to(device)
        model.register_to_config(scaling_factor=float(1 / model.encode(images).latent_dist.mean.std()))
    model.save_pretrained(out)
    (out / "curve.json").write_text(json.dumps(curve))
