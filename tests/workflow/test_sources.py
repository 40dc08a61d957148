"""The source files that the rules declare, against what the jobs of the small study really imported."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from tree import ROOT, Tree

from resurgence.config.erasers import ERASERS, method_module
from resurgence.provenance.code_version import file_of, find_file, imported, sources

SOURCE = ROOT / "src/resurgence"
LOADED = re.compile(r"^import time:.*\| +(resurgence[\w.]*)$", flags=re.MULTILINE)


def logs(tree: Tree) -> dict[str, Path]:
    """Manifest of each artefact -> log of the job that wrote it."""
    results, found = tree.root / "results", {}
    for manifest in results.rglob("manifest.json"):
        place = Path(*manifest.parent.relative_to(results).parts[1:])
        log = tree.root / "logs" / place.with_name(f"{place.name}.log")
        if log.exists():
            found[manifest] = log
    return found


@pytest.mark.slow
def test_manifests_list_every_module_that_the_job_imported(finished: tuple[Tree, str]) -> None:
    pairs = logs(finished[0])
    assert len(pairs) > 20
    for manifest, log in pairs.items():
        names = {name for name in LOADED.findall(log.read_text()) if file_of(name).stat().st_size > 200}
        assert len(names) > 4, log
        seen = {file_of(name).relative_to(SOURCE.parent).as_posix() for name in names}
        declared = set(json.loads(manifest.read_text())["sources"])
        assert seen <= declared | {"resurgence/__init__.py"}, manifest
        # and hardly more: itself, run as a script, and what a branch that was not taken imports, such as loading a base
        assert len(declared - seen) <= 5, (manifest, declared - seen)


def test_imports_for_annotations_do_not_count_and_those_in_functions_do() -> None:
    text = (
        "from typing import TYPE_CHECKING\nimport torch\nfrom resurgence import seeds\n"
        "if TYPE_CHECKING:\n    from resurgence.config.study import Study\n"
        "def f():\n    from resurgence.erasers import uce, Eraser\n    import resurgence.diffusion.sampling\n"
    )
    found = imported(ast.parse(text), frozenset({"resurgence"}))
    assert found == {
        "resurgence.seeds",
        "resurgence.erasers.closed_form.uce",
        "resurgence.erasers",
        "resurgence.diffusion.sampling",
    }


def test_a_method_brings_its_own_modules_and_no_other_method() -> None:
    modules = {name: method_module(name) for name in ERASERS}
    for name, module in modules.items():
        files = {path.relative_to(SOURCE).as_posix() for path in sources(module)}
        own = file_of(module).relative_to(SOURCE).as_posix()
        others = {file_of(m).relative_to(SOURCE).as_posix() for n, m in modules.items() if n != name}
        assert own in files and "erasers/__init__.py" in files
        # the refinement alone is a part of MACE, and RECE begins with UCE
        assert len(files & others) <= 1, (name, files & others)


def test_what_is_left_out_is_not_followed() -> None:
    every, some = (
        sources("resurgence.stages.masks"),
        sources("resurgence.stages.masks", without=("resurgence.diffusion.sampling",)),
    )
    assert {p.name for p in every} - {p.name for p in some} >= {"sample.py", "progress.py"}


def test_names_without_a_file() -> None:
    assert find_file("resurgence.none") is None and find_file("not_installed.at_all") is None
    assert find_file("json.decoder").name == "decoder.py"
    with pytest.raises(LookupError, match=r"not_installed\.at_all"):
        sources("not_installed.at_all")
