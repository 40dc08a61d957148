"""The code version of a step: a digest of the definitions that bear on its result, read without importing anything.

From the entries, such as the stage of a rule and the chosen method, every name is followed to the top-level definition
that it refers to, in this package or in the entry's. The digest is over the sorted set of their normal forms, so that
moving, splitting or renaming modules changes nothing. A name that is bound at run time, such as that of a method in the
configuration, is not seen: the caller gives it as a further entry.
"""

from __future__ import annotations

import functools
import hashlib

from resurgence.provenance.normal_form import normal_form
from resurgence.provenance.references import INFRASTRUCTURE
from resurgence.provenance.source_modules import (
    OTHERS,
    PACKAGE,
    Target,
    file_of,
    find_file,
    look_up,
    read_module,
    tree_of,
    within,
)

__all__ = ["PACKAGE", "code_version", "definitions", "file_of", "find_file", "tree_of"]


def entry_targets(entry: str) -> list[Target]:
    """The definitions that an entry names: all of a module, or the one after a colon or the last dot.

    Raises:
        LookupError: when there is no such module or definition.
    """
    module, _, name = entry.partition(":")
    if not name and find_file(module) is None:
        module, _, name = entry.rpartition(".")
    file = file_of(module or entry)
    if not name:
        return [Target(module, name) for name in read_module(module).statements]
    found = [target for target in look_up(module, name.partition(".")[0]) if target.name]
    if not found:
        raise LookupError(f"{file} defines no {name}; correct the entry {entry!r} of the code version")
    return found


@functools.cache
def definitions(*entries: str, without: tuple[str, ...] = ()) -> frozenset[Target]:
    """The top-level definitions that entries reach and that bear on a result.

    A definition brings the statements that run when its module and the packages around it are imported.

    Args:
        entries: dotted names of modules or definitions; `package.module:name` is a definition too.
        without: dotted names of packages, modules or definitions of which only the entries are followed and what these
            refer to: registries of alternatives.

    Raises:
        LookupError: when an entry is not there.
    """
    ahead = [target for entry in entries for target in entry_targets(entry)]
    found: set[Target] = set()
    while ahead:
        target = ahead.pop()
        if target in found:
            continue
        found.add(target)
        parts = target.path.split(".")
        around = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        ahead += [Target(module, OTHERS) for module in around if find_file(module)]
        left_out = [prefix for prefix in (*INFRASTRUCTURE, *without) if not within(target.path, (prefix,))]
        ahead += [
            other for other in normal_form(target).references if not within(f"{other.path}.{other.name}", left_out)
        ]
    return frozenset(target for target in found if normal_form(target).text)


@functools.cache
def code_version(*entries: str, without: tuple[str, ...] = ()) -> str:
    """16 hexadecimal digits that change when a definition that bears on the result changes; see `definitions`.

    A line of the digest holds the digest of a definition and those of what it refers to, since two modules may define
    the same name.
    """
    found = definitions(*entries, without=without)
    lines = set()
    for target in found:
        form = normal_form(target)
        lines.add(" ".join([form.digest, *(normal_form(other).digest for other in form.references if other in found)]))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
