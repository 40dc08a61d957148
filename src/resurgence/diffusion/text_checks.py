"""Checks of names, prompts and captions by the tokens that the base reads, before anything is computed from them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resurgence.config.fields import ConfigError
from resurgence.config.names import (
    Named,
    check_apart,
    check_mapping,
    check_names,
    check_prompts,
    erased_names,
    token_form,
)
from resurgence.diffusion.text import SHOWN, check_lengths, fill, load_captions, long_captions
from resurgence.provenance.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

    from resurgence.config.erasers import EraserConfig
    from resurgence.config.task import Task, TaskPart

log = logging.getLogger(__name__)


def check_erasure(tokenizer: PreTrainedTokenizerBase, task: Task | TaskPart, cfg: EraserConfig) -> None:
    """Raise ValueError for names of a task that are one to the model, or a caption of an erased concept that it cuts.

    Args:
        cfg: settings of an eraser, whose fields `captions` and `template` say how it writes captions.
    """
    form = token_form(tokenizer)
    check_names(task, form)
    check_mapping(cfg.destinations(task), task, form, "destination")
    for key in ("captions", "template"):
        if (source := getattr(cfg, key, None)) is not None:
            templates = load_captions((source,) if key == "template" else source, task.kind)
            check_lengths(tokenizer, (caption for concept in task.erase for caption in fill(templates, concept)))


def check_prompt_set(
    tokenizer: PreTrainedTokenizerBase, rows: pd.DataFrame, rule: Literal["truncate", "error"] = "error"
) -> None:
    """Raise ValueError for a prompt that the model cuts, or two that are one to it.

    Args:
        rows: a prompt set, with the columns of data/prompts.py. rule: truncate: prompts that are cut are only logged.
    """
    if rule == "error":
        check_lengths(tokenizer, rows["prompt"])
    elif number := count_long(tokenizer, rows["prompt"].tolist()):
        log.warning("%d of %d prompts have more tokens than the %d that the base reads; their ends are cut off",
                    number, len(rows), tokenizer.model_max_length)  # fmt: skip
    check_prompts(rows.drop_duplicates(["prompt", "role", "concept"]).to_dict("records"), token_form(tokenizer))


def check_benign(tokenizer: PreTrainedTokenizerBase, shown: Iterable[str], erased: Iterable[Named]) -> None:
    """Raise ValueError for a concept of a fine-tuning set that is an erased one to the model."""
    names = [("fine-tuning set", concept) for concept in dict.fromkeys(shown)]
    check_apart(names, erased, "the set would teach it again; remove it from the set", token_form(tokenizer))


def erased_by(folders: Iterable[Path]) -> list[Named]:
    """What deltas erase by the manifests in or above their folders: concepts, and their synonyms where these are known.

    A LoRA from elsewhere has no manifest.
    """
    names: list[Named] = []
    for folder in folders:
        place = folder if (folder / MANIFEST).is_file() else folder.parent
        task = read_manifest(place)["parameters"].get("task", {}) if (place / MANIFEST).is_file() else {}
        for concept in task.get("erase", ()):
            names += [(f"what {place} erases", word) for word in (concept, *task.get("synonyms", {}).get(concept, ()))]
    return names


def erased_in(
    tokenizer: PreTrainedTokenizerBase, captions: Sequence[str], erased: Sequence[Named]
) -> Iterator[list[Named]]:
    """For each caption, the erased words whose tokens it holds."""
    words = {tuple(tokenizer(name[1], add_special_tokens=False).input_ids): name for name in erased}
    lengths = {len(ids) for ids in words}
    for ids in tokenizer(list(captions), verbose=False).input_ids if words else ():
        parts = {tuple(ids[i : i + length]) for length in lengths for i in range(len(ids) - length + 1)}
        yield [name for part, name in words.items() if part in parts]


def check_real_captions(
    tokenizer: PreTrainedTokenizerBase, key: str, path: str, captions: Mapping[str, str], task: Task | TaskPart
) -> None:
    """Raise ConfigError for real pictures whose captions hold a word that a task erases, by the tokens of the base.

    Args:
        key, path: of the pictures. captions: by the names of the pictures.
    """
    names = erased_names(task)
    words_of = zip(captions, erased_in(tokenizer, list(captions.values()), names), strict=bool(names))
    if bad := [(name, words[0]) for name, words in words_of if words]:
        (name, (listed, word)), more = bad[0], f" and those of {len(bad) - 1} more" if len(bad) > 1 else ""
        remedy = (f"the caption {captions[name]!r} of {name}{more} hold{'' if more else 's'} {word!r} ({listed}), "
                  f"which the task {task.name} erases, and the set would teach it again; remove these "
                  "pictures")  # fmt: skip
        raise ConfigError(key, path, remedy)


def warn_of_erased(
    tokenizer: PreTrainedTokenizerBase, captions: Sequence[str], erased: Sequence[Named]
) -> dict[str, int]:
    """Number of training captions that hold the tokens of each erased word, so that it is taught again; logged."""
    counts = Counter(name for names in erased_in(tokenizer, captions, erased) for name in names)
    for (where, word), number in counts.items():
        log.warning("%d of %d training captions hold %r, %s: it is taught again", number, len(captions), word, where)
    return {word: number for (_, word), number in counts.items()}


def count_long(tokenizer: PreTrainedTokenizerBase, captions: Sequence[str]) -> int:
    """Number of captions that are longer than the model reads."""
    counts = long_captions(tokenizer, captions)
    return sum(caption in counts for caption in captions)


def check_long(tokenizer: PreTrainedTokenizerBase, captions: Sequence[str], rule: Literal["truncate", "error"]) -> None:
    """Log how many training captions will be cut because they are longer than the model reads.

    Raises:
        ValueError: there is one, and the rule is `error`.
    """
    if not (counts := long_captions(tokenizer, captions)):
        return
    caption, limit = max(counts, key=counts.__getitem__), tokenizer.model_max_length
    number = sum(name in counts for name in captions)
    text = (f"{number} of {len(captions)} training captions have more tokens than the {limit} that the base reads; "
            f"the longest has {counts[caption]}: {caption[:SHOWN]!r}")  # fmt: skip
    if rule == "error":
        raise ValueError(f"{text}; shorten them, or set long_captions: truncate")
    log.warning("%s; their ends are cut off", text)
