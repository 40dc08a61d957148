"""Captions around a concept, their tokens, and their text embeddings. Nothing else calls a text encoder.

The closed forms, the attention loss and the second moments use the same captions of a concept: a template with one {}
filled by the concept. All functions follow the pipeline's tokenizer, so they are right for any length and for both
kinds of padding: SD 1.x pads with the end token, SD 2.x with id 0.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.func import functional_call

from resurgence.config.fields import templates
from resurgence.diffusion.device import exact
from resurgence.files import read_lines

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel, PreTrainedTokenizerBase

BATCH = 64  # captions in a pass of the text encoder
CPU_BYTES = 16 << 20  # of the widest activation of a pass on a CPU, whose caches hold it; fp64: two thirds of the time
LEAST = 4  # captions of such a pass, if there are as many: fewer are rounded otherwise
MANY = 1024  # captions that are tokenized at once
PRECISIONS = {"fp64": torch.float64, "fp32": torch.float32}  # in which an encoder computes
SHOWN = 200  # characters of a caption in a message

# Without an article, so that a name ("Ada Lovelace") and a described mapping concept ("a person") are both right.
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
        FileNotFoundError: for a missing file. ConfigError: for no template, or one without exactly one {}.
    """
    if source == "":
        return STYLE_CAPTIONS if kind == "style" else CAPTIONS
    if isinstance(source, str):
        if not Path(source).is_file():
            raise FileNotFoundError(f"captions = {source!r}: no such file; write its path, or ''")
        source = read_lines(Path(source))
    templates("captions", tuple(source))
    return tuple(source)


def fill(templates: Sequence[str], concept: str) -> list[str]:
    """The captions of a concept."""
    return [template.replace("{}", concept) for template in templates]


def long_captions(tokenizer: PreTrainedTokenizerBase, captions: Iterable[str]) -> dict[str, int]:
    """Number of tokens of each caption that is longer than the model reads, beginning and end token included."""
    unique, counts, limit = list(dict.fromkeys(captions)), dict[str, int](), tokenizer.model_max_length
    for start in range(0, len(unique), MANY):
        part = unique[start : start + MANY]
        numbers = map(len, tokenizer(part, verbose=False).input_ids)
        counts |= {caption: number for caption, number in zip(part, numbers, strict=True) if number > limit}
    return counts


def too_long(caption: str, count: int, limit: int) -> ValueError:
    """The error for a caption whose end would be cut off; the end may be the concept."""
    shown = caption if len(caption) <= SHOWN else f"{caption[:SHOWN]}..."
    return ValueError(f"caption {shown!r} has {count} tokens, the model reads {limit}; use a shorter template")


def check_lengths(tokenizer: PreTrainedTokenizerBase, captions: Iterable[str]) -> None:
    """Raise ValueError for a caption that is longer than the model reads."""
    for caption, count in long_captions(tokenizer, captions).items():
        raise too_long(caption, count, tokenizer.model_max_length)


def token_ids(tokenizer: PreTrainedTokenizerBase, caption: str) -> list[int]:
    """The un-padded token ids of a caption, beginning and end token included.

    Raises:
        ValueError: if the caption is too long: its end would be cut off without notice.
    """
    ids = list(tokenizer(caption, verbose=False).input_ids)
    if len(ids) > tokenizer.model_max_length:
        raise too_long(caption, len(ids), tokenizer.model_max_length)
    return ids


def concept_positions(tokenizer: PreTrainedTokenizerBase, caption: str, concept: str) -> list[int]:
    """Positions of the concept's tokens in the caption, every occurrence.

    Raises:
        ValueError: if the concept's tokens are not in the caption, naming both.
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


def tokenize(
    tokenizer: PreTrainedTokenizerBase, captions: Sequence[str], truncate: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask (N, L) of captions, padded to the length that the model reads.

    Raises:
        ValueError: a caption is longer and `truncate` is false.
    """
    limit = tokenizer.model_max_length
    options = {"padding": "max_length", "max_length": limit, "truncation": truncate, "verbose": False}
    inputs = tokenizer(list(captions), **options)
    for caption, ids in zip(captions, inputs.input_ids, strict=True):
        if len(ids) > limit:
            raise too_long(caption, len(ids), limit)
    return torch.tensor(inputs.input_ids), torch.tensor(inputs.attention_mask)


def embed(
    encoder: CLIPTextModel,
    ids: torch.Tensor,
    mask: torch.Tensor | None = None,
    parameters: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Embeddings of token ids, the last hidden state at all positions: (N, L, d) in the encoder's dtype, on its device.

    Args:
        ids: (N, L). mask: (N, L), True where there is no padding; only read by an encoder that was trained with a mask.
        parameters: replace the encoder's of these names, in this pass only; gradients flow to them.
    """
    masked = mask is not None and getattr(encoder.config, "use_attention_mask", False)
    options = {"attention_mask": mask.to(encoder.device) if masked else None}
    inputs = (ids.to(encoder.device),)
    if not parameters:
        return encoder(*inputs, **options)[0]
    return functional_call(encoder, dict(parameters), inputs, options)[0]


def encode_prompts(
    pipe: StableDiffusionPipeline, prompts: Sequence[str], batch: int = BATCH, truncate: bool = False
) -> torch.Tensor:
    """Embed prompts as the pipeline does: (N, L, d).

    Raises:
        ValueError: a prompt is longer than the model reads and `truncate` is false.
    """
    starts = range(0, len(prompts), batch)
    parts = [tokenize(pipe.tokenizer, prompts[start : start + batch], truncate) for start in starts]
    with exact(pipe.text_encoder.device):
        return torch.cat([embed(pipe.text_encoder, *part) for part in parts])


class Encoder:
    """Text embeddings of the pipeline, by default in a higher precision.

    The closed forms magnify rounding errors by about the root of the condition number of their system (1e2 and more),
    and only in float64 is the result independent of the batch size.

    Args:
        dtype: of the computation. batch: captions in a pass. result: dtype of the embeddings; None: that of the
            computation. Sums over captions are to be taken in float64 whatever the encoder computes in.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        dtype: torch.dtype = torch.float64,
        batch: int = BATCH,
        result: torch.dtype | None = None,
    ) -> None:
        self.tokenizer, self.batch, self.result = pipe.tokenizer, batch, result or dtype
        encoder = pipe.text_encoder
        self.model = (encoder if encoder.dtype == dtype else copy.deepcopy(encoder).to(dtype)).eval()

    @torch.no_grad()
    def __call__(self, captions: Sequence[str], padded: bool = True) -> torch.Tensor:
        """Embed captions: (N, L, d); ValueError for one that is longer than the model reads.

        Args:
            padded: False: the rows behind the longest caption of a batch are not computed, but NaN. The encoder is
                causal, so the others do not depend on them; they differ by rounding (1e-15 of themselves in float64).
        """
        starts = range(0, len(captions), self.batch)
        parts = [tokenize(self.tokenizer, captions[start : start + self.batch]) for start in starts]
        with exact(self.model.device):
            return torch.cat([self._rows(*part, padded) for part in parts])

    def _rows(self, ids: torch.Tensor, mask: torch.Tensor, padded: bool) -> torch.Tensor:
        """Embed a batch of token ids (N, L), with the mask that is 0 at padding: (N, L, d)."""
        length = ids.shape[1] if padded else int(mask.sum(1).max())
        parts = (side[:, :length].tensor_split(self._passes(len(ids), length)) for side in (ids, mask))
        rows = torch.cat([embed(self.model, *part) for part in zip(*parts, strict=True)]).to(self.result)
        return F.pad(rows, (0, 0, 0, ids.shape[1] - length), value=torch.nan)

    def _passes(self, captions: int, length: int) -> int:
        """In how many passes captions of this length are embedded."""
        if self.model.device.type != "cpu":
            return 1
        values = captions * length * self.model.config.intermediate_size
        return max(1, min(values * self.model.dtype.itemsize // CPU_BYTES, captions // LEAST))

    def each(self, templates: Sequence[str], concepts: Iterable[str], padded: bool = True) -> Iterator[torch.Tensor]:
        """Embed the captions of one concept after the other: (T, L, d) each; see `groups`."""
        return self.groups([fill(templates, concept) for concept in concepts], padded)

    def groups(self, groups: Sequence[Sequence[str]], padded: bool = True) -> Iterator[torch.Tensor]:
        """Embed groups of captions, in their order: (captions, L, d) each.

        A caption is embedded once, however often it occurs; its rows are held until the last time. A batch may span
        several groups, so that batches are full with small groups too.
        """
        left = Counter(caption for group in groups for caption in group)
        first = self._one_by_one(list(left), padded)  # in the order of their first occurrence
        held: dict[str, torch.Tensor] = {}
        for group in groups:
            rows = []
            for caption in group:
                if caption not in held:
                    held[caption] = next(first) if left[caption] == 1 else next(first).clone()  # not the whole batch
                left[caption] -= 1
                rows.append(held[caption] if left[caption] else held.pop(caption))
            yield torch.stack(rows)

    def _one_by_one(self, captions: Sequence[str], padded: bool) -> Iterator[torch.Tensor]:
        """Embed captions in batches: (L, d) each."""
        for start in range(0, len(captions), self.batch):
            yield from self(captions[start : start + self.batch], padded)


def encoder_of(pipe: StableDiffusionPipeline, precision: str) -> Encoder:
    """The encoder that computes in fp64 or fp32, with embeddings in float64, in which their sums are taken."""
    return Encoder(pipe, PRECISIONS[precision], result=torch.float64)
