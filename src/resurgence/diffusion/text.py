"""Captions around a concept, their tokens, and their text embeddings.

The closed forms, the attention loss and the second moments read a concept through the same captions: a template with
one {} filled by the concept. Everything here follows the pipeline's own tokenizer, so it holds for any length and for
both kinds of padding: SD 1.x pads with the end token itself, SD 2.x with id 0.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import PreTrainedTokenizerBase

# Without an article, so that a name ("Ada Lovelace") and a described mapping concept ("a person") both fit.
CAPTIONS = (
    "a photo of {}", "a picture of {}", "an image of {}", "a snapshot of {}", "a photograph showing {}",
    "a portrait of {}", "a close-up of {}", "a shot of {}", "a wide shot of {}", "an old photo of {}",
    "a colour photo of {}", "a black and white photo of {}", "a bright picture of {}", "a dark picture of {}",
    "a sharp picture of {}", "a blurred picture of {}", "a drawing of {}", "a sketch of {}", "a pencil drawing of {}",
    "a painting of {}", "an oil painting of {}", "a watercolour of {}", "an illustration of {}", "a rendering of {}",
    "a poster with {}", "a magazine cover with {}", "{} seen from the front", "{} at sunrise", "{} at night",
    "{} in the open air",
)  # fmt: skip
STYLE_CAPTIONS = (
    "a painting by {}", "an artwork by {}", "a picture by {}", "an image by {}", "a drawing by {}",
    "a sketch by {}", "an illustration by {}", "a portrait by {}", "a landscape by {}", "a still life by {}",
    "a poster by {}", "a mural by {}", "a print by {}", "a study by {}", "an early work by {}",
    "a late work by {}", "a famous work by {}", "a small work by {}", "a large canvas by {}", "a work made by {}",
    "a painting in the style of {}", "an image in the style of {}", "a picture in the style of {}",
    "a portrait in the style of {}", "a landscape in the style of {}", "a street in the style of {}",
    "a tree in the style of {}", "the sea in the style of {}", "an interior in the style of {}",
    "a drawing in the style of {}",
)  # fmt: skip


def load_captions(source: str | Sequence[str], kind: str) -> tuple[str, ...]:
    """The caption templates of a setting.

    Args:
        source: a list of templates, the path of a text file with one a line, or "" for the built-in 30.
        kind: of the task; `style` has its own built-in list.

    Raises:
        FileNotFoundError: for a missing file. ValueError: for no template, or one without exactly one {}.
    """
    if isinstance(source, str) and source:
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"captions = {source!r}: no such file; write its path, or ''")
        source = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    elif isinstance(source, str):
        source = STYLE_CAPTIONS if kind == "style" else CAPTIONS
    if not source:
        raise ValueError("captions: the list is empty; write at least one template with {}")
    for template in source:
        if template.count("{}") != 1:
            raise ValueError(f"captions: {template!r} must hold {{}} exactly once, where the concept goes")
    return tuple(source)


def fill(templates: Sequence[str], concept: str) -> list[str]:
    """The captions of one concept."""
    return [template.replace("{}", concept) for template in templates]


def token_ids(tokenizer: PreTrainedTokenizerBase, caption: str) -> list[int]:
    """The un-padded token ids of a caption, beginning and end token included.

    Raises:
        ValueError: if the caption does not fit, because its end would be cut off unseen.
    """
    ids = list(tokenizer(caption).input_ids)
    if len(ids) > tokenizer.model_max_length:
        limit = tokenizer.model_max_length
        raise ValueError(f"caption {caption!r} has {len(ids)} tokens, the model reads {limit}; use a shorter template")
    return ids


def concept_positions(tokenizer: PreTrainedTokenizerBase, caption: str, concept: str) -> list[int]:
    """Positions of the concept's tokens in the caption, every occurrence.

    Raises:
        ValueError: if the tokenizer does not find the concept, naming concept and caption.
    """
    ids = token_ids(tokenizer, caption)
    word = list(tokenizer(concept, add_special_tokens=False).input_ids)
    starts = [i for i in range(1, len(ids) - len(word)) if ids[i : i + len(word)] == word]
    if not word or not starts:
        raise ValueError(
            f"the tokens of concept {concept!r} do not occur in caption {caption!r}; "
            "leave spaces around {} in the template, or write the concept as the caption does"
        )
    return sorted({start + i for start in starts for i in range(len(word))})


class Encoder:
    """Text embeddings as the pipeline makes them: last hidden state, all positions, padded to the full length.

    float64 by default, because the closed forms magnify rounding errors by the condition number of their system
    (1e4 and more), and because only then does the batch size not show in the result.
    """

    def __init__(self, pipe: StableDiffusionPipeline, dtype: torch.dtype = torch.float64, batch: int = 64) -> None:
        self.tokenizer, self.batch = pipe.tokenizer, batch
        encoder = pipe.text_encoder
        self.model = (encoder if encoder.dtype == dtype else copy.deepcopy(encoder).to(dtype)).eval()
        self.masked = bool(getattr(encoder.config, "use_attention_mask", False))

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """Embed captions: (N, L, d). Captions longer than the model reads are cut, as the pipeline does."""
        parts = []
        for start in range(0, len(captions), self.batch):
            inputs = self.tokenizer(
                list(captions[start : start + self.batch]), padding="max_length", truncation=True, return_tensors="pt",
                max_length=self.tokenizer.model_max_length,
            ).to(self.model.device)  # fmt: skip
            parts.append(self.model(inputs.input_ids, attention_mask=inputs.attention_mask if self.masked else None)[0])
        return torch.cat(parts)

    def each(self, templates: Sequence[str], concepts: Iterable[str]) -> Iterator[torch.Tensor]:
        """Embed the captions of one concept after the other: (T, L, d) each.

        Batches run on from one concept to the next, so that few templates fill them too.
        """
        captions = (caption for concept in concepts for caption in fill(templates, concept))
        ahead: torch.Tensor | None = None  # embedded, of concepts to come
        while batch := list(islice(captions, self.batch)):
            ahead = self(batch) if ahead is None else torch.cat([ahead, self(batch)])
            while len(ahead) >= len(templates):
                yield ahead[: len(templates)]
                ahead = ahead[len(templates) :]
