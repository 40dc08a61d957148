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
ERRORS = ("ConfigError", "ValueError", "FileNotFoundError", "FileExistsError", "TimeoutError", "OSError",
          "BlockingIOError", "MemoryError", "ModuleNotFoundError", "PermissionError", "RuntimeError")  # fmt: skip
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

A wrong input is refused in one sentence before time is spent: the file or key, the value, and what to do. This page lists the
sentences, by the part of the program that says them; `<...>` stands for a value of yours. `python docs/errors.py` writes it
from the source code. A traceback is a bug: please report it with the log that it names.
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
            values = [text for value in assigned[node.id] for text in texts(value, {})]
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


def raised(tree: ast.Module) -> Iterator[tuple[ast.Call, dict[str, list[ast.expr]]]]:
    """Calls of error classes in `raise` statements, with the variables of the function around each and the module."""
    constants: dict[str, list[ast.expr]] = {
        node.targets[0].id: [node.value]
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            assigned = {name: [*values] for name, values in constants.items()}
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    assigned.setdefault(node.targets[0].id, []).append(node.value)
            for node in ast.walk(function):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    yield node.exc, assigned


def messages(source: Path = SOURCE) -> list[Message]:
    """All messages, each once, in the order of the packages."""
    rows = {}
    for file in sorted(source.rglob("*.py")):
        package = file.relative_to(source).parts[0] if file.parent != source else ""
        for call, assigned in raised(ast.parse(file.read_text(encoding="utf-8"))):
            if ast.unparse(call.func) in ERRORS and call.args:
                for text in joined([*separated(call, assigned)]):
                    cause, mark, remedy = text.rpartition("; " if "; " in text else ": ")
                    rows[Message(package, *((cause, remedy) if mark else (text, "")))] = None
    return sorted(rows, key=lambda row: list(PACKAGES).index(row.package))


def separated(call: ast.Call, assigned: dict[str, list[ast.expr]]) -> Iterator[list[str]]:
    """The parts of a message: of a ConfigError key, value and remedy."""
    parts = [texts(argument, assigned) for argument in call.args]
    if ast.unparse(call.func) == "ConfigError":
        key, value, remedy = parts
        yield key
        yield [" = "]
        yield value
        yield [": "]
        yield remedy
    else:
        yield parts[0]


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
