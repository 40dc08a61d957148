"""Names of concepts that must differ: compared as normalised text, and by tokens once there is a tokenizer.

The comparison is a `Form`, which gives equal values for equal names: `TEXT`, or what `token_form` makes of a tokenizer.
A model reads tokens, so two spellings with the same tokens are one concept to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from resurgence.config.fields import ConfigError
from resurgence.config.spelling import normal_form

if TYPE_CHECKING:
    from resurgence.config.task import Task, TaskPart

Named = tuple[str, str]  # the key of the configuration that holds a name, and the name


class Form(NamedTuple):
    """What equal names share, and its word for messages."""

    of: Callable[[str], Hashable]
    noun: str


TEXT = Form(normal_form, "text (case, white space and Unicode form do not count)")


def token_form(tokenizer: Callable[..., Any]) -> Form:
    """Names compared by the tokens that the model reads of them; the tokenizer is one of transformers."""
    return Form(lambda text: tuple(tokenizer(text, add_special_tokens=False).input_ids), "tokens")


def spelled(form: Form, word: str, other: str, where: str, key: str = "") -> str:
    """How a word, in `key`, collides with another, in `where`."""
    if word != other:
        return f"has the same {form.noun} as {other!r} in {where}"
    return "is listed twice" if key == where else f"is also in {where}"


def check_distinct(names: Iterable[Named], form: Form = TEXT, remedy: str = "") -> None:
    """Raise ConfigError for a name that an earlier one equals, with both spellings and both keys."""
    before: dict[Hashable, Named] = {}
    for key, word in names:
        if (value := form.of(word)) in before:
            where, other = before[value]
            cure = remedy or ("remove one" if where == key else f"remove it from {key} or from {where}")
            raise ConfigError(key, word, f"{spelled(form, word, other, where, key)}; {cure}")
        before[value] = (key, word)


def check_apart(names: Iterable[Named], others: Iterable[Named], remedy: str, form: Form = TEXT) -> None:
    """Raise ConfigError for a name that equals one of the others, with both spellings and both keys."""
    taken = {form.of(word): (key, word) for key, word in others}
    for key, word in names:
        if (value := form.of(word)) in taken:
            where, other = taken[value]
            raise ConfigError(key, word, f"{spelled(form, word, other, where)}; {remedy}")


def erased_names(task: Task | TaskPart) -> list[Named]:
    """The erased concepts and their synonyms; those fields that the task has."""
    synonyms: Mapping[str, Iterable[str]] = getattr(task, "synonyms", {})
    words = [(f"synonyms.{c}", word) for c in task.erase for word in synonyms.get(c, ())]
    return [*(("erase", concept) for concept in task.erase), *words]


def check_names(task: Task | TaskPart, form: Form = TEXT) -> None:
    """Raise ConfigError for names of a task that must differ and are equal.

    Concepts to erase, to retain and to fine-tune on, and all synonyms, differ from each other, and so do the labels. A
    mapping concept is none of the erased concepts and their synonyms; one that several concepts share has one spelling.
    A task of a job may lack fields.
    """
    concepts = [(key, word) for key in ("erase", "retain", "finetune") for word in getattr(task, key, ())]
    check_distinct(concepts, form)
    synonyms = [(f"synonyms.{c}", word) for c, words in getattr(task, "synonyms", {}).items() for word in words]
    check_apart(synonyms, concepts, "write another word, its images would be those of that concept", form)
    check_distinct(synonyms, form)
    check_distinct([("labels", label) for label in getattr(task, "labels", ())], form)
    check_mapping(getattr(task, "mapping", {}), task, form)


def check_mapping(mapping: Mapping[str, str], task: Task | TaskPart, form: Form = TEXT, key: str = "mapping") -> None:
    """Raise ConfigError for a mapping concept that is erased: nothing, or the wrong concept, would be erased.

    Args:
        mapping: erased concept -> mapping concept. key: of the configuration, where the mapping is from.
    """
    for concept, target in mapping.items():
        if form.of(target) == form.of(concept):
            same = "maps the concept to itself" if target == concept else f"has the same {form.noun} as the concept"
            raise ConfigError(f"{key}.{concept}", target, f"{same}, so nothing would be erased; name a wider concept")
    aims = [(f"{key}.{concept}", target) for concept, target in mapping.items()]
    check_apart(aims, erased_names(task), "it is itself erased; name a concept that stays", form)
    spellings = {target: where for where, target in aims}
    check_distinct([(where, target) for target, where in spellings.items()], form, "write both the same way")


def prompts_of(task: Task) -> Iterator[dict[str, str]]:
    """The prompts of a task with concept, role and template, in the order of the prompt set."""
    words = {"erase": [(c, c) for c in task.erase], "retain": [(c, c) for c in task.retain]}
    words["synonym"] = [(concept, word) for concept, synonyms in task.synonyms.items() for word in synonyms]
    for role, pairs in words.items():
        for (concept, word), template in itertools.product(pairs, task.templates):
            yield {"prompt": template.replace("{}", word), "concept": concept, "role": role, "template": template}


def check_prompts(rows: Iterable[Mapping[Any, Any]], form: Form = TEXT) -> None:
    """Raise ConfigError for equal prompts of different concepts, roles or templates: their images would be equal.

    Args:
        rows: of a prompt set, with the keys prompt, concept, role and template; those of role general are not compared.
    """
    owners: dict[Hashable, Mapping[Any, Any]] = {}
    for row in (row for row in rows if row["role"] != "general"):
        owner = owners.setdefault(form.of(row["prompt"]), row)
        if any(owner[key] != row[key] for key in ("prompt", "role", "concept", "template")):
            use, where = (
                f"role {r['role']}, concept {r['concept']!r}, template {r['template']!r}" for r in (row, owner)
            )
            collision = spelled(form, row["prompt"], owner["prompt"], where)
            remedy = "so their images would be the same; remove a concept, synonym or template from the task"
            raise ConfigError("prompt", row["prompt"], f"({use}) {collision}, {remedy}")
