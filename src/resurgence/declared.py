"""What a module declares, read without importing it.

Importing an eraser imports torch, which costs seconds; the Snakefile is read many times and only needs to know which
methods exist and which settings they take. So this module parses the source: `config_class` defines only the
configuration dataclass of a file, with the standard library and the file's own constants in scope. A test compares
every class made so with the real one.
"""

from __future__ import annotations

import ast
import functools
import sys
import types
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a source file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def functions(path: Path) -> frozenset[str]:
    """Names of the functions at the top level of a file."""
    return frozenset(node.name for node in tree_of(path).body if isinstance(node, ast.FunctionDef))


def is_literal(node: ast.AST) -> bool:
    """Whether a statement assigns a literal to a name."""
    if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
        return False
    try:
        ast.literal_eval(node.value)
    except ValueError:
        return False
    return True


def is_light(node: ast.AST) -> bool:
    """Whether a statement imports from the standard library only, or from the torch-free config module."""
    if isinstance(node, ast.Import):
        return all(alias.name.partition(".")[0] in sys.stdlib_module_names for alias in node.names)
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        root = (node.module or "").partition(".")[0]
        return root in sys.stdlib_module_names or node.module == "resurgence.config"
    return False


def is_config(node: ast.AST) -> bool:
    """Whether a statement is the definition of a dataclass named `...Config`."""
    return isinstance(node, ast.ClassDef) and node.name.endswith("Config") and bool(node.decorator_list)


@functools.cache
def config_class(relative: str) -> type:
    """Define the configuration dataclass of a module of this package, without its heavy imports.

    Raises:
        LookupError: when the file declares no dataclass, or more than one, named `...Config`.
    """
    path = PACKAGE / relative
    body = [node for node in tree_of(path).body if is_light(node) or is_literal(node) or is_config(node)]
    names = [node.name for node in body if is_config(node)]
    if len(names) != 1:
        raise LookupError(f"{path}: expected one dataclass named ...Config, found {names}; declare exactly one")
    module = types.ModuleType(f"resurgence.declared.{path.stem}")
    sys.modules[module.__name__] = module  # dataclasses and get_type_hints look the module up by name
    exec(compile(ast.Module(body=body, type_ignores=[]), str(path), "exec"), module.__dict__)
    return getattr(module, names[0])


def assigned(path: Path, name: str) -> ast.expr:
    """The expression that a file assigns to a name at its top level; LookupError without one."""
    for node in tree_of(path).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value
    raise LookupError(f"{path} assigns nothing to {name}; add it, as the other files of the folder do")


def methods() -> dict[str, str]:
    """The erasers: name -> file in the package, from METHODS of resurgence.erasers."""
    table = ast.literal_eval(assigned(PACKAGE / "erasers/__init__.py", "METHODS"))
    return {name: "/".join(module.split(".")[1:]) + ".py" for name, module in table.items()}


def needs(relative: str) -> frozenset[str]:
    """The parts of EraserData that an eraser reads: the texts in the last argument of its `ERASER = Eraser(...)`.

    Nothing for the empty name, the eraser `none`.
    """
    if not relative:
        return frozenset()
    call = assigned(PACKAGE / relative, "ERASER")
    last = [*call.args, *(keyword.value for keyword in call.keywords)][-1]
    return frozenset(node.value for node in ast.walk(last) if isinstance(node, ast.Constant))


def parameters(relative: str, function: str) -> frozenset[str]:
    """Names of the arguments of a function of a module; none when it has no such function."""
    found = [n for n in tree_of(PACKAGE / relative).body if isinstance(n, ast.FunctionDef) and n.name == function]
    return frozenset(argument.arg for node in found for argument in (*node.args.args, *node.args.kwonlyargs))


def metrics() -> dict[str, list[str]]:
    """Scorer -> the metrics made of its columns, from SCORERS of resurgence.scorers."""
    table = assigned(PACKAGE / "scorers/__init__.py", "SCORERS")
    names = {}
    for key, entry in zip(table.keys, table.values, strict=True):
        names[ast.literal_eval(key)] = [ast.literal_eval(name) for name in entry.args[1].keys]
    return names
