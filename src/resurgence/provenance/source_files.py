"""The source files that a step reaches by import: what the rules list until they ask for the code version instead."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from resurgence.provenance.source_modules import PACKAGE, file_of, find_file, tree_of


def imported(node: ast.AST, packages: frozenset[str]) -> set[str]:
    """Dotted names below a node that are imported from these packages."""
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
        return set()
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if find_file(name) else node.module for name in names if name.split(".")[0] in packages]
    found = {name for name in names if name.split(".")[0] in packages and find_file(name)}
    return found.union(*(imported(child, packages) for child in ast.iter_child_nodes(node)))


def has_code(file: Path) -> bool:
    """Whether a package's __init__ does more than hold a docstring and constants."""
    body = tree_of(file).body
    return any(not isinstance(n, ast.Expr) and not isinstance(getattr(n, "value", None), ast.Constant) for n in body)


def parents(module: str) -> set[str]:
    """The packages around a module whose __init__ holds code."""
    parts = module.split(".")
    around = {".".join(parts[:i]) for i in range(1, len(parts))}
    return {name for name in around if (file := find_file(name)) is not None and has_code(file)}


@functools.cache
def sources(*modules: str, without: tuple[str, ...] = ()) -> tuple[Path, ...]:
    """Files of the modules and of all that they import from this package or their own, each once, sorted.

    Args:
        modules: dotted names. without: beginnings of dotted names that are left out, and what only they import.

    Raises:
        LookupError: when a module is not there.
    """
    packages = frozenset({PACKAGE.name, *(module.split(".")[0] for module in modules)})
    found: set[str] = set()
    ahead = set(modules)
    while ahead:
        found |= ahead
        new = set().union(*(imported(tree_of(file_of(name)), packages) | parents(name) for name in ahead))
        ahead = {name for name in new if not name.startswith(without or ("-",))} - found
    return tuple(sorted({file_of(name) for name in found}))
