"""Which tokens every closed form and MACE's loss select, on the published names with CLIP's own vocabulary.

SD 1.x pads with the end token (49407), SD 2.x with `!` (0): what is selected must be the same places for both.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from published import clip_tokenizer
from resurgence.config.load import load_study
from resurgence.config.study import Study
from resurgence.config.task import Task
from resurgence.diffusion.text import concept_positions, fill, load_captions, token_ids
from resurgence.erasers.closed_form.solver import paired_rows
from resurgence.erasers.closed_form.time import corresponding
from resurgence.erasers.closed_form.uce import last_token
from resurgence.erasers.mace.method import MaceConfig, tokens_of

ROOT = Path(__file__).parents[1]
LENGTH, END = 77, 49407
PADS = {"sd14": "<|endoftext|>", "sd21": "!"}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, CLIPTokenizer]:
    made = {name: clip_tokenizer(pad) for name, pad in PADS.items()}
    assert {name: t.pad_token_id for name, t in made.items()} == {"sd14": END, "sd21": 0}
    return made


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study([ROOT / "params.yaml", ROOT / "studies/sd21.yaml"], ROOT)


def captions_of(study: Study, task: Task) -> tuple[str, ...]:
    return load_captions(study.eraser_settings(task.name, "mace", "default")["captions"], task.kind)


def text_at(tokenizer: CLIPTokenizer, padded: list[int], places: list[int]) -> str:
    return " ".join(tokenizer.decode([padded[i] for i in places]).split())


def words(tokenizer: CLIPTokenizer, concept: str) -> str:
    """The concept as the tokenizer writes it."""
    return text_at(tokenizer, ids := tokenizer(concept, add_special_tokens=False).input_ids, range(len(ids)))


TASKS = ["celebrities-1", "celebrities-10", "celebrities-100", "ship", "objects-5"]


@pytest.mark.parametrize("base", PADS)
@pytest.mark.parametrize("name", TASKS)
def test_every_concept_is_found_in_every_caption(
    name: str, base: str, study: Study, tokenizers: dict[str, CLIPTokenizer]
) -> None:
    tokenizer, task = tokenizers[base], study.loaded[name]
    for concept in (*task.erase, *task.retain):
        for caption in fill((*captions_of(study, task), *task.templates), concept):
            padded = tokenizer(caption, padding="max_length", max_length=LENGTH).input_ids
            assert len(padded) == LENGTH  # nothing is cut
            places = concept_positions(tokenizer, caption, concept)
            assert text_at(tokenizer, padded, places) == words(tokenizer, concept)
            assert END not in {padded[i] for i in places} and padded[len(token_ids(tokenizer, caption)) - 1] == END


@pytest.mark.parametrize("name", TASKS)
def test_pairs_of_mace_and_time_are_the_same_places_for_both_bases(
    name: str, study: Study, tokenizers: dict[str, CLIPTokenizer]
) -> None:
    task = study.loaded[name]
    for concept in task.erase[:12]:
        for template in captions_of(study, task):
            source, target = (template.replace("{}", word) for word in (concept, task.mapping[concept]))
            chosen = []
            for tokenizer in tokenizers.values():
                a, b = token_ids(tokenizer, source), token_ids(tokenizer, target)
                own = concept_positions(tokenizer, source, concept)
                rows, aims = paired_rows(a, b, own, LENGTH)
                padded = tokenizer([source, target], padding="max_length", max_length=LENGTH).input_ids
                assert [padded[0][i] for i in rows] == [padded[1][j] for j in aims]  # the same tokens, none the concept
                assert (len(a) - 1, len(b) - 1) in set(zip(rows, aims, strict=True))  # end with end, not with padding
                behind = [(i - len(a), j - len(b)) for i, j in zip(rows, aims, strict=True) if i >= len(a)]
                assert behind == [(i, i) for i in range(LENGTH - max(len(a), len(b)))]
                places = corresponding(a, b, LENGTH)
                assert places[len(a) - 1] == len(b) - 1
                chosen.append((rows, aims, places))
            assert chosen[0] == chosen[1]


@pytest.mark.parametrize("base", PADS)
@pytest.mark.parametrize("rule", ["end-and-padding", "end", "same-id"])
def test_set_of_the_attention_loss(rule: str, base: str, tokenizers: dict[str, CLIPTokenizer]) -> None:
    tokenizer, caption, concept = tokenizers[base], "a portrait of Angelina Jolie at night", "Angelina Jolie"
    ids = token_ids(tokenizer, caption)
    selected = tokens_of(tokenizer, caption, concept, LENGTH, MaceConfig(pooler_tokens=rule)).nonzero().flatten()
    own, end = concept_positions(tokenizer, caption, concept), len(ids) - 1
    padded = tokenizer(caption, padding="max_length", max_length=LENGTH).input_ids
    official = [i for i, token in enumerate(padded) if token == END]  # what MACE's code marks
    tail = {"end": [end], "end-and-padding": list(range(end, LENGTH)), "same-id": official}[rule]
    assert selected.tolist() == own + tail
    assert len(official) == (LENGTH - end if base == "sd14" else 1)


def test_last_token_of_uce(tokenizers: dict[str, CLIPTokenizer]) -> None:
    for tokenizer in tokenizers.values():
        for concept in ("Arnold Schwarzenegger", "winged creature", "a person"):
            last = last_token(tokenizer, "{}", concept)
            ids = token_ids(tokenizer, concept)
            assert last == len(ids) - 2 and ids[last + 1] == END
        assert last_token(tokenizer, "{}", " ") == 0  # the beginning token


def test_a_caption_that_ends_in_the_padding_sign_is_not_taken_for_padding(
    tokenizers: dict[str, CLIPTokenizer],
) -> None:
    for tokenizer in tokenizers.values():
        ids = token_ids(tokenizer, "a photo of a cat!")
        assert ids[-1] == END and len(ids) == 8
        assert concept_positions(tokenizer, "a photo of a cat!", "cat") == [5]
