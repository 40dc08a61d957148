"""The normal form of a definition: text in which only what bears on a result is left, with the names that it refers to.

Left out: docstrings, comments, imports, annotations other than those of class attributes, statements that log, show
progress, handle signals, hold locks or call the infrastructure, arguments of raised exceptions, messages of assertions.
A reference to an analysed definition is its bare name, one to another package its full dotted name, however imported.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from resurgence.provenance.references import Scope, Scopes, chain_of
from resurgence.provenance.source_modules import OTHERS, Target, is_analysed, is_type_checking, read_module

SKIPPED = frozenset(("annotation", "ctx", "kind", "returns", "type_comment", "type_params"))  # fields of syntax trees


class Form(NamedTuple):
    """Normal form of a definition: text, empty when nothing in it bears on a result; its SHA-256; and references."""

    text: str
    digest: str
    references: tuple[Target, ...]  # in the order of the text


class Normaliser(Scopes):
    """Writes statements of one module as text."""

    def block(self, body: Iterable[ast.stmt]) -> list[str]:
        """Texts of statements, without those that bear on no result."""
        return [text for node in body for text in self.statement(node)]

    def statement(self, node: ast.stmt) -> list[str]:
        """A statement as none, one or several texts."""
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Pass():
                return []
            case ast.Expr():
                return [] if self.is_silent(node.value) else [self.text(node.value)]
            case ast.Assign() | ast.AnnAssign():
                return self.assignment(node)
            case ast.Raise():
                raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                return [f"(Raise {self.unfollowed(raised)})"]
            case ast.Assert():
                return [f"(Assert {self.text(node.test)})"]
            case ast.If():
                return self.condition(node)
            case ast.With() | ast.AsyncWith():
                return self.context(node)
            case ast.For():
                return self.loop(node)
        return [self.text(node)]

    def condition(self, node: ast.If) -> list[str]:
        """An if; none when only log calls are below it and evaluating the condition changes nothing."""
        if is_type_checking(node):
            return self.block(node.orelse)
        body, orelse = self.block(node.body), self.block(node.orelse)
        if not body and not orelse and self.is_pure(node.test):
            return []
        return [f"(If {self.text(node.test)} {listed(body)} {listed(orelse)})"]

    def loop(self, node: ast.For) -> list[str]:
        """A for; none when only log calls or checks are below it and it runs over literals."""
        head = f"{self.text(node.target)} {self.text(node.iter)}"
        body, orelse = self.block(node.body), self.block(node.orelse)
        is_literal = isinstance(node.iter, ast.Tuple | ast.List | ast.Set) and self.is_pure(node.iter)
        return [] if is_literal and not body and not orelse else [f"(For {head} {listed(body)} {listed(orelse)})"]

    def context(self, node: ast.With | ast.AsyncWith) -> list[str]:
        """A with; only what is below it when its contexts are locks, handlers of signals and the like."""
        items = [(item, item.optional_vars, item.context_expr) for item in node.items]
        shown = [
            item for item, name, call in items if not (self.observes(name, call) if name else self.is_silent(call))
        ]
        head = self.texts(shown)
        body = self.block(node.body)
        return [f"({type(node).__name__} {head} {listed(body)})"] if shown else body

    def assignment(self, node: ast.Assign | ast.AnnAssign) -> list[str]:
        """An assignment without what an observer returns; in a class its annotation counts: it decides validation."""
        if isinstance(node, ast.AnnAssign):
            if self.scopes and self.scopes[-1][1]:
                return [f"(Field {self.text(node.target)} {self.text(node.annotation)} {self.text(node.value)})"]
            if node.value is None:
                return []
            node = ast.Assign([node.target], node.value)
        target, value, pairs = node.targets[0], node.value, [(node.targets[0], node.value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            pairs = list(zip(target.elts, value.elts, strict=True))
        shown = [pair for pair in pairs if len(node.targets) > 1 or not self.observes(*pair)]
        if len(shown) == len(pairs):
            return [f"(Assign {self.texts(node.targets)} {self.text(value)})"]
        if len(shown) > 1:
            left, right = zip(*shown, strict=True)
            return [f"(Assign [(Tuple {self.texts(left)})] (Tuple {self.texts(right)}))"]
        return [f"(Assign [{self.text(target)}] {self.text(value)})" for target, value in shown]

    def unfollowed(self, node: ast.AST | None) -> str:
        """Text of an expression whose names are not followed: the type of an exception."""
        count = len(self.references)
        text = self.text(node)
        del self.references[count:]
        return text

    def texts(self, nodes: Iterable[ast.AST]) -> str:
        """Texts of nodes as a list."""
        return listed([self.text(node) if isinstance(node, ast.AST) else repr(node) for node in nodes])

    def text(self, node: ast.AST | None) -> str:
        """Text of a node and all below it."""
        if node is None:
            return "None"
        kind = type(node)
        if kind in SPECIAL:
            return SPECIAL[kind](self, node)
        parts = [kind.__name__]
        for name in kind._fields:
            if name not in SKIPPED:
                value = getattr(node, name, None)
                if isinstance(value, ast.AST):
                    parts.append(self.text(value))
                elif isinstance(value, list):
                    is_body = bool(value) and isinstance(value[0], ast.stmt)
                    parts.append(listed(self.block(value)) if is_body else self.texts(value))
                else:
                    parts.append(repr(value))
        return f"({' '.join(parts)})"

    def name(self, node: ast.Name) -> str:
        """A name, or what it was imported from."""
        return self.reference(node.id, [])

    def attribute(self, node: ast.Attribute) -> str:
        """An attribute; those of modules are followed."""
        chain = chain_of(node)
        return self.reference(*chain) if chain else f"(Attribute {self.text(node.value)} {node.attr})"

    def constant(self, node: ast.Constant) -> str:
        """A literal; the dotted name of an analysed module without its packages."""
        if isinstance(node.value, str) and "." in node.value:
            module, colon, rest = node.value.partition(":")
            if is_analysed(module, self.home):
                return repr(f"<module>{colon}{rest}")
        return repr(node.value)

    def argument(self, node: ast.arg) -> str:
        """An argument without its annotation."""
        return node.arg

    def handler(self, node: ast.ExceptHandler) -> str:
        """An except clause."""
        return f"(ExceptHandler {self.unfollowed(node.type)} {node.name} {listed(self.block(node.body))})"

    def within_scope(self, scope: Scope, body: list[ast.stmt] | ast.AST, is_class: bool = False) -> str:
        """Text of what is below a function, lambda or class."""
        self.scopes.append((scope, is_class))
        text = listed(self.block(body)) if isinstance(body, list) else self.text(body)
        self.scopes.pop()
        return text

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> str:
        """A function without annotations."""
        head = [type(node).__name__, getattr(node, "name", ""), self.texts(getattr(node, "decorator_list", ()))]
        names = [arg.arg for arg in ast.walk(node.args) if isinstance(arg, ast.arg)]
        body = node.body if isinstance(node.body, list) else [node.body]
        return f"({' '.join([*head, self.text(node.args), self.within_scope(self.scope(body, names), node.body)])})"

    def class_(self, node: ast.ClassDef) -> str:
        """A class with all that is in it."""
        parts: tuple[Iterable[ast.AST], ...] = (node.decorator_list, node.bases, node.keywords)
        head = [node.name, *map(self.texts, parts)]
        return f"(ClassDef {' '.join(head)} {self.within_scope(self.scope(node.body), node.body, is_class=True)})"

    def comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> str:
        """A comprehension or generator; its targets are local to it."""
        first = self.text(node.generators[0].iter)  # evaluated outside of the scope of the targets
        self.scopes.append((self.scope([generator.target for generator in node.generators]), False))
        parts = [self.text(getattr(node, name)) for name in ("key", "value", "elt") if hasattr(node, name)]
        for number, generator in enumerate(node.generators):
            iterated = first if number == 0 else self.text(generator.iter)
            parts += [self.text(generator.target), iterated, self.texts(generator.ifs), str(generator.is_async)]
        self.scopes.pop()
        return f"({type(node).__name__} {' '.join(parts)})"


SPECIAL: dict[type[ast.AST], Callable[[Normaliser, Any], str]] = {
    ast.Name: Normaliser.name,
    ast.Attribute: Normaliser.attribute,
    ast.Constant: Normaliser.constant,
    ast.arg: Normaliser.argument,
    ast.ExceptHandler: Normaliser.handler,
    ast.ClassDef: Normaliser.class_,
    **dict.fromkeys((ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda), Normaliser.function),
    **dict.fromkeys((ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp), Normaliser.comprehension),
}


def listed(texts: Iterable[str]) -> str:
    """Texts in brackets."""
    return f"[{' '.join(texts)}]"


@functools.cache
def normal_form(definition: Target) -> Form:
    """The normal form of a top-level definition, or of a module's other statements."""
    normaliser = Normaliser(definition)
    text = "\n".join(normaliser.block(read_module(definition.path).statements.get(definition.name or OTHERS, ())))
    return Form(text, hashlib.sha256(text.encode()).hexdigest(), tuple(normaliser.references))
