"""The normal form of a definition: text in which only what bears on a result is left, with the names that it refers to.

Left out: docstrings, comments, imports, annotations other than those of class attributes, statements that log, show
progress, handle signals, hold locks or call the infrastructure, arguments of raised exceptions, messages of assertions.
A reference to an analysed definition is its bare name, one to another package its full dotted name, however imported.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from resurgence.provenance.source_modules import (
    OTHERS,
    Origin,
    Target,
    bindings,
    follow,
    is_analysed,
    package_of,
    read_module,
    within,
)

# Modules and definitions that never bear on a result: not followed, and a statement that only calls one is left out.
INFRASTRUCTURE = (
    "resurgence.cli",  # reads the command line
    "resurgence.config.erasers",  # names and declares methods; the one that runs is an entry of the code version
    "resurgence.config.fields",  # refuses bad settings; those that pass are parameters of the artefact
    "resurgence.config.hints",  # what to write instead of an unknown name
    "resurgence.config.names",  # refuses names that collide
    "resurgence.config.registry",  # imports a class by its name
    "resurgence.diffusion.text_checks",  # refuses names and captions by their tokens, counts long ones
    "resurgence.errors",  # how an error is told
    *(  # writes under a temporary name, locks, digests; what reads and formats bears on results
        f"resurgence.files.{name}"
        for name in ("atomic_file", "atomic_folder", "check_weights_file", "known_sha256", "lock", "sha256", "sign")
    ),
    "resurgence.pretrained.checksums",  # checks files of weights, which are inputs
    "resurgence.pretrained.finite",  # refuses what is not finite
    "resurgence.pretrained.loading.check_complete",
    "resurgence.pretrained.loading.check_file",
    "resurgence.pretrained.mirrors",  # downloads
    "resurgence.progress",  # log lines
    "resurgence.provenance",  # manifests and records of runs
    "resurgence.stages.job",  # command line, log and manifest of a job
    "resurgence.stages.runtime",  # locks, devices and signals of a job
    "resurgence.training.checkpoint",  # saves and resumes, exactly
    "resurgence.workflow",  # decides what runs, not how
)
# Of these, functions that write a result or fill their argument: statements that call them stay.
EFFECTS = ("resurgence.files",)
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
LOGGERS = ("log", "logger")  # names of loggers, and their methods
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")
# Builtins without effect: a condition that calls no others is left out with the log line below it.
PURE = ("abs", "all", "any", "bool", "enumerate", "float", "getattr", "hasattr", "int", "isinstance", "len", "list",
        "max", "min", "range", "set", "sorted", "str", "sum", "tuple", "zip")  # fmt: skip
SKIPPED = ("annotation", "cause", "ctx", "kind", "msg", "returns", "type_comment", "type_params")  # of syntax trees


class Form(NamedTuple):
    """Normal form of a definition: text, empty when nothing in it bears on a result; its SHA-256; and references."""

    text: str
    digest: str
    references: tuple[Target, ...]  # in the order of the text


def chain_of(node: ast.AST | None) -> tuple[str, ...]:
    """`a.b.c` as its names; empty for anything else."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return (node.id, *reversed(attributes)) if isinstance(node, ast.Name) else ()


class Normaliser(ast.NodeVisitor):
    """Writes statements of a definition as text, empty for one that bears on no result."""

    def __init__(self, definition: Target) -> None:
        self.definition, self.module = definition, definition.path
        self.package, self.home = package_of(self.module), self.module.partition(".")[0]
        self.scopes: list[tuple[ast.AST, dict[str, list[Origin]]]] = []  # innermost last: its node, its names
        self.references: list[Target] = []

    @property
    def is_in_class(self) -> bool:
        """Whether the innermost scope is the body of a class."""
        return bool(self.scopes) and isinstance(self.scopes[-1][0], ast.ClassDef)

    def part(self, value: Any) -> str:
        """Text of a field of a node."""
        if isinstance(value, list):
            return f"[{' '.join(filter(None, map(self.part, value)))}]"
        return self.visit(value) if isinstance(value, ast.AST) else repr(value)

    def parts(self, node: ast.AST, skipped: Sequence[str] = SKIPPED) -> list[str]:
        """Type of a node and texts of its fields."""
        fields = (getattr(node, name, None) for name in node._fields if name not in skipped)
        return [type(node).__name__, *map(self.part, fields)]

    def generic_visit(self, node: ast.AST) -> str:
        """Text of a node and all below it."""
        return f"({' '.join(self.parts(node))})"

    def find(self, names: tuple[str, ...]) -> tuple[tuple[Target, tuple[str, ...]], ...]:
        """What `a.b.c` refers to here; nothing for local variables and builtins."""
        for _, scope in reversed(self.scopes):
            if names[0] in scope:
                origins = scope[names[0]]
                return tuple(t for o in origins for t in follow(o.module, o.names + names[1:], self.home))
        return follow(self.module, names, self.home)

    def reference(self, names: tuple[str, ...]) -> str:
        """Text of `a.b.c`; the definitions that it refers to are noted."""
        words = []
        for target, attributes in self.find(names):
            if target.name == OTHERS:  # a module as a value: any of its definitions may be meant
                self.references += [Target(target.path, key) for key in sorted(read_module(target.path).statements)]
            elif target.name and target != self.definition:
                self.references.append(target)
            words.append(".".join([target.path if target.name is None else target.name or "<module>", *attributes]))
        return "|".join(dict.fromkeys(words)) or ".".join(names)

    def calls(self, node: ast.AST | None, prefixes: Sequence[str]) -> bool:
        """Whether an expression calls something below one of the prefixes, or a method of what that returned."""
        names = chain_of(node.func) if isinstance(node, ast.Call) else ()
        targets = [target for target, _ in self.find(names)] if names else []
        paths = [f"{target.path}.{target.name}" if target.name else target.path for target in targets]
        return bool(paths) and all(within(path, prefixes) and not within(path, EFFECTS) for path in paths)

    def is_silent(self, node: ast.AST) -> bool:
        """Whether an expression that is a statement bears on no result."""
        names = chain_of(node.func) if isinstance(node, ast.Call) else ()
        is_log = len(names) == 2 and names[0] in LOGGERS and names[1] in LEVELS
        return isinstance(node, ast.Constant) or is_log or self.calls(node, SILENT)

    def is_pure(self, node: ast.AST) -> bool:
        """Whether evaluating an expression changes nothing, as far as can be seen."""
        nodes = list(ast.walk(node))
        if any(isinstance(part, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom) for part in nodes):
            return False
        calls = [part for part in nodes if isinstance(part, ast.Call)]
        return all(getattr(call.func, "id", "") in PURE or self.calls(call, SILENT) for call in calls)

    def observes(self, target: ast.AST | None, value: ast.AST) -> bool:
        """Whether a name is given what an observer returns, as in `progress = Progress(...)`; that is remembered."""
        if not isinstance(target, ast.Name) or not self.calls(value, OBSERVERS):
            return False
        if self.scopes:
            self.scopes[-1][1][target.id] = [Origin(OBSERVERS[0])]
        return True

    def nothing(self, node: ast.AST) -> str:
        """A statement without effect."""
        return ""

    visit_Import = visit_ImportFrom = visit_Pass = nothing

    def visit_Expr(self, node: ast.Expr) -> str:
        """An expression that is a statement."""
        return "" if self.is_silent(node.value) else self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> str:
        """A raise without the arguments of the exception."""
        return f"(Raise {self.part(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)})"

    def visit_If(self, node: ast.If) -> str:
        """A condition; none when nothing below it bears on a result and evaluating it changes nothing."""
        text = self.generic_visit(node)
        return "" if text.endswith(" [] [])") and self.is_pure(node.test) else text

    def visit_For(self, node: ast.For) -> str:
        """A loop; none when nothing below it bears on a result and it runs over literals."""
        text, is_literal = self.generic_visit(node), isinstance(node.iter, ast.Tuple | ast.List)
        return "" if text.endswith(" [] [])") and is_literal and self.is_pure(node.iter) else text

    def visit_With(self, node: ast.With | ast.AsyncWith) -> str:
        """A with; only what is below it when its contexts are locks, handlers of signals and the like."""
        pairs = [(item, item.optional_vars, item.context_expr) for item in node.items]
        items = [i for i, name, call in pairs if not (self.observes(name, call) if name else self.is_silent(call))]
        head, body = self.part(items), self.part(node.body)
        return f"({type(node).__name__} {head} {body})" if items else body[1:-1]

    visit_AsyncWith = visit_With

    def visit_AnnAssign(self, node: ast.AnnAssign) -> str:
        """An assignment; in a class its annotation counts, since it decides validation."""
        if self.is_in_class:
            return f"(Field {self.part([node.target, node.annotation])} {self.part(node.value)})"
        return self.visit_Assign(ast.Assign([node.target], node.value)) if node.value else ""

    def visit_Assign(self, node: ast.Assign) -> str:
        """An assignment without what an observer returns."""
        match node:
            case ast.Assign([ast.Tuple(targets)], ast.Tuple(values)) if len(targets) == len(values):
                pairs = list(zip(targets, values, strict=True))
            case _:
                pairs = [(node.targets[0], node.value)]
        kept = [pair for pair in pairs if len(node.targets) > 1 or not self.observes(*pair)]
        if len(kept) == len(pairs):
            return self.generic_visit(node)
        left, right = [target for target, _ in kept], [self.visit(value) for _, value in kept]
        return f"(Assign {self.part(left)} {' '.join(right)})" if kept else ""

    def visit_Name(self, node: ast.Name) -> str:
        """A name, or what it was imported from; a class attribute is no reference to a definition of that name."""
        return node.id if self.is_in_class and isinstance(node.ctx, ast.Store) else self.reference((node.id,))

    def visit_Attribute(self, node: ast.Attribute) -> str:
        """An attribute; those of modules are followed."""
        return self.reference(chain) if (chain := chain_of(node)) else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> str:
        """A literal; the dotted name of an analysed module without its packages."""
        if isinstance(node.value, str) and "." in node.value:
            module, colon, rest = node.value.partition(":")
            if is_analysed(module, self.home):
                return repr(f"<module>{colon}{rest}")
        return repr(node.value)

    def scope(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef) -> str:
        """A function, lambda or class. Defaults, decorators and bases are evaluated outside of its scope."""
        head, names = self.parts(node, (*SKIPPED, "body")), {}
        if not isinstance(node, ast.ClassDef):  # functions in a class do not see the names of its body
            body = node.body if isinstance(node.body, list) else [node.body]
            names = bindings(body, self.package)
            names |= {arg.arg: [] for arg in ast.walk(node.args) if isinstance(arg, ast.arg)}
        self.scopes.append((node, names))
        text = self.part(node.body)
        self.scopes.pop()
        return f"({' '.join(head)} {text})"

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = visit_ClassDef = scope


@functools.cache
def normal_form(definition: Target) -> Form:
    """The normal form of a top-level definition, or of a module's other statements."""
    normaliser = Normaliser(definition)
    statements = read_module(definition.path).statements.get(definition.name or OTHERS, ())
    text = "\n".join(filter(None, map(normaliser.visit, statements)))
    return Form(text, hashlib.sha256(text.encode()).hexdigest(), tuple(normaliser.references))
