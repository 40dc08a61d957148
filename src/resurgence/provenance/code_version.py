"""The source files that a step runs, read from the imports in them, without importing anything.

They are inputs of the step's rule and entries of its manifest, so a change of a method recomputes that method and what
depends on it, and nothing else. Imports for annotations (under TYPE_CHECKING) do not count, those inside functions do.
"""

from __future__ import annotations

import ast
import functools
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a source file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@functools.cache
def root_of(package: str) -> Path | None:
    """Folder or single file of a top-level package, found without importing it; None if it is not installed."""
    if package == PACKAGE.name:
        return PACKAGE
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)


@functools.cache
def find_file(module: str) -> Path | None:
    """The file of a dotted name; None if there is none."""
    package, *inner = module.split(".")
    root = root_of(package)
    if root is None or root.is_file():
        return root if root and not inner else None
    place = root.joinpath(*inner)
    files = (place.with_suffix(".py"), place / "__init__.py") if inner else (place / "__init__.py",)
    return next((file for file in files if file.is_file()), None)


def file_of(module: str) -> Path:
    """The file of a dotted name.

    Raises:
        LookupError: when it is not there.
    """
    found = find_file(module)
    if found is None:
        raise LookupError(f"module {module} is not installed; install the package that it belongs to")
    return found


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


def code_version(*entries: str, without: tuple[str, ...] = ()) -> str:
    return "0"
