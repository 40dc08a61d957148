"""Train the miniature's text encoder and UNet together, and write a Stable Diffusion folder.

v-prediction with a cosine schedule and min-SNR weighting (Hang et al. 2023, gamma 5), EMA, latents computed once.
The folder is loaded by `StableDiffusionPipeline.from_pretrained`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from resurgence.diffusion.latents import posterior
from resurgence.diffusion.text import embed
from resurgence.diffusion.unet import predict
from resurgence.files import atomic_file, atomic_folder
from resurgence.miniature.captions import (
    MAX_LENGTH,
    CaptionConfig,
    as_built,
    build_tokenizer,
    caption_or_none,
    captioned_manner,
    corpus,
    draw,
    read_templates,
)
from resurgence.miniature.compositions import compose, scene
from resurgence.miniature.drawings import load_drawings, load_world
from resurgence.miniature.styles import draw_and_apply_styles
from resurgence.miniature.training import step_generator, train_part
from resurgence.progress import Progress
from resurgence.training.checkpoint import fingerprint

MIN_SNR_GAMMA = 5.0
WIDTH = 128  # of the text embeddings


class TextToImage(nn.Module):
    """The two networks that are trained together."""

    def __init__(self, vocab_size: int, latent_channels: int, eos: int, bos: int, side: int = 8) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocab_size, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3,
                num_attention_heads=4, max_position_embeddings=MAX_LENGTH, projection_dim=WIDTH,
                bos_token_id=bos, eos_token_id=eos, pad_token_id=eos,
            )
        )  # fmt: skip
        self.unet = UNet2DConditionModel(
            sample_size=side, in_channels=latent_channels, out_channels=latent_channels, layers_per_block=1,
            block_out_channels=[64, 128, 128], cross_attention_dim=WIDTH, attention_head_dim=4,
            down_block_types=["CrossAttnDownBlock2D"] * 3, up_block_types=["CrossAttnUpBlock2D"] * 3,
        )  # fmt: skip

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Predict v; noisy (B, C, h, w), t (B,), ids (B, S)."""
        return predict(self.unet, noisy, t, embed(self.text_encoder, ids))


def build_scheduler() -> DDIMScheduler:
    """Cosine schedule and v-prediction; `trailing` spacing starts sampling at the last, pure-noise timestep."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="trailing",
    )  # fmt: skip


def min_snr_weight(alpha_bar: torch.Tensor, gamma: float = MIN_SNR_GAMMA) -> torch.Tensor:
    """Weight of the v loss: min(SNR, gamma) / (SNR + 1), Hang et al. 2023 Eq. 5 for v-prediction."""
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / (snr + 1)


@torch.no_grad()
def cache_latents(
    vae: AutoencoderKL, rgba: torch.Tensor, world: dict, copies: int, seed: int, jitter: dict, styled: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Encode `copies` compositions of each drawing and of each scene, a share `styled` of them in a style.

    Args:
        jitter: degrees, scale and shift of `compositions.compose`.

    Returns:
        Latents float16 (M, C, h, w), scaled; the row of each, the index of a drawing or N + that of a scene; and the
        index of its style among the world's, -1 for none.
    """
    encoded = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]()
    generator, progress = torch.Generator().manual_seed(seed), Progress("latents", copies, "compositions")

    def encode(images: torch.Tensor, rows: torch.Tensor) -> None:
        images, styles = draw_and_apply_styles(images, world, styled, generator)
        encoded.append((posterior(vae, images, len(images))[0].half().cpu(), rows, styles))

    for _ in range(copies):
        for rows in torch.arange(len(rgba)).split(128):
            encode(compose(rgba[rows], generator, **jitter), rows)
        progress.add()
    for index, s in enumerate(world["scenes"]):
        images = scene(s["low"], s["high"], 4 * copies, rgba.shape[-1], generator)
        encode(images, torch.full((4 * copies,), len(rgba) + index))
    latents, rows, styles = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    return latents, rows, styles


def concept_weights(table, world: dict, emphasised: set[str], factor: float) -> tuple[torch.Tensor, list[str]]:
    """Sampling weights and concepts of the rows (drawings, then scenes).

    The rows of a concept have the total weight 1, or `factor` if it is emphasised.
    """
    names = list(table["concept"]) + [s["name"] for s in world["scenes"]]
    count = {name: names.count(name) for name in set(names)}
    weight = [(factor if name in emphasised else 1.0) / count[name] for name in names]
    return torch.tensor(weight), names


def diffusion_loss(
    model: TextToImage, latents: torch.Tensor, ids: torch.Tensor, alphas_bar: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """min-SNR weighted v-prediction loss; latents (B, C, h, w), ids (B, S)."""
    device = alphas_bar.device
    t = torch.randint(len(alphas_bar), (len(latents),), generator=generator).to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    latents, alpha_bar = latents.to(device), alphas_bar[t].view(-1, 1, 1, 1)
    noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
    v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents
    error = (model(noisy, t, ids) - v) ** 2
    return (min_snr_weight(alpha_bar) * error).mean()


def draw_batch(
    weight: torch.Tensor, members: list[torch.Tensor], entries: list[dict], manner: Callable[[int, int], dict | None],
    templates: list[str], shares: CaptionConfig, batch: int, generator: torch.Generator,
) -> tuple[torch.Tensor, list[str]]:  # fmt: skip
    """Draw the latents (indices) and captions of one batch.

    Args:
        weight, members, entries: of each row, its probability, latents, and concept or scene.
        manner: (row, index of a latent) -> style or artist that a caption may name.
    """
    rows = torch.multinomial(weight, batch, replacement=True, generator=generator).tolist()
    indices = torch.stack([members[row][draw(len(members[row]), generator)] for row in rows])
    texts = [
        caption_or_none(entries[row], manner(row, index), templates, shares, generator)
        for row, index in zip(rows, indices.tolist(), strict=True)
    ]
    return indices, texts


def batch_loss(
    batch: Callable, latents: torch.Tensor, tokenizer: CLIPTokenizer, alphas_bar: torch.Tensor, module: TextToImage,
    generator: torch.Generator,
) -> torch.Tensor:  # fmt: skip
    """Return the loss of the batch, latents (indices) and captions, that `batch(generator)` draws."""
    indices, texts = batch(generator)
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return diffusion_loss(module, latents[indices].float(), ids, alphas_bar, generator)


def main(
    concepts: Path, templates: Path, drawings: Path, vae_folder: Path, out: Path, scratch: Path, cfg: dict,
    emphasised: set[str], shares: CaptionConfig, vocabulary: int, device: str = "cpu",
) -> None:  # fmt: skip
    """Train and write the Stable Diffusion folder.

    Args:
        scratch: folder from which an interrupted training resumes; it also holds the latents.
        cfg: seed, batch, steps, lr, warmup, precision, ema_decay and phases, each with until (its last step), copies
            (compositions of a drawing), jitter and emphasis; the last phase lasts to the end.
        emphasised: concepts that are drawn more often. shares: of captions and styles. vocabulary: tokens.
    """
    torch.set_flush_denormal(True)
    world, (table, rgba) = load_world(concepts), load_drawings(drawings, "training")
    sentences = read_templates(templates)
    tokenizer = build_tokenizer(corpus(world, sentences), vocabulary)
    vae = AutoencoderKL.from_pretrained(vae_folder).to(device).eval()
    scheduler = build_scheduler()
    alphas_bar = scheduler.alphas_cumprod.to(device)
    torch.manual_seed(cfg["seed"])
    tokens, side = (tokenizer.eos_token_id, tokenizer.bos_token_id), rgba.shape[-1] // 8
    model = TextToImage(len(tokenizer), vae.config.latent_channels, *tokens, side).to(device)
    entries = {c["name"]: c for c in [*world["concepts"], *world["scenes"]]}

    @lru_cache(maxsize=1)  # the latents of one phase in memory
    def phase_loss(number: int) -> Callable[[TextToImage, torch.Generator], torch.Tensor]:
        phase = cfg["phases"][number]
        latents, rows, styles = cached_latents(scratch, vae, rgba, world, phase, cfg["seed"], shares.styled)
        weight, names = concept_weights(table, world, emphasised, phase["emphasis"])
        members = [torch.nonzero(rows == row).flatten() for row in range(len(names))]
        drawn = [entries[name] for name in names]
        manner = captioned_manner(world, table["artist"], styles)
        batch = partial(draw_batch, weight, members, drawn, manner, sentences, shares, cfg["batch"])
        return partial(batch_loss, batch, latents, tokenizer, alphas_bar)

    def loss_of(module: TextToImage, step: int) -> torch.Tensor:
        number = sum(step >= phase["until"] for phase in cfg["phases"][:-1])
        return phase_loss(number)(module, step_generator(cfg["seed"], step))

    vocab = sorted(tokenizer.get_vocab().items())
    facts = (world, sentences, table.to_numpy().tolist(), sorted(emphasised), vocab, asdict(shares))
    options = {"warmup": cfg["warmup"], "ema_decay": cfg["ema_decay"]}
    curve = train_part(model, loss_of, scratch, cfg, facts, [rgba, *vae.state_dict().values()], **options)
    write_folder(out, model, vae, tokenizer, scheduler)
    (out / "curve.json").write_text(json.dumps(curve))


def cached_latents(
    scratch: Path, vae: AutoencoderKL, rgba: torch.Tensor, world: dict, phase: dict, seed: int, styled: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the latents of a phase, computed once; the file name has the digest of everything they depend on."""
    facts = (seed, phase["copies"], phase["jitter"], world["scenes"], world.get("styles", []), styled)
    path = scratch / f"latents-{fingerprint(facts, [rgba, *vae.state_dict().values()])[:16]}.pt"
    if not path.exists():
        with torch.autocast(vae.device.type, enabled=False):  # also when a bf16 training calls it
            latents = cache_latents(vae, rgba, world, phase["copies"], seed, phase["jitter"], styled)
        with atomic_file(path) as temporary:
            torch.save(latents, temporary)
    return torch.load(path, weights_only=True)


def write_folder(
    out: Path, model: TextToImage, vae: AutoencoderKL, tokenizer: CLIPTokenizer, scheduler: DDIMScheduler
) -> None:
    """Write the Stable Diffusion folder, whole or not at all; its bytes depend on the weights alone."""
    vae.register_to_config(_name_or_path="autoencoder")
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=model.text_encoder, tokenizer=as_built(tokenizer), unet=model.unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    with atomic_folder(out) as temporary:
        pipe.save_pretrained(temporary)
