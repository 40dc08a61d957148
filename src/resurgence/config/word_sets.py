"""The words that a task's erased, retained and fine-tuned concepts must not share.

A fine-tuning set that shows "oak tree" after "palm tree" was erased teaches the word "tree" again: what comes back is
not resurgence. The words of a concept are those of its name, its synonyms and the name of its twin, the concept that
differs by gender alone. Words of hypernyms, and those of `shared_words`, say nothing about one concept and may be
shared. A list without `shared_words`, as that of the first miniature, is not checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resurgence.config.fields import ConfigError, known, read_yaml
from resurgence.config.task import Task, load_task
from resurgence.config.world_words import all_entries

if TYPE_CHECKING:
    from resurgence.config.study import Study

LIST = "the concept list"
WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


def single_words(texts: Iterable[str]) -> set[str]:
    """The words of some names, in small letters."""
    return {word for text in texts for word in text.lower().split()}


def words_by_concept(world: Mapping[str, Any], path: str = LIST) -> dict[str, set[str]]:
    """Concept -> the words that are its own: of its name, synonyms and twin, without those that may be shared.

    Args:
        path: of the concept list, for messages.

    Raises:
        ConfigError: a twin that is not in the list, or a list that is not well formed.
    """
    listed = {entry.name: entry for entry in all_entries(world, path)}
    wide = [word for entry in listed.values() for word in entry.hypernyms]
    free = single_words([*world["shared_words"], *wide])
    words = {name: single_words([name, *entry.synonyms]) - free for name, entry in listed.items()}
    for name, entry in listed.items():
        if entry.twin is not None:
            if entry.twin not in listed:
                remedy = "is not a concept of the list; add it or remove the key"
                raise ConfigError(f"{path}: {name}.twin", entry.twin, remedy)
            words[name] |= single_words([entry.twin])
    return words


def check_word_sets(
    sets: Mapping[str, Sequence[str]], world: Mapping[str, Any], synonyms: Mapping[str, Iterable[str]], path: str = LIST
) -> None:
    """Raise ConfigError where concepts of two sets share a word, or one is not in the list.

    Args:
        sets: where a set is written, for the message -> its concepts.
        world: a concept list; without the key `shared_words` nothing is checked.
        synonyms: of the task, which add to those of the list.
        path: of the concept list, for messages.
    """
    if "shared_words" not in world:
        return
    words = words_by_concept(world, path)
    for place, concepts in sets.items():
        for concept in concepts:
            known(place, concept, words)
    for concept, more in synonyms.items():
        words[concept] = words[concept] | single_words(more) - single_words(world["shared_words"])
    for (first, others), (second, concepts) in combinations(sets.items(), 2):
        for concept, other in product(concepts, others):
            if common := sorted(words[concept] & words[other]):
                remedy = f"shares {common[0]!r} with {other!r} of {first}, by name, synonym or twin; take another"
                raise ConfigError(second, concept, remedy)


def erased_words(task: Task, world: Mapping[str, Any], path: str) -> dict[str, str]:
    """The words of the erased concepts, each with its concept; none if the list has no `shared_words`."""
    if "shared_words" not in world:
        return {}
    words = words_by_concept(world, path)
    more = {concept: single_words(task.synonyms.get(concept, ())) for concept in task.erase}
    free = single_words(world["shared_words"])
    return {word: concept for concept in task.erase for word in words[concept] | more[concept] - free}


def check_caption_words(key: str, path: str, captions: Mapping[str, str], erased: Mapping[str, str]) -> None:
    """Raise ConfigError for a caption with a word of an erased concept.

    Args:
        key, path: of the pictures. captions: by the names of the pictures. erased: from `erased_words`.
    """
    for name, caption in captions.items():
        if common := sorted(set(WORD.findall(caption.lower())) & erased.keys()):
            remedy = (f"the caption {caption!r} of {name} holds {common[0]!r}, a word of {erased[common[0]]!r}, which "
                      "is erased, and the set would teach it again; remove that picture")  # fmt: skip
            raise ConfigError(key, path, remedy)


def check_task_words(task: Task, world: Mapping[str, Any], place: str, path: str = LIST) -> None:
    """Raise ConfigError where the erased, retained and fine-tuned concepts of a task share a word; place: its file."""
    sets = {f"{place}: {key}": getattr(task, key) for key in ("erase", "retain", "finetune")}
    check_word_sets(sets, world, task.synonyms, path)


def check_words(study: Study, world: Mapping[str, Any], path: str) -> None:
    """No set of a task, and no fine-tuning set that follows its erasers, shares a word with another."""
    files = {name: f"{study.tasks.folder}/{name}.yaml" for name in study.loaded}
    for name, task in study.loaded.items():
        check_task_words(task, world, files[name], path)
    for name, images in sorted({(c.erasure.task, study.set_of(c.finetune, c.variant)) for c in study.cells()}):
        if not isinstance(study.finetune_sets[images].concepts, str):
            task, shown = study.loaded[name], study.finetune_concepts(images, name)
            sets = {f"{files[name]}: erase": task.erase, f"finetune_sets.{images}.concepts": shown}
            check_word_sets(sets, world, task.synonyms, path)


def check_tuning(study: Study, root: Path) -> None:
    """Raise ConfigError where a study that tunes settings shows what the tasks that it tunes them for score.

    Its erased and retained concepts share no word with theirs, and no image has a seed that is written down.
    """
    folder, concepts = study.tasks.tuning_for, study.tasks.concepts
    if folder is None:
        return
    world = read_yaml(root / concepts) if concepts is not None else {}
    if "shared_words" not in world:
        remedy = "is no list with shared_words, so no words are compared; name one, or remove tasks.tuning_for"
        raise ConfigError("tasks.concepts", concepts, remedy)
    if study.tasks.general is not None:
        remedy = "holds prompts and seeds of images that are scored; remove it from a study with tasks.tuning_for"
        raise ConfigError("tasks.general", study.tasks.general, remedy)
    scored = [load_task(path) for path in sorted((root / folder).glob("*.yaml"))]
    if not scored:
        raise ConfigError("tasks.tuning_for", folder, "holds no tasks; write the folder of those that are scored")
    names = dict.fromkeys(concept for task in scored for concept in (*task.erase, *task.retain))
    synonyms = {concept: words for task in scored for concept, words in task.synonyms.items()}
    for name, task in study.loaded.items():
        file = f"{study.tasks.folder}/{name}.yaml"
        if task.first_seed is not None:
            raise ConfigError(f"{file}: first_seed", task.first_seed, "may be the seed of an image that is scored, and "
                              "settings are tuned here; remove it")  # fmt: skip
        for key in ("erase", "retain"):
            sets = {folder: tuple(names), f"{file}: {key}": getattr(task, key)}
            check_word_sets(sets, world, synonyms | task.synonyms, str(concepts))
