"""One erasure task: concepts to erase, concepts to retain, and the prompts of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from resurgence.config.fields import ConfigError, Count, Seed, build, known, read_yaml
from resurgence.config.model_path import NAME
from resurgence.config.names import check_distinct, check_names, check_prompts, prompts_of
from resurgence.config.spelling import normal_form

Kind = Literal["person", "object", "character", "style", "content"]
"""Of the concepts; content: what an image shows beside its subject, such as nudity."""


@dataclass(frozen=True)
class Task:
    """Concepts to erase, concepts to retain, and the prompts of both."""

    name: str
    kind: Kind
    erase: tuple[str, ...]
    retain: tuple[str, ...]
    mapping: dict[str, str]  # concept -> mapping concept; in YAML one word may stand for all
    templates: tuple[str, ...]  # of the prompts, "a portrait of the {}"
    seeds: dict[str, Count]  # images per template and concept (or synonym), by role: erase, retain, synonym
    first_seed: Seed | None = None  # image i of each prompt has seed first_seed + i; null: derived seeds (prompts.py)
    synonyms: dict[str, tuple[str, ...]] = field(default_factory=dict)  # prompted with role "synonym"
    finetune: tuple[str, ...] = ()  # random concepts of the same domain, neither erased nor retained
    labels: tuple[str, ...] = ()  # label set of the CLIP accuracy; empty: erase and retain
    erasers: dict[str, dict[str, Any]] = field(default_factory=dict)  # settings for this task: {"mace": {"lamb": 10.0}}
    sensitive: bool | None = None  # pages blur the images until they are clicked; null: of the kind content alone

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError("name", self.name, "use small letters, digits and hyphens: it becomes a folder")
        for key in ("erase", "retain", "templates"):
            if not getattr(self, key):
                raise ConfigError(key, [], "must not be empty; name at least one")
        for key in ("erase", "retain", "finetune", "labels", "templates"):
            for word in getattr(self, key):
                if not normal_form(word):
                    raise ConfigError(key, word, "is empty; write the word or remove the entry")
        for template in self.templates:
            if template.count("{}") != 1 or template.replace("{}", "").count("{"):
                raise ConfigError("templates", template, "must hold {} exactly once, where the concept goes")
        check_distinct(("templates", template) for template in self.templates)
        self._check_synonyms()
        self._check_mapping()
        check_names(self)
        check_prompts(prompts_of(self))
        self._check_seeds()
        if not self.labels:
            object.__setattr__(self, "labels", self.erase + self.retain)
        self._check_labels()

    @property
    def is_sensitive(self) -> bool:
        """Whether pages blur the images of the task until they are clicked."""
        return self.kind == "content" if self.sensitive is None else self.sensitive

    def _check_synonyms(self) -> None:
        for concept, words in self.synonyms.items():
            known("synonyms", concept, self.erase + self.retain)
            if not words:
                raise ConfigError(f"synonyms.{concept}", [], "must not be empty; remove the key or name a synonym")
            for word in words:
                if not normal_form(word):
                    raise ConfigError(f"synonyms.{concept}", word, "is empty; write another word")

    def _check_mapping(self) -> None:
        for concept, target in self.mapping.items():
            known("mapping", concept, self.erase)
            if not normal_form(target):
                raise ConfigError(f"mapping.{concept}", target, "must not be empty; name the concept to map to")
        for concept in self.erase:
            if concept not in self.mapping:
                remedy = f"has no entry for {concept!r}; add one, or write one word for all"
                raise ConfigError("mapping", self.mapping, remedy)

    def _check_labels(self) -> None:
        spellings = {normal_form(label): label for label in self.labels}
        for concept in self.erase + self.retain:
            if concept not in self.labels:
                label = spellings.get(normal_form(concept))
                cure = (
                    f"add {concept!r}" if label is None else f"write {concept!r} instead of {label!r}, as the concept"
                )
                raise ConfigError("labels", list(self.labels), f"{cure}: its images are scored against the labels")

    def _check_seeds(self) -> None:
        for role in self.seeds:
            known("seeds", role, ("erase", "retain", "synonym"))
        for role in ("erase", "retain", *(("synonym",) if self.synonyms else ())):
            if role not in self.seeds:
                raise ConfigError("seeds", self.seeds, f"has no {role!r}; add the images per template and concept")


def make_task(values: Mapping[str, Any], where: str = "task") -> Task:
    """Build a task from a mapping; one word under `mapping` stands for every erased concept."""
    values = dict(values)
    if isinstance(values.get("mapping"), str) and isinstance(values.get("erase"), list | tuple):
        values["mapping"] = {word: values["mapping"] for word in values["erase"] if isinstance(word, str)}
    return build(Task, values, where)


def load_task(path: Path | str) -> Task:
    """Read one task file; raise ConfigError (a ValueError) naming file, key, value and remedy."""
    return make_task(read_yaml(Path(path)), str(path))


class TaskPart:
    """The fields of a task that are among the settings of a job; other fields raise AttributeError.

    Args:
        values: the fields, lists where a Task has tuples. where: the settings, for the message.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        def tuples(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: tuples(inner) for key, inner in value.items()}
            return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value

        vars(self).update({key: tuples(value) for key, value in values.items()})
        vars(self)["_where"] = where

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(sorted(set(vars(self)) - {"_where"}))
        raise AttributeError(f"{self._where} hold no task.{name}, only {known}; add it to workflow/job_settings.py")
