"""SPM's facilitated transport (Lyu et al., CVPR 2024): adapters kept apart, each opened by how near a prompt is to it.

A prompt p is sampled with W' = W + sum_c gamma(p, c) B_c A_c, gamma the strength of concept c: 1 for a prompt that
names it, near 0 for one that has nothing to do with it. The merged delta of a study is gamma = 1 for every prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from resurgence.diffusion.lora_files import ANOTHER_BASE, check_pair
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.diffusion.text import encode_prompts
from resurgence.erasers.gradient.spm import product
from resurgence.erasers.lora import Lora
from resurgence.pretrained.finite import check_finite

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

Measure = Literal["both", "sentence", "tokens"]


@torch.no_grad()
def transport_strength(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    concepts: Sequence[str],
    measure: Measure = "both",
) -> torch.Tensor:
    """Facilitated transport: by how much each prompt opens the membrane of each concept, (P, C).

    `sentence` is the cosine of the two embeddings, all tokens in a row, `tokens` the share of the concept's tokens that
    the prompt holds, `both` the larger one.
    """
    both = [F.normalize(encode_prompts(pipe, list(texts)).flatten(1), dim=1) for texts in (prompts, concepts)]
    sentence = (both[0] @ both[1].T).float().cpu()
    special = set(pipe.tokenizer.all_special_ids)
    rows, columns = ([set(pipe.tokenizer(x).input_ids) - special for x in texts] for texts in (prompts, concepts))
    tokens = torch.tensor([[len(row & column) / len(column) for column in columns] for row in rows])
    return {"sentence": sentence, "tokens": tokens, "both": torch.maximum(sentence, tokens)}[measure]


def check_adapters(unet: UNet2DConditionModel, adapters: Mapping[str, Lora]) -> None:
    """Raise ValueError for an adapter of a layer that this UNet does not have, or has in another shape."""
    modules = dict(unet.named_modules())
    for concept, adapter in adapters.items():
        for name, (down, up) in adapter.items():
            if name not in modules:
                raise ValueError(f"adapter of {concept!r}: the base has no module {name!r}; {ANOTHER_BASE}")
            check_pair(f"adapter of {concept!r}: {name}", down, up, modules[name].weight)


@contextmanager
def opened(unet: UNet2DConditionModel, adapters: Mapping[str, Lora], strengths: Mapping[str, float]) -> Iterator[None]:
    """Within the block, W' = W + sum_c strengths[c] B_c A_c; afterwards every weight is as it was, bit for bit.

    Raises:
        KeyError: an adapter of a layer that this UNet does not have.
        ValueError: a weight that is not finite in the UNet's precision.
    """
    modules = dict(unet.named_modules())
    before: dict[str, torch.Tensor] = {}
    try:
        for concept, adapter in adapters.items():
            for name, (down, up) in adapter.items():
                weight = modules[name].weight
                before.setdefault(name, weight.detach().clone())
                up, down = (factor.to(weight.device, torch.float32) for factor in (up, down))
                weight.data += strengths[concept] * product(up, down).to(weight)
        check_finite({name: modules[name].weight for name in before}, "opened adapters", "use precision fp32 or bf16")
        yield
    finally:
        for name, weight in before.items():
            modules[name].weight.data.copy_(weight)


def sample_opened(
    pipe: StableDiffusionPipeline,
    prompts: pd.DataFrame,
    cfg: SamplingConfig,
    adapters: Mapping[str, Lora],
    measure: Measure = "both",
    precision: str = "fp32",
) -> Iterator[tuple[int, Image.Image]]:
    """Sample as `sample.sample` does, one prompt after the other, each with the adapters opened by its strengths.

    Args:
        prompts: columns prompt and seed. adapters: concept -> adapter, on the weights that the pipeline has.
        precision: see `sample.sample`.

    Yields:
        (position of the row, image).

    Raises:
        ValueError: an adapter of another base.
    """
    check_adapters(pipe.unet, adapters)
    codes, unique = pd.factorize(prompts["prompt"])
    strengths = transport_strength(pipe, list(unique), list(adapters), measure)  # (P, C)
    for number, row in enumerate(strengths.tolist()):
        places = np.flatnonzero(codes == number)
        with opened(pipe.unet, adapters, dict(zip(adapters, row, strict=True))):
            for place, image in sample(pipe, prompts.iloc[places].reset_index(drop=True), cfg, precision):
                yield int(places[place]), image
