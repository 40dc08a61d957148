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
from importlib.metadata import entry_points
from pathlib import Path

from resurgence.config.fields import ConfigError
from resurgence.provenance.code_version import file_of, tree_of

LIGHT = (
    "resurgence.config.fields",
    "resurgence.config.optimisation",
)  # modules that a configuration may use: they need no torch
ERASERS = {  # name -> module below resurgence.erasers
    "uce": "closed_form.uce",
    "time": "closed_form.time",
    "rece": "closed_form.rece",
    "mace": "mace.method",
    "mace-refinement": "mace.refinement_only",
    **{
        name: f"gradient.{name}"
        for name in (
            "esd",
            "sdd",
            "spm",
            "eap",
            "advunlearn",
            "ca",
            "fmn",
            "doco",
            "salun",
            "erasediff",
            "scissorhands",
        )
    },
}
GROUP = "resurgence.erasers"  # entry points of erasers in other packages


def functions(module: str) -> frozenset[str]:
    """Names of the functions at the top level of a module."""
    return frozenset(node.name for node in tree_of(file_of(module)).body if isinstance(node, ast.FunctionDef))


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
    """Whether a statement imports from the standard library only, or from a module of LIGHT."""
    if isinstance(node, ast.Import):
        return all(alias.name.partition(".")[0] in sys.stdlib_module_names for alias in node.names)
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        root = (node.module or "").partition(".")[0]
        return root in sys.stdlib_module_names or node.module in LIGHT
    return False


def is_config(node: ast.AST) -> bool:
    """Whether a statement is the definition of a dataclass named `...Config`."""
    return isinstance(node, ast.ClassDef) and node.name.endswith("Config") and bool(node.decorator_list)


@functools.cache
def config_class(name: str) -> type:
    """Define the configuration dataclass of a module, e.g. resurgence.erasers.closed_form.uce, without its heavy imports.

    Raises:
        LookupError: when the file declares no dataclass, or more than one, named `...Config`.
    """
    path = file_of(name)
    body = [node for node in tree_of(path).body if is_light(node) or is_literal(node) or is_config(node)]
    names = [node.name for node in body if is_config(node)]
    if len(names) != 1:
        raise LookupError(f"{path}: expected one dataclass named ...Config, found {names}; declare exactly one")
    module = types.ModuleType(f"resurgence.config.method_configs.{name}")
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


@functools.cache
def methods() -> dict[str, str]:
    """The erasers: name -> module. Those of this package are the files that assign ERASER; others are entry points.

    Raises:
        ConfigError: for an entry point that takes the name of another eraser.
    """
    found = {name: f"resurgence.erasers.{module}" for name, module in ERASERS.items()}
    for entry in entry_points(group=GROUP):
        if found.setdefault(entry.name, entry.module) != entry.module:
            raise ConfigError(
                f"entry point {GROUP}", entry.name, f"is {found[entry.name]} already; choose another name"
            )
    return found


def needs(module: str) -> frozenset[str]:
    """The parts of EraserData that an eraser reads: the texts in the last argument of its `ERASER = Eraser(...)`.

    Nothing for the empty name, the eraser `none`.
    """
    if not module:
        return frozenset()
    call = assigned(file_of(module), "ERASER")
    last = [*call.args, *(keyword.value for keyword in call.keywords)][-1]
    return frozenset(node.value for node in ast.walk(last) if isinstance(node, ast.Constant))
