"""What an audit takes for a model by its base: prompts, updates and scorers, from config/audit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from resurgence.config.audit import AuditKindName, Criteria, ShippedControl
from resurgence.config.audit_kinds import AuditKind, as_listed, listed_words, spellings, task_kind
from resurgence.config.fields import build, read_yaml
from resurgence.config.spelling import normal_form
from resurgence.config.task import Kind, Task, load_task
from resurgence.files import read_json, resolve_path

BASES, CRITERIA = "config/audit/bases.yaml", "config/audit/criteria.yaml"
OTHER = "other"
MOST = 16  # concepts that pictures show
WORLD = ("concepts", "characters", "styles")
"""Lists in the file of a base's world; each entry has its kind."""


@dataclass(frozen=True)
class AuditBase:
    """The entry of a base."""

    folder: str | None
    tasks: str | tuple[str, ...]
    concepts: str | None
    captions: str
    general: str
    drawings: str | None
    sampling: dict[str, Any]
    scorers: dict[str, dict[str, Any]]
    metric: str
    lora: dict[str, Any]
    full: dict[str, Any]
    leaking: dict[str, Any]
    shipped: tuple[ShippedControl, ...]
    world: str = "config/world.yaml"
    kinds: dict[AuditKindName, AuditKind] = field(default_factory=dict)

    def controls(self, task: Task) -> tuple[ShippedControl, ...]:
        """The shipped controls for an audit of a task: of its kind, one to be found and one not to be found, if
        possible of concepts that the task does not erase."""
        of_kind = [control for control in self.shipped if control.domain == task.kind]
        apart = sorted(of_kind, key=lambda control: not set(control.concepts).isdisjoint(task.erase))  # stable
        first = {control.kind: control for control in reversed(apart)}
        return tuple(first[kind] for kind in ("leaking", "untaught") if kind in first)

    def no_control(self, task: Task, changes: Sequence[str]) -> str:
        """Why an audit of a task without an original has no shipped model that leaks; empty: it has one.

        Args:
            changes: options of the command line that make the probe another than that of the shipped models.
        """
        if not any(control.kind == "leaking" for control in self.controls(task)):
            return f"none is shipped for concepts of the kind {task.kind}; with --original BASE one is made"
        if not changes:
            return ""
        verb = "makes" if len(changes) == 1 else "make"
        return (f"{', '.join(changes)} {verb} the probe another than that of the shipped model, so its result does not "
                "count; with --original BASE one is made")  # fmt: skip

    def loaded_tasks(self) -> list[Task]:
        """The shipped tasks of the base, in the order of their folders and files."""
        folders = (self.tasks,) if isinstance(self.tasks, str) else self.tasks
        return [load_task(path) for part in folders for path in sorted(Path(resolve_path(part)).glob("*.yaml"))]


def base_of(model: Path) -> AuditBase:
    """The entry of the base with the vocabulary of a model, else that of any other Stable Diffusion."""
    entries, words = bases(), vocabulary(model)
    for name, entry in entries.items():
        if name != OTHER and words and words == vocabulary(Path(resolve_path(entry.folder or ""))):
            return entry
    return entries[OTHER]


def vocabulary(model: Path) -> dict[str, int]:
    """Token -> number of the tokenizer in a diffusers folder; empty where there is none."""
    whole, plain = model / "tokenizer/tokenizer.json", model / "tokenizer/vocab.json"
    if whole.is_file():
        words: dict[str, int] = read_json(whole)["model"]["vocab"]
        return words
    return read_json(plain) if plain.is_file() else {}


def bases() -> dict[str, AuditBase]:
    """The entries of all bases by name."""
    return {
        name: build(AuditBase, block, f"{BASES}: {name}")
        for name, block in read_yaml(Path(resolve_path(BASES))).items()
    }


def read_criteria(file: Path | None) -> Criteria:
    """The shipped criteria, with those of a file in their place."""
    changes = {} if file is None else read_yaml(file)
    return build(Criteria, read_yaml(Path(resolve_path(CRITERIA))) | changes, CRITERIA if file is None else str(file))


def kinds_of(base: AuditBase, tasks: Sequence[Task]) -> dict[AuditKindName, AuditKind]:
    """The kinds that audits of a base judge: its own entries, else those of its tasks with the words of its world."""
    if base.kinds or base.concepts is None:
        return base.kinds
    world, kinds = read_yaml(Path(resolve_path(base.concepts))), {task.kind for task in tasks}
    entries = [entry for part in WORLD for entry in world.get(part, ())]
    return {
        name: AuditKind(words=tuple(word for entry in entries if entry["kind"] == name
                                    for word in (entry["name"], *entry.get("synonyms", ()))))
        for name in get_args(AuditKindName) if name in kinds
    }  # fmt: skip


def listed(base: AuditBase, tasks: Sequence[Task], words: Sequence[str]) -> tuple[str, ...]:
    """Concepts of a command line in the spelling of the base's lists, by which synonyms, mapping and labels are found:
    of what its tasks erase and its world has, else of what else its tasks and kinds name."""
    first = [*(word for task in tasks for word in task.erase), *of_world(base)]
    others = [word for task in tasks for word in (*task.retain, *task.finetune, *task.labels)]
    others += [word for task in tasks for of in task.synonyms.values() for word in of]
    others += [word for kind in kinds_of(base, tasks).values() for word in kind.words]
    files = (file for kind in kinds_of(base, tasks).values() for file in kind.lists)
    return as_listed(words, (first, others, (word for file in files for word in listed_words(file))))


def erased_names(erased: Sequence[str]) -> tuple[str, ...]:
    """Erased concepts with their synonyms in every base's tasks and world, and the concepts that have one of them as a
    synonym with theirs: what no picture of any audit of them may show."""
    names = dict.fromkeys(erased)
    for base in bases().values():
        tasks = base.loaded_tasks()
        for concept in (*listed(base, tasks, erased), *named_also(tasks, erased)):
            names[concept] = None
            for task in tasks:
                names |= dict.fromkeys(task.synonyms.get(concept, ()))
            names |= dict.fromkeys(of_world(base).get(concept, ()))
    return tuple({normal_form(name): name for name in reversed(names)}.values())[::-1]


def of_world(base: AuditBase) -> dict[str, tuple[str, ...]]:
    """Concept -> its synonyms, of the world of a base."""
    world = {} if base.concepts is None else read_yaml(Path(resolve_path(base.concepts)))
    return {entry["name"]: tuple(entry.get("synonyms", ())) for part in WORLD for entry in world.get(part, ())}


def synonyms_of(base: AuditBase, task: Task, erased: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Erased concept -> its synonyms, where it has some: of the task if that erases it, else of the base's world."""
    world = of_world(base)
    others = {concept: world.get(concept, ()) for concept in erased if concept not in task.erase}
    words = {concept: task.synonyms.get(concept, others.get(concept, ())) for concept in erased}
    return {concept: of for concept, of in words.items() if of}


def named_also(tasks: Sequence[Task], words: Collection[str]) -> tuple[str, ...]:
    """The concepts of tasks that have one of some words as a synonym, as ship has boat."""
    wanted = spellings(words)
    pairs = (pair for task in tasks for pair in task.synonyms.items())
    return tuple(dict.fromkeys(concept for concept, of in pairs if not wanted.isdisjoint(spellings(of))))


def model_task(base: AuditBase, erased: Sequence[str], name: AuditKindName) -> Task:
    """The shipped task that an audit of a kind follows in what the command line leaves open: that of the kind's entry,
    else that of the same erased concepts, else the largest of the kind."""
    tasks = base.loaded_tasks()
    entry = kinds_of(base, tasks)[name]
    if entry.task is not None:
        return load_task(resolve_path(entry.task))
    of_kind = [task for task in tasks if task.kind == task_kind(name, entry)]
    same = [task for task in of_kind if set(task.erase) == set(erased)]
    return same[0] if same else max(of_kind, key=lambda task: (len(task.retain), len(task.finetune)))


def benign_concepts(base: AuditBase, model: Task, taken: Collection[str]) -> tuple[str, ...]:
    """Concepts of the kind that pictures of a model may show: those on which the shipped task fine-tunes, else those of
    other tasks; none of those taken."""
    taken = spellings(taken)
    if listed := tuple(word for word in model.finetune if normal_form(word) not in taken):
        return listed
    tasks = [task for task in base.loaded_tasks() if task.kind == model.kind]
    words = (word for task in tasks for word in (*task.finetune, *task.retain, *task.erase))
    return tuple(dict.fromkeys(word for word in words if normal_form(word) not in taken))[:MOST]


def outside_concepts(base: AuditBase, kind: Kind) -> tuple[str, ...]:
    """Concepts of another kind, on which shipped tasks fine-tune or which they retain; none without another kind."""
    others = [task.finetune or task.retain for task in base.loaded_tasks() if task.kind != kind]
    return max(others, key=len)[:MOST] if others else ()
