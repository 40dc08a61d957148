"""What a scorer's module declares, read without importing it: the Snakefile is read many times, torch takes seconds."""

from __future__ import annotations

import ast
from pathlib import Path

from resurgence.provenance.code_version import PACKAGE, file_of, tree_of


def assigned(path: Path, name: str) -> ast.expr:
    """The expression that a file assigns to a name at its top level; LookupError without one."""
    for node in tree_of(path).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value
    raise LookupError(f"{path} assigns nothing to {name}; add it, as the other files of the folder do")


def assigns(path: Path, name: str) -> bool:
    """Whether a file assigns something to a name at its top level."""
    try:
        assigned(path, name)
    except LookupError:
        return False
    return True


def literal(module: str, name: str) -> object:
    """The literal that a module assigns to a name at its top level; None without one."""
    path = file_of(module)
    return ast.literal_eval(assigned(path, name)) if assigns(path, name) else None


def parameters(module: str, function: str) -> frozenset[str]:
    """Names of the arguments of a function of a module; none when it has no such function."""
    found = [n for n in tree_of(file_of(module)).body if isinstance(n, ast.FunctionDef) and n.name == function]
    return frozenset(argument.arg for node in found for argument in (*node.args.args, *node.args.kwonlyargs))


def metrics() -> dict[str, list[str]]:
    """Scorer -> the metrics made of its columns, from SCORERS of resurgence.scorers."""
    table = assigned(PACKAGE / "scorers/__init__.py", "SCORERS")
    names = {}
    for key, entry in zip(table.keys, table.values, strict=True):
        names[ast.literal_eval(key)] = [ast.literal_eval(name) for name in entry.args[1].keys]
    return names
