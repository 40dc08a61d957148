"""Modules as source text: their files, their top-level definitions, and what an imported name refers to.

Nothing is imported: importing an eraser would import torch, which costs seconds.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1]
OTHERS = ""  # the name under which a module keeps the statements that run when it is imported and define nothing
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
NESTED_SCOPES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Target(NamedTuple):
    """What a name refers to.

    `name` is a top-level definition of the analysed module `path`; OTHERS for that module itself; None when `path` is
    the dotted name of something in another package.
    """

    path: str
    name: str | None = None


class Origin(NamedTuple):
    """Where an import takes a name from: `from module import name`, or `import module` when names is empty."""

    module: str
    names: tuple[str, ...] = ()


class Module(NamedTuple):
    """Top-level statements by the name that they define, and imports. Several statements may share a name."""

    statements: dict[str, list[ast.stmt]]
    imports: dict[str, list[Origin]]


@functools.cache
def find_file(module: str) -> Path | None:
    """The file of a dotted name, without importing it; None if there is none."""
    package, *inner = module.split(".")
    spec = find_spec(package)
    if spec is None or spec.origin is None or (inner and not spec.submodule_search_locations):
        return None
    place = Path(spec.origin).parent.joinpath(*inner)
    files = (place.with_suffix(".py"), place / "__init__.py") if inner else (Path(spec.origin),)
    return next((file for file in files if file.is_file()), None)


def file_of(module: str) -> Path:
    """The file of a dotted name.

    Raises:
        LookupError: no such module is installed.
    """
    file = find_file(module)
    if file is None:
        raise LookupError(f"module {module} is not installed; install the package that it belongs to")
    return file


def package_of(module: str) -> str:
    """The package that relative imports of a module start from: itself, if it is an `__init__`."""
    return module if file_of(module).name == "__init__.py" else module.rpartition(".")[0]


def within(path: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted name is one of the prefixes or lies below one; `a.b.` means only what lies below a.b."""
    return any(path == prefix or path.startswith(prefix.removesuffix(".") + ".") for prefix in prefixes)


def reads_name(node: ast.AST, name: str) -> bool:
    """Whether a statement is an `if` whose condition reads a name such as TYPE_CHECKING or __name__."""
    return isinstance(node, ast.If) and name in ast.unparse(node.test)


def bindings(nodes: Iterable[ast.AST], package: str) -> dict[str, list[Origin]]:
    """Names that nodes bind in their scope -> origins of an import; none for another value.

    Left out are targets of comprehensions and names in patterns and except clauses: such a name counts as a reference
    to a definition of the same name, which at worst computes a result again.
    """
    names: dict[str, list[Origin]] = {}
    outer: set[str] = set()
    ahead = list(nodes)
    while ahead:
        node = ahead.pop()
        if isinstance(node, DEFINITIONS):
            names.setdefault(node.name, [])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.setdefault(node.id, [])
        elif isinstance(node, ast.Global | ast.Nonlocal):
            outer.update(node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                module = alias.name if alias.asname else alias.name.partition(".")[0]
                names.setdefault(alias.asname or module, []).append(Origin(module))
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                names.setdefault(alias.asname or alias.name, []).append(Origin(module, (alias.name,)))
        elif isinstance(node, ast.If) and reads_name(node, "TYPE_CHECKING"):
            ahead += node.orelse
        elif not isinstance(node, NESTED_SCOPES):
            ahead += ast.iter_child_nodes(node)
    return {name: origins for name, origins in names.items() if name not in outer}


def single_assignments(node: ast.stmt) -> list[ast.stmt]:
    """`A, B = 1, 2` at the top of a module as two assignments: they are constants with nothing in common."""
    match node:
        case ast.Assign([ast.Tuple(targets)], ast.Tuple(values)) if len(targets) == len(values):
            return [ast.Assign([target], value) for target, value in zip(targets, values, strict=True)]
    return [node]


@functools.cache
def read_module(name: str) -> Module:
    """The definitions and imports of a module; what only a run as a script executes is left out.

    Raises:
        LookupError: no such module is installed.
    """
    file, package, module = file_of(name), package_of(name), Module({}, {})
    tree = ast.parse(file.read_text(encoding="utf-8"), file)
    body = [node for node in tree.body if not reads_name(node, "__name__")]
    for node in (part for statement in body for part in single_assignments(statement)):
        names = bindings([node], package)
        keys = {key for key, origins in names.items() if not origins}
        if not isinstance(node, (*DEFINITIONS, ast.Import, ast.ImportFrom)):
            keys |= set() if keys and isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) else {OTHERS}
        for key in keys - {"__all__"}:
            module.statements.setdefault(key, []).append(node)
        for key, origins in names.items():
            module.imports.setdefault(key, []).extend(origins)
    return module


def is_analysed(module: str, home: str) -> bool:
    """Whether the module is there, and one of this package or of the top-level package `home`."""
    return module.partition(".")[0] in (PACKAGE.name, home) and find_file(module) is not None


@functools.cache
def follow(module: str, names: tuple[str, ...], home: str) -> tuple[tuple[Target, tuple[str, ...]], ...]:
    """What `module.name.name...` refers to in the top-level package `home`.

    Returns:
        Pairs of a target and the attributes of it that are left; several for alternatives, none for a builtin.
    """
    if not is_analysed(module, home):
        return ((Target(".".join((module, *names))), ()),)
    if not names:
        return ((Target(module, OTHERS), ()),)
    name, more, table = names[0], names[1:], read_module(module)
    pairs = [(Target(module, name), more)] if name in table.statements else []
    for origin in table.imports.get(name, ()):
        if origin != Origin(module, (name,)):  # `from . import name` of a package: the module below it
            pairs += follow(origin.module, origin.names + more, home)
    if not pairs and find_file(f"{module}.{name}"):
        return follow(f"{module}.{name}", more, home)
    if not pairs:
        stars = [star.module for star in table.imports.get("*", ()) if is_analysed(star.module, home)]
        pairs = [pair for star in stars for pair in follow(star, names, home)]
    return tuple(dict.fromkeys(pairs))
