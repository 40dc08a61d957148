"""Prompt sets: which prompts are sampled with which seeds.

The seed of an image depends only on its prompt and its number, so base, erased and fine-tuned models, and all tasks
that share a prompt, are compared on the same initial noise. In published prompt lists the images of a prompt have
consecutive seeds from a first one; a task may have them too. A row is one image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from resurgence.seeds import seed_of

if TYPE_CHECKING:
    from resurgence.config.task import Task

COLUMNS = ("prompt", "concept", "role", "template", "seed", "index")


def row(
    prompt: str, concept: str, role: str, template: str, index: int, purpose: str = "image", first: int | None = None
) -> dict[str, object]:
    """One image: the index-th of its prompt. Images of another `purpose` have other noise.

    Args:
        first: seed of the prompt's first image, followed by consecutive ones; None: by purpose, prompt and index.
    """
    seed = seed_of(purpose, prompt, index) if first is None else first + index
    return dict(zip(COLUMNS, (prompt, concept, role, template, seed, index), strict=True))


def expand(
    words: Iterable[tuple[str, str]],
    templates: Sequence[str],
    count: int,
    role: str,
    purpose: str = "image",
    first: int | None = None,
) -> list[dict[str, object]]:
    """Return `count` rows for each (concept, word) in each template; the word replaces {}."""
    return [
        row(template.replace("{}", word), concept, role, template, index, purpose, first)
        for concept, word in words
        for template in templates
        for index in range(count)
    ]


def prompt_set(
    task: Task,
    general: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    concepts: Sequence[str] | None = None,
    purpose: str = "image",
) -> pd.DataFrame:
    """Return the rows on which the models of a task are sampled: erase, retain, synonym, general, in this order.

    Args:
        general: captions of any content, one image each; a repeated caption has the next index.
        seeds: one for each of these captions; None: by caption and index.
        concepts: the concept that each of them shows, or "", none; None: none at all.
        purpose: of the images; those of another purpose have other noise, unless the task has a first seed.

    Returns:
        Columns prompt, concept, role, template, seed, index. In the role synonym the concept is the erased or retained
        one and the prompt contains its synonym; in the role general the template is empty, and without `concepts` the
        concept.
    """
    synonyms = [(concept, word) for concept, words in task.synonyms.items() for word in words]
    words = {"erase": [(c, c) for c in task.erase], "retain": [(c, c) for c in task.retain], "synonym": synonyms}
    rows = []
    for role, pairs in words.items():
        rows += expand(pairs, task.templates, task.seeds.get(role, 0), role, purpose, task.first_seed)
    images = Counter(str(r["prompt"]) for r in rows)
    for number, caption in enumerate(general):
        concept = "" if concepts is None else concepts[number]
        rows.append(row(caption, concept, "general", "", images[caption]))
        if seeds is not None:
            rows[-1]["seed"] = int(seeds[number])
        images[caption] += 1
    return pd.DataFrame(rows, columns=list(COLUMNS))
