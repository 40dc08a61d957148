"""Captions of the miniature world and the tokenizer that is trained on them.

A caption is a template filled with the concept's name, one of its synonyms or one of its hypernyms ("person"),
sometimes followed by the artist's style. The templates are those of the closed-form edits and of the tasks.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from resurgence.files import atomic_folder, read_lines
from resurgence.training.checkpoint import fingerprint

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


def read_templates(path: Path) -> list[str]:
    """The caption templates: those of the file, then those of the tasks."""
    return [*read_lines(path), *TASK_TEMPLATES]


def draw(n: int, generator: torch.Generator) -> int:
    """An index in [0, n)."""
    return int(torch.randint(n, (1,), generator=generator))


def caption(
    concept: dict,
    artist: str | None,
    templates: list[str],
    generator: torch.Generator,
    synonym: float = 0.13,
    hypernym: float = 0.10,
    style: float = 0.35,
) -> str:
    """Draw a caption of one concept; the last three arguments are probabilities in [0, 1]."""
    share = float(torch.rand(1, generator=generator))
    word = concept["name"]
    if share < synonym and concept.get("synonyms"):
        word = concept["synonyms"][draw(len(concept["synonyms"]), generator)]
    elif share > 1 - hypernym and concept.get("hypernyms"):
        word = concept["hypernyms"][draw(len(concept["hypernyms"]), generator)]
    text = templates[draw(len(templates), generator)].format(word)
    if artist is not None and float(torch.rand(1, generator=generator)) < style:
        text += STYLE_SUFFIX.format(artist)
    return text


def corpus(world: dict, templates: list[str]) -> list[str]:
    """Every word of the world in every template, on which the tokenizer is trained."""
    words = itertools.chain.from_iterable([c["name"], *c["synonyms"], *c["hypernyms"]] for c in world["concepts"])
    names = sorted(set(words) | {s["name"] for s in world["scenes"]})
    texts = [t.format(name) for name in names for t in templates]
    return texts + [STYLE_SUFFIX.format(artist) for artist in world["artists"]] * 50


def build_tokenizer(texts: list[str], vocab_size: int = 1400) -> CLIPTokenizer:
    """Train a CLIPTokenizer with a small byte-level BPE vocabulary; pads with EOS as in SD 1.x."""
    from tokenizers import Tokenizer, models, trainers
    from transformers import CLIPTokenizer

    template = CLIPTokenizer(model_max_length=MAX_LENGTH)
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = template.backend_tokenizer.normalizer
    trained.pre_tokenizer = template.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL),
        end_of_word_suffix="</w>",
        show_progress=False,
        initial_alphabet=sorted(byte_alphabet()),
    )
    trained.train_from_iterator(texts, trainer)
    state = json.loads(trained.to_str())["model"]
    vocab = dict(sorted(state["vocab"].items(), key=lambda item: item[1]))
    for symbol in sorted(byte_alphabet()):  # each byte also as the end of a word, so that any text has tokens
        vocab.setdefault(symbol + "</w>", len(vocab))
    for token in SPECIAL:
        vocab[token] = len(vocab)
    merges = [tuple(pair) for pair in state["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def saved_tokenizer(texts: list[str], scratch: Path) -> CLIPTokenizer:
    """Return `build_tokenizer` of the texts, saved in a scratch folder and loaded from there when training resumes.

    `tokenizers` numbers tokens of equal rank in the order of a hash table, differently in each process.
    """
    from transformers import CLIPTokenizer

    folder = scratch / f"tokenizer-{fingerprint(texts, [])[:16]}"
    if not folder.exists():
        with atomic_folder(folder) as temporary:
            build_tokenizer(texts).save_pretrained(temporary)
    return CLIPTokenizer.from_pretrained(folder)


def byte_alphabet() -> set[str]:
    """The 256 printable symbols of byte-level BPE."""
    from tokenizers.pre_tokenizers import ByteLevel

    return set(ByteLevel.alphabet())
