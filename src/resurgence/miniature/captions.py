"""Captions of the miniature world and the tokenizer that is trained on them.

A caption is a template filled with the concept's name, one of its synonyms or one of its hypernyms ("person"),
sometimes followed by the style: of the artist in a world without styles of its own. The templates are those of the
closed-form edits and of the tasks.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from resurgence.config.fields import ConfigError
from resurgence.files import read_lines

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

TASK_TEMPLATES = (
    "an image capturing the {} at a public event",
    "a sketch of the {}",
    "the {} in an official photo",
    "the {}",
    "a {}",
)
STYLE_SUFFIX = " in the style of {}"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
MAX_LENGTH = 24  # tokens, BOS and EOS included
VOCABULARY = 1650  # tokens of the first miniature
Share = Annotated[float, Field(ge=0, le=1)]


def read_templates(path: Path) -> list[str]:
    """The caption templates: those of the file, then those of the tasks."""
    return [*read_lines(path), *TASK_TEMPLATES]


def draw(n: int, generator: torch.Generator) -> int:
    """An index in [0, n)."""
    return int(torch.randint(n, (1,), generator=generator))


@dataclass(frozen=True)
class CaptionConfig:
    """Shares of captions and of pictures, in [0, 1]."""

    synonym: Share = 0.13  # captions with a synonym instead of the name
    hypernym: Share = 0.10  # captions with a wider word instead of the name
    styled: Share = 0.0  # pictures in one of the world's styles
    style: Share = 0.35  # captions that name the style, of the pictures that have one
    dropout: Share = 0.10  # empty captions, for guidance

    def __post_init__(self) -> None:
        if self.synonym + self.hypernym > 1:
            raise ConfigError("captions.hypernym", self.hypernym, "is more than what synonym leaves; lower one of them")


def word_of(entry: dict, generator: torch.Generator, synonym: float, hypernym: float) -> str:
    """Draw the name of a concept or style, or with these probabilities a synonym or a hypernym where it has any."""
    share = float(torch.rand(1, generator=generator))
    if share < synonym and entry.get("synonyms"):
        return entry["synonyms"][draw(len(entry["synonyms"]), generator)]
    if share > 1 - hypernym and entry.get("hypernyms"):
        return entry["hypernyms"][draw(len(entry["hypernyms"]), generator)]
    return entry["name"]


def caption(
    concept: dict, manner: dict | None, templates: Sequence[str], shares: CaptionConfig, generator: torch.Generator
) -> str:
    """Draw a caption of a picture of one concept.

    Args:
        manner: the style or artist that the caption may name; None for a picture without one.
    """
    word = word_of(concept, generator, shares.synonym, shares.hypernym)
    text = templates[draw(len(templates), generator)].format(word)
    if manner is not None and float(torch.rand(1, generator=generator)) < shares.style:
        text += STYLE_SUFFIX.format(word_of(manner, generator, shares.synonym, shares.hypernym))
    return text


def caption_or_none(
    concept: dict, manner: dict | None, templates: Sequence[str], shares: CaptionConfig, generator: torch.Generator
) -> str:
    """Draw a caption as `caption` does, or "" with the probability `shares.dropout`."""
    if float(torch.rand(1, generator=generator)) < shares.dropout:
        return ""
    return caption(concept, manner, templates, shares, generator)


def captioned_manner(world: dict, artists: Sequence[str], styles: torch.Tensor) -> Callable[[int, int], dict | None]:
    """The style or artist that a caption may name, as a function of the row and the index of a picture.

    Args:
        artists: of the rows that are drawings; the further rows are scenes.
        styles: (M,), the index of each picture's style among the world's, -1 for none.
    """
    if world.get("styles"):
        entries = [*world["styles"], None]  # -1 is the last
        return lambda row, index: entries[styles[index]]
    return lambda row, index: {"name": artists[row]} if row < len(artists) else None


def corpus(world: dict, templates: list[str]) -> list[str]:
    """Every word of the world in every template, on which the tokenizer is trained.

    The names of characters are left out: they become several tokens each, as rare names do in published models.
    """
    known = [
        [*([] if c["kind"] == "character" else [c["name"], *c["synonyms"]]), *c["hypernyms"]] for c in world["concepts"]
    ]
    names = sorted(set(itertools.chain.from_iterable(known)) | {s["name"] for s in world["scenes"]})
    texts = [t.format(name) for name in names for t in templates]
    styles = [[style["name"], *style["synonyms"], *style["hypernyms"]] for style in world.get("styles", [])]
    manners = sorted(set(itertools.chain.from_iterable(styles))) or world["artists"]
    return texts + [STYLE_SUFFIX.format(manner) for manner in manners] * 50


def build_tokenizer(texts: list[str], vocab_size: int = VOCABULARY) -> CLIPTokenizer:
    """Train a CLIPTokenizer with a small byte-level BPE vocabulary; pads with EOS as in SD 1.x.

    The same texts give the same tokenizer. Any text has tokens.

    Args:
        vocab_size: largest number of tokens, of which 512 are bytes and 2 begin and end a caption.
    """
    from tokenizers import Tokenizer, models, trainers
    from transformers import CLIPTokenizer

    template = CLIPTokenizer(model_max_length=MAX_LENGTH)
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = template.backend_tokenizer.normalizer
    trained.pre_tokenizer = template.backend_tokenizer.pre_tokenizer
    ends = [symbol + "</w>" for symbol in sorted(byte_alphabet())]  # each byte as the end of a word, too
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL),
        end_of_word_suffix="</w>",
        show_progress=False,
        initial_alphabet=sorted(byte_alphabet()),
        special_tokens=ends,  # else they are numbered in the order of a hash table, by which ties of pairs are broken
    )
    trained.train_from_iterator(texts, trainer)
    state = json.loads(trained.to_str())["model"]
    vocab = dict(sorted(state["vocab"].items(), key=lambda item: item[1]))
    for token in SPECIAL:
        vocab[token] = len(vocab)
    merges = [tuple(pair) for pair in state["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def as_built(tokenizer: CLIPTokenizer) -> CLIPTokenizer:
    """The tokenizer without the padding and truncation of its last call, which would be saved with it."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    return tokenizer


def byte_alphabet() -> set[str]:
    """The 256 printable symbols of byte-level BPE."""
    from tokenizers.pre_tokenizers import ByteLevel

    return set(ByteLevel.alphabet())
