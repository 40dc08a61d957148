"""The published procedures, written from their formulas and with the repetitions that make them slow.

One caption passes the encoder at a time, in float32; sums are taken for each projection, caption by caption; each
projection has its own inverse; each concept its own copy of the UNet. The sum over a caption's rows is one product, the
fastest form of it. `Clock.part(factor)` times a part of what the procedure repeats `factor` times.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from bases import Clock
from peft import LoraConfig

from resurgence.diffusion.attention import attention_loss
from resurgence.diffusion.text import concept_positions, fill, token_ids
from resurgence.erasers.closed_form.solver import paired_rows
from resurgence.erasers.lora import Lora, adapted

Weights = Mapping[str, torch.Tensor]
Rows = tuple[torch.Tensor, torch.Tensor]  # e and e' of a caption, (n, d) each


@torch.no_grad()
def encode(pipe: Any, caption: str) -> torch.Tensor:
    """All rows (L, d) of a caption, one pass."""
    limit = pipe.tokenizer.model_max_length
    ids = pipe.tokenizer([caption], padding="max_length", max_length=limit, return_tensors="pt").input_ids
    return pipe.text_encoder(ids)[0][0]


def outer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The sum of a b^T over the rows of a caption."""
    return a.T @ b


def edited(weight: torch.Tensor, rows: Iterable[Rows], kept: torch.Tensor, lamb: float) -> torch.Tensor:
    """(sum W e' e^T + W C + lamb W)(sum e e^T + C + lamb I)^-1 of one projection.

    Args:
        kept: C, (d, d), the sum of e e^T over what is to stay, with its weight.
    """
    left, right = weight @ kept + lamb * weight, kept + lamb * torch.eye(len(kept))
    for e, e_aim in rows:
        left, right = left + outer(e_aim @ weight.T, e), right + outer(e, e)
    return left @ torch.linalg.inv(right)


def mace_pairs(pipe: Any, concept: str, aim: str, templates: Sequence[str]) -> list[Rows]:
    """The rows of the first stage of each caption; both captions are embedded."""
    pairs = []
    for source, target in zip(fill(templates, concept), fill(templates, aim), strict=True):
        e, e_aim = encode(pipe, source), encode(pipe, target)
        positions = concept_positions(pipe.tokenizer, source, concept)
        ids = (token_ids(pipe.tokenizer, text) for text in (source, target))
        rows, aims = paired_rows(*ids, positions, len(e))
        pairs.append((e[rows], e_aim[aims]))
    return pairs


def mace_refined(
    pipe: Any, weights: Weights, concepts: Mapping[str, str], templates: Sequence[str], moment: torch.Tensor,
    lamb: float, clock: Clock, factors: tuple[float, float],
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The first stage of MACE: 2 passes a caption, a solve a projection, in the precision of encoder and weights.

    Args:
        factors: by how much the whole has more concepts, and more projections.
    """
    more, wider = factors
    with clock.part(more):
        pairs = [pair for concept, aim in concepts.items() for pair in mace_pairs(pipe, concept, aim, templates)]
    with clock.part(more * wider):
        return {name: edited(w, pairs, moment, lamb) for name, w in weights.items()}


def mace(
    pipe: Any, weights: Weights, concepts: Mapping[str, str], templates: Sequence[str], moment: torch.Tensor,
    loras: Mapping[str, Lora], lamb: float, clock: Clock, factors: tuple[float, float],
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Both closed forms of MACE: `mace_refined`, then 1 pass a caption and another solve a projection."""
    more, wider = factors
    refined = mace_refined(pipe, weights, concepts, templates, moment, lamb, clock, factors)
    with clock.part(more):
        rows = {concept: [encode(pipe, text) for text in fill(templates, concept)] for concept in concepts}
    fused = {}
    with clock.part(more * wider):
        for name, weight in weights.items():
            left, right = weight @ moment + lamb * refined[name], moment + lamb * torch.eye(len(moment))
            for concept, embedded in rows.items():
                down, up = loras[concept][name]
                for e in embedded:
                    left, right = left + outer(e @ (refined[name] + up @ down).T, e), right + outer(e, e)
            fused[name] = left @ torch.linalg.inv(right)
    return fused


def uce_first(
    pipe: Any, weights: Weights, concepts: Mapping[str, str], retain: Sequence[str], clock: Clock, wider: float
) -> dict[str, torch.Tensor]:
    """UCE's first script: every projection embeds all captions again, each retained one twice; a solve a projection."""
    solved, scale = {}, max(0.1, 1 / (len(retain) + 1))
    for name, weight in weights.items():
        with clock.part(wider):
            kept = torch.zeros(weight.shape[1], weight.shape[1])
            for word in ("", *retain):
                rows = encode(pipe, word)
                encode(pipe, word)
                kept = kept + outer(rows, rows)
            pairs = []
            for concept, aim in concepts.items():
                lasts = [len(token_ids(pipe.tokenizer, word)) - 2 for word in (concept, aim)]
                e, e_aim = encode(pipe, concept)[lasts[0] :], encode(pipe, aim)[lasts[1] :]
                pairs.append((e[: min(len(e), len(e_aim))], e_aim[: min(len(e), len(e_aim))]))
            solved[name] = edited(weight, pairs, scale * kept, 0.5)
    return solved


def uce_2025(
    pipe: Any, weights: Weights, concepts: Mapping[str, str], retain: Sequence[str], clock: Clock
) -> dict[str, torch.Tensor]:
    """UCE's script of 2025: each caption embedded once, the row of its last subject token; a solve a projection."""
    with clock.part():
        words = dict.fromkeys([*concepts, *concepts.values(), *retain])
        rows = {word: encode(pipe, word)[[len(token_ids(pipe.tokenizer, word)) - 2]] for word in words}
        kept = sum(outer(rows[word], rows[word]) for word in retain)
        pairs = [(rows[concept], rows[aim]) for concept, aim in concepts.items()]
        return {name: edited(weight, pairs, kept, 0.5) for name, weight in weights.items()}


def rece(
    pipe: Any, weights: Weights, concepts: Mapping[str, str], retain: Sequence[str], epochs: int, clock: Clock,
    wider: float,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """UCE's first script, then in each epoch a derived e' for each concept and another edit of each projection."""
    old, new = weights, uce_first(pipe, weights, concepts, retain, clock, wider)
    for _ in range(epochs):
        with clock.part(wider):
            regressor = sum(w.T @ w for w in new.values()) + 0.1 * torch.eye(len(next(iter(new.values())).T))
            cross = sum(new[n].T @ w for n, w in old.items())
        pairs = []
        for concept, aim in concepts.items():
            with clock.part():
                e, e_aim = encode(pipe, concept), encode(pipe, aim)
                pairs.append((e @ (torch.linalg.inv(regressor) @ cross).T, e_aim))
        with clock.part():
            kept = 0.1 * sum(outer(rows, rows) for rows in (encode(pipe, word) for word in ("", *retain)))
        with clock.part(wider):
            new = {name: edited(w, pairs, kept, 0.1) for name, w in new.items()}
    return new


def mace_loras(
    pipe: Any, texts: Mapping[str, Sequence[str]], latents: torch.Tensor, masks: torch.Tensor, tokens: torch.Tensor,
    steps: int,
) -> None:  # fmt: skip
    """MACE's LoRAs one concept after the other on a copy of the UNet, one sample a step, its caption embedded anew."""
    for captions in texts.values():
        unet = copy.deepcopy(pipe.unet).requires_grad_(False)
        factors = {
            n: (torch.randn(1, 1, m.in_features).requires_grad_(), torch.zeros(1, m.out_features, 1).requires_grad_())
            for n, m in unet.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))
        }  # fmt: skip
        parameters = [f for pair in factors.values() for f in pair]
        optimiser = torch.optim.AdamW(parameters, lr=1e-4)
        for step in range(steps):
            text, t = encode(pipe, captions[step % len(captions)])[None], torch.tensor([300])
            with adapted(unet, factors):
                noisy = latents[:1] + torch.randn_like(latents[:1])
                attention_loss(unet, noisy, t, text, masks[:1], tokens[:1]).sum().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()


def esd(pipe: Any, concept: str, ends: Sequence[int], ddim_steps: int, guidance: float) -> None:
    """ESD's first script: a walk of the student to x_t in each step, guided, then two passes of a frozen copy."""
    unet, frozen = copy.deepcopy(pipe.unet), pipe.unet
    trained = [p for n, p in unet.named_parameters() if "attn2" in n]
    unet.requires_grad_(False)
    for p in trained:
        p.requires_grad_(True)
    optimiser, scheduler = torch.optim.Adam(trained, lr=1e-5), copy.deepcopy(pipe.scheduler)
    config = unet.config
    for end in ends:
        text, empty = encode(pipe, concept)[None], encode(pipe, "")[None]
        scheduler.set_timesteps(ddim_steps)
        x = torch.randn(1, config.in_channels, config.sample_size, config.sample_size)
        with torch.no_grad():
            for t in scheduler.timesteps[:end]:
                without, within = unet(torch.cat([x, x]), t, torch.cat([empty, text])).sample.chunk(2)
                x = scheduler.step(without + guidance * (within - without), t, x).prev_sample
            t = scheduler.timesteps[end]
            without, within = frozen(x, t, empty).sample, frozen(x, t, text).sample
        F.mse_loss(unet(x, t, text).sample, without - (within - without)).backward()
        optimiser.step()
        optimiser.zero_grad()


def lora_finetuning(pipe: Any, images: torch.Tensor, captions: Sequence[str], steps: int, batch: int) -> None:
    """The step of diffusers' train_text_to_image_lora: images and captions pass VAE and text encoder in each step."""
    unet = pipe.unet.train().requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimiser, limit = torch.optim.AdamW(parameters, lr=1e-4), pipe.tokenizer.model_max_length
    velocity = pipe.scheduler.config.prediction_type == "v_prediction"
    for step in range(steps):
        chosen = [(step * batch + i) % len(images) for i in range(batch)]
        with torch.no_grad():
            latents = pipe.vae.encode(images[chosen]).latent_dist.sample() * pipe.vae.config.scaling_factor
            options = {"padding": "max_length", "max_length": limit, "return_tensors": "pt"}
            text = pipe.text_encoder(pipe.tokenizer([captions[i] for i in chosen], **options).input_ids)[0]
        noise, t = torch.randn_like(latents), torch.randint(1000, (batch,))
        target = pipe.scheduler.get_velocity(latents, noise, t) if velocity else noise
        loss = F.mse_loss(unet(pipe.scheduler.add_noise(latents, noise, t), t, text).sample, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
    unet.unload_lora()
    unet.eval().requires_grad_(True)
