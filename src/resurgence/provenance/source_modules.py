"""Modules as source text: their files, their top-level definitions, and what an imported name refers to.

Nothing is imported: importing an eraser would import torch, which costs seconds.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, TypeGuard

PACKAGE = Path(__file__).resolve().parents[1]
OTHERS = ""  # the name under which a module keeps the statements that run when it is imported and define nothing


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


class Target(NamedTuple):
    """What a name refers to.

    `name` is a top-level definition of the analysed module `path`; empty for that module itself; None when `path` is
    the dotted name of something in another package.
    """

    path: str
    name: str | None = None


class Binding(NamedTuple):
    """An import: `from module import name`, or `import module` when name is None."""

    module: str
    name: str | None = None


@dataclass
class Names:
    """What statements bind: names that are assigned or defined, imports, and names declared global or nonlocal."""

    assigned: set[str] = field(default_factory=set)
    imports: dict[str, list[Binding]] = field(default_factory=dict)
    outer: set[str] = field(default_factory=set)


@dataclass
class Module:
    """Top-level statements by the name that they define or change, and imports. Several statements may share a name."""

    statements: dict[str, list[ast.stmt]]
    imports: dict[str, list[Binding]]


def within(path: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted name is one of the prefixes or lies below one; `a.b.` means only what lies below a.b."""
    return any(path == prefix or path.startswith(prefix.removesuffix(".") + ".") for prefix in prefixes)


def is_type_checking(node: ast.AST) -> TypeGuard[ast.If]:
    """Whether a statement is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in (
        getattr(node.test, "id", ""),
        getattr(node.test, "attr", ""),
    )


def is_main_guard(node: ast.AST) -> bool:
    """Whether a statement is `if __name__ == "__main__":`."""
    if not isinstance(node, ast.If) or not isinstance(node.test, ast.Compare):
        return False
    sides = (node.test.left, *node.test.comparators)
    return any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides)


def bindings(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[tuple[str, Binding]]:
    """Local names that an import binds; `*` for a star import. Relative imports start from `package`."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            module = alias.name if alias.asname else alias.name.partition(".")[0]
            yield alias.asname or module, Binding(module)
        return
    module = node.module or ""
    if node.level:
        base = package.split(".")[: len(package.split(".")) - node.level + 1]
        module = ".".join([*base, *filter(None, [module])])
    for alias in node.names:
        yield alias.asname or alias.name, Binding(module, alias.name)


def names_of(nodes: Iterable[ast.AST], package: str) -> Names:
    """What nodes bind in their own scope: not in the functions, classes and comprehensions below them."""
    found, ahead = Names(), list(nodes)
    while ahead:
        node = ahead.pop()
        if isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load):
                found.assigned.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.assigned.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for name, binding in bindings(node, package):
                found.imports.setdefault(name, []).append(binding)
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            found.assigned |= {n.target.id for n in ast.walk(node) if isinstance(n, ast.NamedExpr)}
        elif isinstance(node, ast.Global | ast.Nonlocal):
            found.outer |= set(node.names)
        elif isinstance(node, ast.If) and is_type_checking(node):
            ahead += node.orelse
        elif not isinstance(node, ast.Lambda):
            if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
                found.assigned.add(node.name)
            elif isinstance(node, ast.MatchMapping) and node.rest:
                found.assigned.add(node.rest)
            ahead += ast.iter_child_nodes(node)
    return found


def package_of(module: str) -> str:
    """The package whose relative imports a module writes: itself, if it is an `__init__`."""
    return module if file_of(module).name == "__init__.py" else module.rpartition(".")[0]


def targets_of(node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> list[ast.expr]:
    """The left sides of an assignment."""
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def root_name(node: ast.expr) -> str | None:
    """The name that an assignment binds or changes: `x` for x, x.a and x["a"]."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Starred):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def single_assignments(node: ast.stmt) -> list[ast.stmt]:
    """`A, B = 1, 2` at the top of a module as two assignments: they are constants with nothing in common."""
    match node:
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(targets) == len(values):
            if not any(isinstance(part, ast.Starred) for part in (*targets, *values)):
                return [ast.Assign([target], value) for target, value in zip(targets, values, strict=True)]
    return [node]


def top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The top-level statements of a module that run when it is imported, without docstrings and `__all__`."""
    for node in body:
        if is_type_checking(node):
            yield from top_level(node.orelse)
        elif not is_main_guard(node) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            yield from single_assignments(node)


@functools.cache
def read_module(name: str) -> Module:
    """The definitions and imports of a module.

    Raises:
        LookupError: when it is not there.
    """
    package, module = package_of(name), Module({}, {})
    for node in top_level(tree_of(file_of(name)).body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            module.statements.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = [part for target in targets_of(node) for part in getattr(target, "elts", [target])]
            for key in {root_name(target) or OTHERS for target in targets} - {"__all__"}:
                module.statements.setdefault(key, []).append(node)
        else:
            found = names_of([node], package)
            for key, values in found.imports.items():
                module.imports.setdefault(key, []).extend(values)
            if not isinstance(node, ast.Import | ast.ImportFrom):
                for key in {*found.assigned, OTHERS}:
                    module.statements.setdefault(key, []).append(node)
    return module


def is_analysed(module: str, home: str) -> bool:
    """Whether the module is one of this package or of the top-level package `home`, and is there."""
    return module.partition(".")[0] in (PACKAGE.name, home) and find_file(module) is not None


def import_targets(binding: Binding, home: str) -> tuple[Target, ...]:
    """What an import in a module of the top-level package `home` refers to."""
    module, name = binding
    if not is_analysed(module, home):
        return (Target(f"{module}.{name}" if name else module),)
    if name is None:
        return (Target(module, OTHERS),)
    return look_up(module, name) or (Target(name),)


@functools.cache
def look_up(module: str, name: str) -> tuple[Target, ...]:
    """What a name at the top of an analysed module refers to; several targets for alternatives, none for a builtin."""
    table, home = read_module(module), module.partition(".")[0]
    found = [Target(module, name)] if name in table.statements else []
    for binding in table.imports.get(name, ()):
        if binding != Binding(module, name):  # `from . import name` of a package: the module below it
            found += import_targets(binding, home)
    if not found and find_file(f"{module}.{name}"):
        found = [Target(f"{module}.{name}", OTHERS)]
    if not found and name != "*":
        stars = [star.module for star in table.imports.get("*", ()) if is_analysed(star.module, home)]
        found = [target for star in stars for target in look_up(star, name)]
    return tuple(dict.fromkeys(found))


def resolve(roots: tuple[Target, ...], attributes: list[str], home: str) -> tuple[tuple[Target, ...], list[str]]:
    """Follow attributes of modules, as `mod.f` or `np.linalg.norm`, as far as they go; the rest is returned too."""
    rest = list(attributes)
    while rest and roots and all(not target.name for target in roots):
        name = rest.pop(0)
        roots = tuple(dict.fromkeys(found for target in roots for found in step(target, name, home)))
    return roots, rest


def step(target: Target, name: str, home: str) -> tuple[Target, ...]:
    """What an attribute of a module refers to."""
    return (
        (Target(f"{target.path}.{name}"),) if target.name is None else import_targets(Binding(target.path, name), home)
    )
