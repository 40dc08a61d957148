"""What the names in a definition refer to, and which calls bear on no result."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Sequence

from resurgence.provenance.source_modules import (
    OTHERS,
    Target,
    import_targets,
    look_up,
    names_of,
    package_of,
    read_module,
    resolve,
    within,
)

# Modules that never bear on a result: not followed, and a statement that only calls one of them is left out.
INFRASTRUCTURE = (
    "resurgence.cli",  # reads the command line
    "resurgence.config.erasers",  # names and declares methods; the one that runs is an entry of the code version
    "resurgence.config.fields",  # refuses bad settings; those that pass are parameters of the artefact
    "resurgence.files",  # writes under a temporary name, digests files
    "resurgence.pretrained",  # checks files of weights, which are inputs
    "resurgence.progress",  # log lines
    "resurgence.provenance",  # manifests and records of runs
    "resurgence.stages.job",  # command line, log and manifest of a job
    "resurgence.stages.runtime",  # locks, devices and signals of a job
    "resurgence.training.checkpoint",  # saves and resumes, exactly
    "resurgence.workflow",  # decides what runs, not how
)
# Of these, functions that write a result or fill their argument: statements that call them stay.
EFFECTS = ("resurgence.files", "resurgence.pretrained.loading.fill")
# What only observes: assignments of what these return are left out too, and calls of its methods.
OBSERVERS = (
    "fcntl",
    "logging",
    "resurgence.progress",
    "resurgence.training.checkpoint",
    "signal",
    "time.monotonic",
    "time.perf_counter",
    "warnings",
)
SILENT = (*OBSERVERS, *INFRASTRUCTURE)
LOGGERS = ("log", "logger")  # names of loggers that are arguments, and their methods
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")
# Builtins without effect: a condition that calls no others is left out with the log line below it.
PURE = (abs, all, any, bool, enumerate, float, getattr, hasattr, int, isinstance, len, list, max, min, range, set,
        sorted, str, sum, tuple, zip)  # fmt: skip
PURE_NAMES = frozenset(function.__name__ for function in PURE)
OBSERVED = Target("logging")  # stands for a local object that an observer returned

Scope = dict[str, tuple[Target, ...]]  # local name -> what it was imported from; () for a variable


def chain_of(node: ast.AST | None) -> tuple[str, list[str]] | None:
    """`a.b.c` as its name and its attributes; None for anything else."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return (node.id, attributes[::-1]) if isinstance(node, ast.Name) else None


class Scopes:
    """What the names in a definition refer to, and which calls bear on no result."""

    def __init__(self, own: Target) -> None:
        self.own, self.home, self.package = own, own.path.partition(".")[0], package_of(own.path)
        self.scopes: list[tuple[Scope, bool]] = []  # innermost last; with True that of a class body
        self.attributes: set[str] = set()  # such as self.progress, that hold what an observer returned
        self.references: list[Target] = []

    def scope(self, nodes: Iterable[ast.AST], arguments: Iterable[str] = ()) -> Scope:
        """The names that nodes bind in their scope."""
        found = names_of(nodes, self.package)
        local: Scope = dict.fromkeys([*arguments, *(found.assigned - found.outer)], ())
        for name, bindings in found.imports.items():
            local[name] = tuple(target for binding in bindings for target in import_targets(binding, self.home))
        return local

    def find(self, name: str) -> tuple[Target, ...]:
        """What a name refers to here; () for local variables and builtins."""
        for number, (names, is_class) in enumerate(reversed(self.scopes)):
            if name in names and (number == 0 or not is_class):
                return names[name]
        return look_up(self.own.path, name)

    def reference(self, name: str, attributes: list[str]) -> str:
        """Text of `name.attribute...`; the definitions that it refers to are noted."""
        found = self.find(name)
        if not found or found == (OBSERVED,):
            return ".".join([name, *attributes])
        targets, rest = resolve(found, attributes, self.home)
        for target in targets:
            if target.name == OTHERS:  # a module as a value: any of its definitions may be meant
                self.references += [Target(target.path, key) for key in sorted(read_module(target.path).statements)]
            elif target.name and target != self.own:
                self.references.append(target)
        words = [t.path if t.name is None else t.name or "<module>" for t in targets]
        return ".".join(["|".join(dict.fromkeys(words)), *rest])

    def calls(self, node: ast.AST | None, prefixes: Sequence[str]) -> bool:
        """Whether an expression calls something below one of the prefixes, or what an observer returned."""
        if not isinstance(node, ast.Call) or (chain := chain_of(node.func)) is None:
            return False
        name, attributes = chain
        if any(".".join([name, *attributes[:end]]) in self.attributes for end in range(1, len(attributes))):
            return True
        targets, _ = resolve(self.find(name), attributes, self.home)
        return bool(targets) and all(bears_on_nothing(target, prefixes) for target in targets)

    def is_silent(self, node: ast.AST) -> bool:
        """Whether an expression that is a statement bears on no result."""
        if isinstance(node, ast.Constant):
            return True
        name, methods = (chain_of(node.func) if isinstance(node, ast.Call) else None) or ("", [])
        return (name in LOGGERS and len(methods) == 1 and methods[0] in LEVELS) or self.calls(node, SILENT)

    def is_pure(self, node: ast.AST) -> bool:
        """Whether evaluating an expression changes nothing, as far as can be seen."""
        nodes = list(ast.walk(node))
        if any(isinstance(part, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom) for part in nodes):
            return False
        calls = [part for part in nodes if isinstance(part, ast.Call)]
        return all(getattr(call.func, "id", "") in PURE_NAMES or self.calls(call, SILENT) for call in calls)

    def observes(self, target: ast.AST | None, value: ast.AST) -> bool:
        """Whether a target is given what an observer returns, as in `progress = Progress(...)`; that is remembered."""
        if not self.calls(value, OBSERVERS) or (chain := chain_of(target)) is None:
            return False
        if chain[1]:
            self.attributes.add(".".join([chain[0], *chain[1]]))
        elif self.scopes:
            self.scopes[-1][0][chain[0]] = (OBSERVED,)
        return True


def bears_on_nothing(target: Target, prefixes: Sequence[str]) -> bool:
    """Whether a target lies below a prefix, or is a top-level object that an observer returned, such as `log`."""
    path = f"{target.path}.{target.name}" if target.name else target.path
    return (within(path, prefixes) and not within(path, EFFECTS)) or bool(target.name and is_observer(target))


@functools.cache
def is_observer(target: Target) -> bool:
    """Whether a top-level name is assigned only what an observer in another module returns."""
    scopes = Scopes(target)
    for node in read_module(target.path).statements[target.name or OTHERS]:
        call = node.value if isinstance(node, ast.Assign) else None
        chain = chain_of(call.func) if isinstance(call, ast.Call) else None
        found = resolve(scopes.find(chain[0]), chain[1], scopes.home)[0] if chain else ()
        if not found or not all(within(f"{t.path}.{t.name}" if t.name else t.path, OBSERVERS) for t in found):
            return False
    return True
