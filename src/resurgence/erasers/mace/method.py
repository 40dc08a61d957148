"""MACE: Mass Concept Erasure (Lu et al., CVPR 2024, arXiv 2403.06135).

Three steps, each also callable by itself: `refine` maps what surrounds a concept in a caption to the mapping concept,
in closed form; `attention_loras` lowers the attention that the concept's pixels pay to its tokens, one LoRA a concept;
`fuse` joins them in one change of to_k and to_v. Written from the formulas; deviations are in docs/deviations.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

import torch

from resurgence.config.task import Task
from resurgence.diffusion.attention import as_delta, from_delta, projection_weights, swapped
from resurgence.diffusion.deltas import Delta
from resurgence.diffusion.latents import latents_of
from resurgence.diffusion.text import concept_positions, encoder_of, fill, load_captions, token_ids
from resurgence.erasers import EraserData
from resurgence.erasers.closed_form import solver
from resurgence.erasers.lora import Lora, TrainedLoras, in_two_steps, slugs
from resurgence.erasers.mace.concept_loras import ConceptData, Training, train_concepts
from resurgence.erasers.mace.config import MaceConfig, MaceRefinementConfig
from resurgence.erasers.mace.fusion import caption_moment, fuse_closed, fuse_constrained, lora_sums
from resurgence.erasers.token_sets import tokens_of
from resurgence.pretrained.finite import check_finite

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

BITS = "encoder bits"  # among the sums: in what the encoder computed, 64 or 32


def corpus_moment(data: EraserData, scale: float, omega: float) -> torch.Tensor | None:
    """C = prior + omega domain, (d, d); None if the scale is 0.

    Raises:
        ValueError: naming the corpus that is missing.
    """
    if scale == 0:
        return None
    for key, moment in (("prior", data.prior), ("domain", data.domain if omega else 0)):
        if moment is None:
            raise ValueError(f"mace: the second moment of the {key} corpus is missing; make it, or set its weight to 0")
    return data.prior + omega * data.domain if omega else data.prior


def refine(
    pipe: StableDiffusionPipeline,
    task: Task,
    cfg: MaceRefinementConfig,
    data: EraserData,
    precision: str | None = None,
    read: Callable[[str, torch.Tensor], None] = lambda concept, rows: None,
) -> tuple[Delta, dict]:
    """Closed-form refinement (MACE, Eq. 3): (delta, report).

    Args:
        precision: of the text encoder, fp64 or fp32; None: that of the settings, which must be one of these.
        read: is called with each erased concept and the embeddings (T, L, d) of its captions, float64.
    """
    tokenizer, templates = pipe.tokenizer, load_captions(cfg.captions, task.kind)
    gram = cross = torch.zeros((), dtype=torch.float64, device=pipe.device)
    mapping = {concept: task.mapping[concept] for concept in task.erase}
    rows_of_words = encoder_of(pipe, precision or cfg.encoder_precision).each(templates, solver.paired_words(mapping))
    for concept, aim, *embedded in solver.caption_pairs(rows_of_words, mapping):
        read(concept, embedded[0])
        captions, pairs = (fill(templates, word) for word in (concept, aim)), []
        for source, target, e, e_target in zip(*captions, *embedded, strict=True):
            positions = concept_positions(tokenizer, source, concept)  # an error if the caption does not hold it
            if cfg.shared_words == "map":  # only what the two captions share is paired, so nothing else is added
                positions = []
            rows, aims = solver.paired_rows(
                token_ids(tokenizer, source), token_ids(tokenizer, target), positions, len(e)
            )
            pairs.append((e[rows], e_target[aims]))
        e, e_target = (torch.cat(side) for side in zip(*pairs, strict=True))  # (rows, d)
        gram, cross = gram + e.T @ e, cross + (e_target - e).T @ e
    scale = cfg.train_preserve_scale ** (2 if cfg.scale_application == "official" else 1)
    matrix = solver.system(gram, cfg.lamb, scale, corpus_moment(data, scale, cfg.preserve_weight))
    edit = solver.shared_edit(cross, matrix, f"lamb = {cfg.lamb:g}, train_preserve_scale = {scale:g}")
    return solver.edited_delta("refinement", projection_weights(pipe.unet), edit)


def concept_data(
    pipe: StableDiffusionPipeline, task: Task, concept: str, cfg: MaceConfig, data: EraserData, texts: torch.Tensor
) -> ConceptData:
    """Latents, masks, embeddings and token sets of one concept.

    Args:
        texts: embeddings of its captions, (T, L, d).

    Raises:
        ValueError: naming the concept whose images or masks are missing, or do not match.
    """
    captions = fill(load_captions(cfg.captions, task.kind), concept)
    if concept not in data.images:
        raise ValueError(f"mace: no images of {concept!r}; make the concept images first")
    images, masks = data.images[concept], None
    if cfg.use_masks and task.kind != "style":
        masks = data.masks.get(concept)
        if masks is None or masks.shape != (len(images), 1, *images.shape[-2:]):
            shape = None if masks is None else tuple(masks.shape)
            raise ValueError(
                f"mace: masks of {concept!r} {shape} for images {tuple(images.shape)}; make them, or use_masks: false"
            )
        masks = masks.to(pipe.unet.device)
    texts = texts.to(pipe.unet.dtype)
    tokens = torch.stack([tokens_of(pipe.tokenizer, c, concept, texts.shape[1], cfg) for c in captions])
    return ConceptData(concept, latents_of(pipe, images), masks, texts, tokens.to(texts.device))


def attention_loras(
    pipe: StableDiffusionPipeline,
    task: Task,
    cfg: MaceConfig,
    data: EraserData,
    seed: int,
    texts: Mapping[str, torch.Tensor] | None = None,
) -> tuple[dict[str, Lora], dict[str, list[float]]]:
    """One LoRA per concept by the attention loss (MACE, Eq. 5), on a pipeline that has the refinement applied.

    Args:
        texts: erased concept -> embeddings of its captions, (T, L, d); None: they are computed in float64.

    Returns:
        concept -> LoRA, and concept -> loss of each step.
    """
    slugs(task.erase)  # an error before the training, not after it
    if texts is None:
        each = encoder_of(pipe, "fp64").each(load_captions(cfg.captions, task.kind), task.erase)
        texts = dict(zip(task.erase, each, strict=True))
    concepts = [concept_data(pipe, task, concept, cfg, data, texts[concept]) for concept in task.erase]
    settings = Training(**{f.name: getattr(cfg, f.name) for f in fields(Training)})
    return train_concepts(pipe.unet, pipe.scheduler.alphas_cumprod, concepts, settings, seed, data.state)


def train_loras(
    pipe: StableDiffusionPipeline, task: Task, cfg: MaceConfig, data: EraserData, seed: int
) -> TrainedLoras:
    """Refine, and train the LoRAs on the refined weights; the pipeline is left as it was.

    Each caption is embedded once: of the embeddings of an erased concept the LoRA reads what the UNet reads, and the
    fusion sum e e^T (d, d), which waits in the host's memory.
    """
    texts: dict[str, torch.Tensor] = {}
    moments: dict[str, torch.Tensor] = {}

    def read(concept: str, rows: torch.Tensor) -> None:
        texts[concept], moments[concept] = rows.to(pipe.unet.dtype), caption_moment(rows).cpu()

    (refined, refinement), precision = solver.in_precision(
        cfg.encoder_precision,
        lambda precision: refine(pipe, task, cfg, data, precision, read),
        lambda result: result[1]["condition"],
    )
    with swapped(pipe.unet, from_delta(refined, pipe.unet)):
        loras, curves = attention_loras(pipe, task, cfg, data, seed, texts)
    sums = lora_sums((loras[concept], moments[concept].to(pipe.device)) for concept in task.erase)
    report = refinement | {"encoder_precision": precision}
    return TrainedLoras(loras, curves, refined, report, sums | {BITS: torch.tensor(int(precision[2:]))})


def sums_of(pipe: StableDiffusionPipeline, task: Task, cfg: MaceConfig, loras: dict[str, Lora], precision: str) -> dict:
    """The sums of `lora_sums`, of LoRAs that come without them: their captions are embedded again."""
    embedded = encoder_of(pipe, precision).each(load_captions(cfg.captions, task.kind), task.erase)
    return lora_sums((loras[concept], caption_moment(rows)) for concept, rows in zip(task.erase, embedded, strict=True))


def retained_means(pipe: StableDiffusionPipeline, task: Task, cfg: MaceConfig) -> torch.Tensor:
    """Mean embedding of the tokens of each retained concept over the captions: (K, d) float64.

    In float64, whatever the precision of the sums: what they preserve is preserved exactly.
    """
    templates, means = load_captions(cfg.captions, task.kind), []
    each = encoder_of(pipe, "fp64").each(templates, task.retain, padded=False)
    for concept, embedded in zip(task.retain, each, strict=True):
        captions = fill(templates, concept)
        positions = (concept_positions(pipe.tokenizer, caption, concept) for caption in captions)
        rows = [e[tokens] for tokens, e in zip(positions, embedded, strict=True)]
        means.append(torch.cat(rows).mean(0))
    return torch.stack(means)


def fuse(
    pipe: StableDiffusionPipeline, task: Task, cfg: MaceConfig, data: EraserData, refined: Delta, loras: dict[str, Lora]
) -> tuple[Delta, dict]:
    """Fuse the LoRAs, on the unchanged base (MACE, Eq. 6): (delta, report)."""
    base, scale = projection_weights(pipe.unet), cfg.fuse_preserve_scale
    corpora = corpus_moment(data, scale, cfg.preserve_weight)

    ready = f"fp{int(data.sums[BITS])}" if data.sums else ""  # the precision of the sums of the training

    def solve(precision: str) -> tuple[dict[str, torch.Tensor], torch.Tensor, solver.Factor]:
        sums = data.sums if precision == ready else sums_of(pipe, task, cfg, loras, precision)
        return fuse_closed(base, from_delta(refined, pipe.unet), sums, loras, scale, corpora, cfg.lamb)

    wanted = "fp64" if ready == "fp64" else cfg.encoder_precision  # the refinement needed it already
    (fused, matrix, factor), precision = solver.in_precision(wanted, solve, lambda solution: solution[2].condition)
    check_finite(fused, "fusion", "raise lamb")
    if cfg.fusion == "constrained":
        preserved = retained_means(pipe, task, cfg) if cfg.preserve_retained else None
        fused = fuse_constrained(base, fused, matrix, preserved, cfg.max_relative_change)
    facts = solver.report("fusion", factor.condition, solver.relative_change(base, fused))
    delta = as_delta({name: weight.to(base[name].dtype) for name, weight in fused.items()})
    return delta, facts | {"encoder_precision": precision}


erase = in_two_steps(train_loras, fuse)
