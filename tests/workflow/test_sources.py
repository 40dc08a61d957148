"""The map of modules in workflow/rules/sources.smk against what the modules really import."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tree import ROOT

SOURCE = ROOT / "src/resurgence"
RULES = ROOT / "workflow/rules"
# rules whose modules depend on a setting, which `sources` is given as a further entry
CHOICES = {"masks": "segmenters/", "score": "scorers/"}


def sources() -> dict[str, list[str]]:
    """SOURCES of the rules."""
    scope: dict = {}
    exec((RULES / "sources.smk").read_text(), scope)
    return scope["SOURCES"]


def file_of(module: str) -> Path | None:
    """The file of a dotted name of the package."""
    place = SOURCE.joinpath(*module.split(".")[1:])
    files = [place.with_suffix(".py"), place / "__init__.py"]
    return next((file for file in files if file.exists()), None)


def imports(node: ast.AST) -> set[Path]:
    """Files of the package that are imported anywhere below a node, but not only for annotations."""
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
        return set()
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if file_of(name) else node.module for name in names if name.startswith("resurgence")]
    found = {file for name in names if name.startswith("resurgence.") and (file := file_of(name))}
    return found.union(*(imports(child) for child in ast.iter_child_nodes(node)))


def has_code(file: Path) -> bool:
    """Whether a package's __init__ does more than hold a docstring and constants."""
    body = ast.parse(file.read_text()).body
    return any(not isinstance(n, ast.Expr) and not isinstance(getattr(n, "value", None), ast.Constant) for n in body)


def closure(modules: list[str], without: tuple[str, ...] = ()) -> set[str]:
    """Names of the modules and of all that they import, packages with code included."""
    found: set[Path] = set()
    ahead = {SOURCE / f"{module}.py" for module in modules}
    while ahead:
        found |= ahead
        new = set().union(*(imports(ast.parse(file.read_text())) for file in ahead))
        new |= {file for path in ahead if (file := path.parent / "__init__.py").exists() and has_code(file)}
        ahead = {file for file in new if not file.relative_to(SOURCE).as_posix().startswith(without or ("-",))} - found
    return {file.relative_to(SOURCE).with_suffix("").as_posix() for file in found}


def stage_of(rule: str) -> list[str]:
    """The modules that the shell command of a rule starts."""
    text = "\n".join(path.read_text() for path in RULES.glob("*.smk"))
    body = re.search(rf"^rule {rule}:\n(.*?)(?=^rule |\Z)", text, flags=re.DOTALL | re.MULTILINE)[1]
    return [name.replace(".", "/") for name in re.findall(r"python -m resurgence\.([\w.]+)", body)]


def rules() -> list[str]:
    """Rules with a command."""
    text = "\n".join(path.read_text() for path in RULES.glob("*.smk"))
    return [rule for rule in re.findall(r"^rule (\w+):", text, flags=re.MULTILINE) if rule != "world"]


@pytest.mark.parametrize("rule", [r for r in rules() if not r.startswith("world_")])
def test_rule_lists_what_its_stage_imports(rule: str) -> None:
    entry = "moments" if rule.endswith("_moments") else rule
    without = (CHOICES[rule],) if rule in CHOICES else ()
    wanted = closure(stage_of(rule), without)
    if rule == "score":
        wanted |= {"scorers/__init__"}
    assert set(sources()[entry]) == wanted


@pytest.mark.parametrize("entry", [e for e in sources() if "/" in e])
def test_choice_lists_what_it_imports(entry: str) -> None:
    wanted = closure([entry])
    common = set(sources()["score"]) if entry.startswith("scorers/") else set()
    assert set(sources()[entry]) | common >= wanted
    assert set(sources()[entry]) <= wanted


WORLD = {
    "world_drawings": "world/drawings",
    "world_autoencoder": "world/autoencoder",
    "world_base": "world/text_to_image",
    "world_recogniser": "world/recogniser",
    "world_clip": "world/clip",
    "world_quality": "world/quality",
}


@pytest.mark.parametrize("rule", WORLD)
def test_world_rule_lists_what_its_part_imports(rule: str) -> None:
    parts = tuple(sorted(set(WORLD.values())))
    build = closure(["world/build"], without=parts)
    assert set(sources()[rule]) == build | closure([WORLD[rule]])


def test_every_eraser_segmenter_and_scorer_has_an_entry() -> None:
    from resurgence.declared import methods, metrics

    entries = set(sources())
    assert {file.removesuffix(".py") for file in methods().values()} <= entries
    assert {f"segmenters/{path.stem}" for path in (SOURCE / "segmenters").glob("[a-z]*.py")} <= entries
    assert {f"scorers/{name}" for name, made in metrics().items() if made} <= entries


def test_files_exist() -> None:
    assert [m for modules in sources().values() for m in modules if not (SOURCE / f"{m}.py").exists()] == []
