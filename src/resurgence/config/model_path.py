"""Models by their path: a task, and the sequence of steps from the base to the model.

`ship` is the base itself on the task ship, `ship/mace/s0` the model that MACE erased with seed 0, and
`ship/mace/s0/lora/f0` that one fine-tuned. Steps follow one another in any order and number:
`ship/mace/s0/lora/f0/uce/s0`. Erasures one after the other, `ship/uce.first/s0/uce.second/s0`, have one seed; the last
model is `uce.first+uce.second` in tables and experiments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

DEFAULT = "default"  # the variant that is not written in names
THEN = "+"  # between the names of erasures one after the other
Kind = Literal["erase", "finetune"]
State = Literal["base", "erased", "finetuned"]
LETTERS: dict[Kind, str] = {"erase": "s", "finetune": "f"}
STATES: dict[Kind, State] = {"erase": "erased", "finetune": "finetuned"}
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
"""Of a base, task, eraser, fine-tune, variant or set: it becomes a folder."""
STEP = rf"{NAME.pattern}(\.{NAME.pattern})?"
"""Of a method and its variant, as `method_name` writes them; a regular expression."""
EARLIER = rf"({STEP}/{LETTERS['erase']}\d+/)*"
"""Of the erasures before another in a model's path; a regular expression."""
MODEL = re.compile(rf"{NAME.pattern}(/{STEP}/[{''.join(LETTERS.values())}]\d+)*")
"""Of a model's path."""
EXPERIMENT = re.compile(r"[a-z][a-z0-9_]*")
"""Of an experiment: it becomes the name of a rule."""
WILDCARDS = {
    **dict.fromkeys(("base", "task", "set"), NAME.pattern),
    "eraser": EARLIER + STEP,
    "finetune": STEP,
    **dict.fromkeys(("erase_seed", "finetune_seed"), r"\d+"),
    "model": MODEL.pattern,
    "experiment": EXPERIMENT.pattern,
}
"""Wildcard of a path below results/ -> its regular expression."""


def method_name(method: str, variant: str = DEFAULT) -> str:
    """Name of a method's variant: `mace`, or `mace.to-object`."""
    return method if variant in (DEFAULT, "") else f"{method}.{variant}"


def split_name(name: str) -> tuple[str, str]:
    """Method and variant of a name; the inverse of `method_name`."""
    method, _, variant = name.partition(".")
    return method, variant or DEFAULT


@dataclass(frozen=True)
class Step:
    """One step of a model: a variant of an eraser or of a fine-tune, and its seed."""

    kind: Kind
    method: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """`mace`, or `mace.to-object`."""
        return method_name(self.method, self.variant)

    def __str__(self) -> str:
        return f"{self.name}/{LETTERS[self.kind]}{self.seed}"


@dataclass(frozen=True)
class ModelPath:
    """A model: the base after a sequence of steps, for the prompts of a task."""

    task: str
    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        return "/".join([self.task, *map(str, self.steps)])

    @classmethod
    def parse(cls, text: str) -> ModelPath:
        """Read a path.

        Raises:
            ValueError: the text is not the path of a model.
        """
        if not MODEL.fullmatch(text):
            raise ValueError(f"{text!r} is not the path of a model; write TASK, or TASK/ERASER/sSEED/FINETUNE/fSEED")
        task, *parts = text.split("/")
        kinds = {letter: kind for kind, letter in LETTERS.items()}
        steps = []
        for name, seed in zip(parts[::2], parts[1::2], strict=True):
            steps.append(Step(kinds[seed[0]], *split_name(name), int(seed[1:])))
        return cls(task, tuple(steps))

    def then(self, kind: Kind, method: str, variant: str, seed: int) -> ModelPath:
        """The model after one more step."""
        return ModelPath(self.task, (*self.steps, Step(kind, method, variant, seed)))

    def prefixes(self) -> list[ModelPath]:
        """The models along the sequence: after the first step, after the second, ..., this one."""
        return [ModelPath(self.task, self.steps[: number + 1]) for number in range(len(self.steps))]

    @property
    def base(self) -> ModelPath:
        """The base on the same task."""
        return ModelPath(self.task)

    @property
    def state(self) -> State:
        """Base, erased or fine-tuned, by the last step."""
        return STATES[self.steps[-1].kind] if self.steps else "base"

    def last(self, kind: str) -> Step | None:
        """The last step of a kind; None without one."""
        return next((step for step in reversed(self.steps) if step.kind == kind), None)

    def columns(self) -> dict[str, Any]:
        """Task, eraser, fine-tune, their variants and seeds, and state, as the columns of the tables."""
        values: dict[str, Any] = {"task": self.task, "state": self.state}
        if step := self.last("erase"):
            *earlier, _ = (step.name for step in self.steps if step.kind == "erase")
            eraser = THEN.join([*earlier, step.method])
            values |= {"eraser": eraser, "variant": step.variant, "erase_seed": step.seed}
        if step := self.last("finetune"):
            values |= {"finetune": step.method, "finetune_variant": step.variant, "finetune_seed": step.seed}
        return values

    @classmethod
    def of_columns(cls, row: Mapping[str, Any]) -> ModelPath:
        """The model of a row of a table, from task, eraser, fine-tune, variants and seeds; empty: no such step."""
        model = cls(row["task"])
        if row.get("eraser"):
            *earlier, last = row["eraser"].split(THEN)
            for method, variant in (*map(split_name, earlier), (last, row["variant"] or DEFAULT)):
                model = model.then("erase", method, variant, int(row["erase_seed"]))
        if row.get("finetune"):
            seed = int(row["finetune_seed"])
            model = model.then("finetune", row["finetune"], row["finetune_variant"] or DEFAULT, seed)
        return model
