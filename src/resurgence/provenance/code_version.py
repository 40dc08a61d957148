"""The code version of a step: a digest of the definitions that bear on its result, read without importing anything.

From the entries, such as the stage of a rule and the chosen method, every name is followed to the top-level definition
that it refers to, in this package or in the entry's. The digest is over the sorted set of their normal forms, so that
moving, splitting or renaming modules changes nothing. A name that is bound at run time, such as that of a method in the
configuration, is not followed: the caller passes it as a further entry.
"""

from __future__ import annotations

import functools
import hashlib

from resurgence.provenance.normal_form import INFRASTRUCTURE, normal_form
from resurgence.provenance.source_modules import OTHERS, Target, file_of, find_file, follow, read_module, within


def entry_targets(entry: str) -> list[Target]:
    """The definitions that an entry names: all of a module, or the one after a colon or the last dot.

    Raises:
        LookupError: no such module or definition is installed.
    """
    module, _, name = entry.partition(":")
    if not name and find_file(module) is None:
        module, _, name = entry.rpartition(".")
    file = file_of(module or entry)
    if not name:
        return [Target(module, key) for key in read_module(module).statements]
    pairs = follow(module, (name.partition(".")[0],), module.partition(".")[0])
    if not (targets := [target for target, _ in pairs if target.name]):
        raise LookupError(f"{file} defines no {name}; correct the entry {entry!r} of the code version")
    return targets


@functools.cache
def definitions(*entries: str, without: tuple[str, ...] = ()) -> frozenset[Target]:
    """The top-level definitions that entries reach and that bear on a result.

    A definition brings the statements that run when its module and the packages around it are imported.

    Args:
        entries: dotted names of modules or definitions; `package.module:name` is a definition too.
        without: dotted names of packages, modules or definitions of which only the entries are followed and what these
            refer to: registries of alternatives.

    Raises:
        LookupError: no such module or definition is installed.
    """
    ahead = [target for entry in entries for target in entry_targets(entry)]
    reached: set[Target] = set()
    while ahead:
        target = ahead.pop()
        if target in reached:
            continue
        reached.add(target)
        parts = target.path.split(".")
        ahead += [Target(".".join(parts[:count]), OTHERS) for count in range(1, len(parts) + 1)]
        left_out = [prefix for prefix in (*INFRASTRUCTURE, *without) if not within(target.path, (prefix,))]
        ahead += [t for t in normal_form(target).references if not within(f"{t.path}.{t.name}", left_out)]
    return frozenset(target for target in reached if normal_form(target).text)


@functools.cache
def code_version(*entries: str, without: tuple[str, ...] = ()) -> str:
    """16 hexadecimal digits that change when a definition that bears on the result changes; see `definitions`.

    A line of the digest holds the digest of a definition and those of what it refers to, since two modules may define
    the same name.
    """
    reached = definitions(*entries, without=without)
    lines = set()
    for target in reached:
        form = normal_form(target)
        lines.add(" ".join([form.digest, *(normal_form(t).digest for t in form.references if t in reached)]))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
