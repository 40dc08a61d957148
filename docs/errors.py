"""Write errors.md, the messages of Resurgence with cause and remedy, from the `raise` statements of the source code.

    python docs/errors.py

A message is one sentence: cause, semicolon, remedy. ConfigError adds the key and its value in front. Values that are
known only when the program runs are printed in angle brackets.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCE, PAGE = ROOT / "src/resurgence", ROOT / "docs/errors.md"
ERRORS = ("ConfigError", "OtherAudit", "ValueError", "FileNotFoundError", "FileExistsError", "TimeoutError", "OSError",
          "BlockingIOError", "MemoryError", "ModuleNotFoundError", "PermissionError", "RuntimeError")  # fmt: skip
KEYED = ("ConfigError", "OtherAudit")  # of a key, its value and the remedy
PACKAGES = {
    "config": "Configuration: params.yaml, studies, task files",
    "pretrained": "Weights from elsewhere",
    "diffusion": "Bases, deltas, LoRAs, sampling",
    "data": "Pictures, captions, prompts, masks",
    "training": "Training",
    "erasers": "Erasers",
    "scorers": "Scorers",
    "analysis": "Tables",
    "figures": "Figures",
    "provenance": "Artefacts and their manifests",
    "stages": "Jobs",
    "workflow": "The workflow and its commands",
    "cli": "The command line",
    "miniature": "The miniature world",
    "": "Files and seeds",
}
HEAD = """\
# Messages, causes, remedies

A wrong input is refused in one sentence before time is spent: the file or key, the value, and what to do. This page
lists the sentences, by the part of the program that says them; `<...>` stands for a value of yours. `python
docs/errors.py` writes it from the source code. A traceback is a bug: please report it with the log that it names.
"""


class Message(NamedTuple):
    """A message: its package, and its text in two parts."""

    package: str
    cause: str
    remedy: str


def texts(node: ast.expr, assigned: dict[str, list[ast.expr]]) -> list[str]:
    """The texts that an expression can be, with values in angle brackets; variables of the function are followed."""
    match node:
        case ast.Constant():
            return [str(node.value)]
        case ast.JoinedStr():
            return joined([texts(part, assigned) for part in node.values])
        case ast.FormattedValue():
            inner = texts(node.value, assigned)
            return inner if not inner[0].startswith("<") else [f"<{name_of(node.value)}>"]
        case ast.BinOp(op=ast.Add()):
            return joined([texts(node.left, assigned), texts(node.right, assigned)])
        case ast.IfExp():
            return [*texts(node.body, assigned), *texts(node.orelse, assigned)]
        case ast.Name() if node.id in assigned:
            constants = {name: value for name, value in assigned.items() if name.isupper()}
            values = [text for value in assigned[node.id] for text in texts(value, constants)]
            return values if not values[0].startswith("<") else [f"<{node.id}>"]
    return [f"<{name_of(node)}>"]


def joined(parts: list[list[str]]) -> list[str]:
    """Every combination of the parts."""
    wholes = [""]
    for options in parts:
        wholes = [whole + option for whole in wholes for option in options]
    return wholes


def name_of(node: ast.expr) -> str:
    """A short name for a value: the last word of its expression that is a name."""
    words = [n for n in ast.walk(node) if isinstance(n, ast.Attribute | ast.Name)]
    names = [word.attr if isinstance(word, ast.Attribute) else word.id for word in words]
    plain = [
        name for name in names if name not in ("str", "len", "sorted", "list", "join", "name", "type", "min", "max")
    ]
    return (plain or names or ["value"])[0].strip("_")


def constants_of(tree: ast.Module) -> dict[str, list[ast.expr]]:
    """The constants of a module."""
    return {
        node.targets[0].id: [node.value]
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }


def imported_constants(tree: ast.Module, source: Path) -> dict[str, list[ast.expr]]:
    """The constants that a module imports from others of the package."""
    values = {}
    for node in (node for node in tree.body if isinstance(node, ast.ImportFrom)):
        file = source.parent / f"{(node.module or '').replace('.', '/')}.py"
        if (names := [alias.name for alias in node.names if alias.name.isupper()]) and file.is_file():
            constants = constants_of(ast.parse(file.read_text(encoding="utf-8")))
            values |= {name: constants[name] for name in names if name in constants}
    return values


def raised(tree: ast.Module, source: Path = SOURCE) -> Iterator[tuple[ast.Call, dict[str, list[ast.expr]]]]:
    """Calls of error classes in `raise` statements, with constants and variables assigned just before.

    Constants are those of the module and those that it imports from the package in the folder `source`.
    """
    constants = {**imported_constants(tree, source), **constants_of(tree)}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        assigned, is_new = dict(constants), True  # is_new: nothing has been raised since the last assignment
        statements = [node for node in ast.walk(function) if isinstance(node, ast.Assign | ast.Raise)]
        for node in sorted(statements, key=lambda node: node.lineno):
            if isinstance(node, ast.Raise):
                is_new = False
                if isinstance(node.exc, ast.Call):
                    yield node.exc, assigned
            elif isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                assigned = {**assigned, name: [*(assigned.get(name, []) if is_new else []), node.value]}
                is_new = True


def messages(source: Path = SOURCE) -> list[Message]:
    """All messages, each once, in the order of the packages."""
    rows = {}
    for file in sorted(source.rglob("*.py")):
        package = file.relative_to(source).parts[0] if file.parent != source else ""
        for call, assigned in raised(ast.parse(file.read_text(encoding="utf-8"))):
            if ast.unparse(call.func) in ERRORS and call.args:
                for text in joined([texts(argument, assigned) for argument in marked(call)]):
                    if not re.fullmatch(r"<\w+>", text):  # a message that another function has written
                        rows[Message(package, *split(text))] = None
    return sorted(rows, key=lambda row: list(PACKAGES).index(row.package))


def marked(call: ast.Call) -> list[ast.expr]:
    """The parts of a message; of a ConfigError key, value and remedy with the marks between them."""
    if ast.unparse(call.func) not in KEYED:
        return [call.args[0]]
    key, value, remedy = call.args
    return [key, ast.Constant(" = "), value, ast.Constant(": "), remedy]


def split(text: str) -> tuple[str, str]:
    """Cause and remedy: at the last semicolon; without one after the value of a key, or before a value at the end."""
    for pattern in (r"(.*); (.*)", r"([^:]+ = .*?): (.*)", r"(.*): (.*)", r"(.*), (where .*)", r"(.*) (<\w+>)"):
        if match := re.fullmatch(pattern, text, flags=re.DOTALL):
            return match[1], match[2]
    return text, ""


def page() -> str:
    """The text of errors.md."""
    lines, last = [HEAD], None
    for package, cause, remedy in messages():
        if package != last:
            lines.append(f"\n## {PACKAGES[package]}\n\n| message | remedy |\n|---|---|\n")
            last = package
        cells = (re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;") for text in (cause, remedy))
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
