"""The kinds of concepts that an audit judges: which words are of a kind, and who says whether an image shows one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resurgence.config.audit import AuditKindName
from resurgence.config.fields import ConfigError
from resurgence.config.spelling import normal_form
from resurgence.config.task import Kind, Task
from resurgence.files import read_lines, read_rows, resolve_path


@dataclass(frozen=True)
class AuditKind:
    """One kind. Of its words are also the concepts of the shipped tasks that have it."""

    kind: Kind | None = None
    """Of its tasks; null: the name of the kind itself."""
    task: str | None = None
    """File of the task that audits of the kind follow; null: the shipped one of the same concepts, else the largest."""
    words: tuple[str, ...] = ()
    """That are of the kind."""
    lists: tuple[str, ...] = ()
    """Files with more of them, one a line or in a column `concept`; what belongs to weights may be missing."""
    scorers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Scorer -> its settings for the kind, over those of the base."""
    metric: str | None = None
    """Whether an image shows its concept; null: the base's."""
    detector: str | None = None
    """Metric of a detector, instead of `metric` where its weights are there and know all concepts by name."""
    retained_metric: str | None = None
    """The same of the retained concepts, which then are of other kinds; null: `metric`."""
    sensitive: bool = False
    """Whether the card hides the images until they are clicked."""


Kinds = Mapping[AuditKindName, AuditKind]


def spellings(words: Iterable[str]) -> frozenset[str]:
    """Words without what their spelling does not mean."""
    return frozenset(map(normal_form, words))


def task_kind(name: AuditKindName, entry: AuditKind) -> Kind:
    """The kind of the tasks of an entry."""
    return entry.kind or name  # type: ignore[return-value]  # nudity alone is no kind of task


def listed_words(file: str) -> list[str]:
    """The words of a list; none where it is not there."""
    path = Path(resolve_path(file))
    if not path.is_file():
        return []
    return [row["concept"] for row in read_rows(path)] if path.suffix == ".csv" else read_lines(path)


def words_of(name: AuditKindName, entry: AuditKind, tasks: Sequence[Task]) -> frozenset[str]:
    """The words of a kind, as `spellings`."""
    of_kind = [task for task in tasks if task.kind == task_kind(name, entry)]
    words = [*entry.words, *(word for file in entry.lists for word in listed_words(file))]
    for task in of_kind:
        words += [*task.erase, *(word for of in task.synonyms.values() for word in of)]
        words += [*task.retain, *task.finetune] if entry.retained_metric is None else []
    return spellings(words)


def as_listed(words: Iterable[str], lists: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Words in the spelling of the first list that has them in any; as they are where none has, or has them so too."""
    groups: list[dict[str, dict[str, None]]] = []
    for group in lists:
        by_form: dict[str, dict[str, None]] = {}
        for word in group:
            by_form.setdefault(normal_form(word), {})[word] = None
        groups.append(by_form)
    found = [(word, next((of[normal_form(word)] for of in groups if normal_form(word) in of), {})) for word in words]
    return tuple(word if word in spelled or not spelled else next(iter(spelled)) for word, spelled in found)


def kind_of(
    kinds: Kinds, tasks: Sequence[Task], erased: Sequence[str], kind: AuditKindName | None
) -> tuple[AuditKindName, tuple[str, ...]]:
    """The kind of erased concepts, and those of them that are on no list of any kind.

    Args:
        kind: the kind that the command line names; None: by the lists, the first of `kinds` for a word on none.

    Raises:
        ConfigError: concepts of several kinds, or a kind that the base does not have.
    """
    if kind is not None and kind not in kinds:
        raise ConfigError("--kind", kind, f"this base has none; name one of {', '.join(kinds)}")
    words = {name: words_of(name, entry, tasks) for name, entry in kinds.items()}
    first = {word: next((name for name in kinds if normal_form(word) in words[name]), None) for word in erased}
    unknown = tuple(word for word, name in first.items() if name is None)
    if kind is not None:
        return kind, unknown
    possible = dict.fromkeys(name for name in first.values() if name is not None)
    for name in possible:  # a word may be of several kinds
        if all(normal_form(word) in words[name] for word in erased if word not in unknown):
            return name, unknown
    if possible:
        by_word = ", ".join(f"{word}: {name or 'unknown'}" for word, name in first.items())
        raise ConfigError("--erased", list(erased), f"are of several kinds ({by_word}); audit each kind by itself, or "
                          "name one with --kind")  # fmt: skip
    return next(iter(kinds)), unknown
