"""What else differs between the two sides of a claim that compares cells.

A comparison decides its claim only if it holds everything else equal. So every setting in which the sides differ is
listed beside the verdict, the one that the claim is about among them: two erased models with other mappings, weights or
numbers of concepts are then seen to be no experiment on one of these alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from resurgence.config.experiment_cells import NOT_TUNED, cells_of, row_of
from resurgence.config.finetune_sets import MAKERS

if TYPE_CHECKING:
    from resurgence.config.experiment import Claim
    from resurgence.config.study import Cell, Study

LONGEST = 30  # characters of a value that is printed; longer ones are only said to differ


def settings_of(study: Study, cell: Cell) -> dict[str, Any]:
    """Everything that a cell is made of, but its names and seeds: task, settings of eraser and fine-tune, its set.

    Of erasures one after the other, what all of them erase, and the settings of each where they differ.
    """
    erasure, steps = cell.erasure, study.chain(cell.erasure)
    tasks = [study.task(step.task, step.eraser, step.variant) for step in steps]
    settings: dict[str, Any] = {
        "erased": frozenset(concept for task in tasks for concept in task.erase),
        "erasures one after the other": len(steps),
        "mapping": frozenset(word for task in tasks for word in task.mapping.values()),
        "retained": frozenset(tasks[-1].retain),
        "templates": tasks[-1].templates,
    }
    *earlier, last = (study.eraser_settings(step.task, step.eraser, step.variant) for step in steps)
    for key, value in last.items():
        same = all(step.get(key, value) == value for step in earlier)
        settings[key] = value if same else tuple(step.get(key) for step in (*earlier, last))
    if cell.finetune == NOT_TUNED:
        return settings
    set_name = study.set_of(cell.finetune, cell.variant)
    tuned = study.finetune_settings(cell.finetune, cell.variant)
    tuned.pop("checkpoints", None)  # they change no weight, and claims are about the last
    tuned |= {"set": set_name, "concepts": frozenset(study.finetune_concepts(set_name, erasure.task))}
    maker = study.finetune_sets[set_name].maker
    tuned |= {"images made by": MAKERS[maker], "captions": "of the pictures" if maker == "real" else "of the prompts"}
    return settings | {f"fine-tune {key}": value for key, value in tuned.items()}


def differences(study: Study, experiment: str, claim: Claim) -> str:
    """The settings in which `of` and `against` of a claim differ, with both values; empty where there is no `against`.

    Settings that only one of two erasers has, or that mean something else in each, are left out: the methods differ
    as a whole.
    """
    if claim.against is None:
        return ""
    rows = [(row_of(study, cell), cell) for cell in cells_of(study, experiment)]
    sides, methods = [], set()
    for cells in (claim.of, claim.against):
        chosen = dataclasses.replace(cells, role="erase", concept=None)
        held = [cell for row, cell in rows if chosen.holds({**row, "role": "erase"})]
        sides.append([settings_of(study, cell) for cell in held])
        configs = (study.erasers[step.eraser].config for cell in held for step in study.chain(cell.erasure))
        methods |= {config for config in configs if config is not None}
    other = set().union(*(method.own_meaning for method in methods)) if len(methods) > 1 else set()
    shared = [key for key in sides[0][0] if all(key in settings for settings in (*sides[0], *sides[1]))]
    shared = [key for key in shared if key not in other]
    texts = []
    for key in shared:
        left, right = (unique(settings[key] for settings in side) for side in sides)
        if left != right:
            texts.append(f"{key.replace('_', ' ')}{both(left, right)}")
    return ", ".join(texts)


def unique(values: Iterable[Any]) -> list[Any]:
    """The different values in their order; they need not be hashable."""
    different: list[Any] = []
    for value in values:
        if value not in different:
            different.append(value)
    return different


def both(left: list[Any], right: list[Any]) -> str:
    """The values of both sides in parentheses; sets of concepts by what one has more, or by their sizes."""
    if len(left) == len(right) == 1 and isinstance(left[0], frozenset) and isinstance(right[0], frozenset):
        a, b = left[0], right[0]
        if max(len(a), len(b)) > 2:
            return f" ({len(a)} against {len(b)}, {len(a & b)} in both)"
    texts = [" or ".join(value_text(value) for value in side) for side in (left, right)]
    return f" ({' against '.join(texts)})" if max(map(len, texts)) <= LONGEST else ""


def value_text(value: Any) -> str:
    """A value as it is written in a study; sets and lists by their members; a text without letters in quotes."""
    if isinstance(value, frozenset | tuple | list):
        members = sorted(value) if isinstance(value, frozenset) else value
        return " + ".join(quoted(str(member)) for member in members) or "none"
    if isinstance(value, Mapping):
        return " + ".join(f"{key}: {value_text(inner)}" for key, inner in value.items())
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else quoted(value)


def quoted(value: Any) -> str:
    """A value as text, in quotes if it is empty or white space, as EAP's preserved caption may be."""
    return str(value) if str(value).strip() else f'"{value}"'
