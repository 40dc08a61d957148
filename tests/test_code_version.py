"""The code version: what changes it and what does not, on small packages and on this one."""

from __future__ import annotations

import ast
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from resurgence.config.erasers import ERASERS, erasers, method_module
from resurgence.config.settings import make_eraser
from resurgence.provenance.code_version import code_version, definitions
from resurgence.provenance.normal_form import EFFECTS, INFRASTRUCTURE
from resurgence.provenance.source_modules import find_file, follow, within
from resurgence.workflow import code_entries
from resurgence.workflow.rule_table import RULES

ROOT = Path(__file__).resolve().parents[1]
numbers = itertools.count()  # a new package name each time: files are read once a process

MAIN = '''"""Make a number."""
from __future__ import annotations

import logging

import numpy as np

from PKG.loss import Settings, loss
from resurgence.files import write_json
from resurgence.progress import Progress

log = logging.getLogger(__name__)
STEPS, OTHER = 3, 5


def make(values: list[float], options: dict, folder: Path) -> float:
    """Sum the losses."""
    if not values:
        raise ValueError(f"{values} is empty")
    assert len(values) < 10, "too many"
    cfg = Settings(**options)
    progress, total = Progress("sum", STEPS, "steps"), 0.0
    for step in range(STEPS):
        # the loss of a step
        total += loss(np.asarray(values), cfg.weight)
        progress.add()
    log.info("total %f", total)
    write_json(folder / "total.json", {"total": total})
    return total


def unused() -> int:
    return 1


if __name__ == "__main__":
    make([1.0], {}, None)
'''
LOSS = """import PKG.far as far
from dataclasses import dataclass
from PKG.base import Base


@dataclass
class Settings(Base):
    weight: float = 1.0
    kind = "square"


def loss(x, weight=2.0):
    return far.power(x).sum() * weight
"""
FAR = """def power(x, exponent=2):
    return x**exponent


def save(x):
    return x
"""
BASE = """class Base:
    scale = 1


class OtherBase:
    scale = 1
"""
FILES = {"main.py": MAIN, "loss.py": LOSS, "far.py": FAR, "base.py": BASE}
Edit = Callable[[dict[str, str]], None]


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Version of an entry of a package of these files, in which PKG stands for the name of the package."""
    monkeypatch.syspath_prepend(tmp_path)

    def of(files: dict[str, str], *entries: str) -> str:
        name = f"analysed{next(numbers)}"
        for file, text in {"__init__.py": "", **files}.items():
            (tmp_path / name / file).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / name / file).write_text(text.replace("PKG", name))
        return code_version(*(f"{name}.{entry}" for entry in entries or ("main:make",)))

    return of


def replace(file: str, old: str, new: str) -> Edit:
    """An edit of one file."""

    def edit(files: dict[str, str]) -> None:
        assert files[file].count(old) >= 1, old
        files[file] = files[file].replace(old, new)

    return edit


def after_sum(lines: str) -> Edit:
    """Lines at the end of `make`, before it returns."""
    return replace("main.py", "    return total\n", lines + "    return total\n")


def rename_module(files: dict[str, str]) -> None:
    files["losses.py"] = files.pop("loss.py")
    files["main.py"] = files["main.py"].replace("PKG.loss", "PKG.losses")


def split_module(files: dict[str, str]) -> None:
    head, definition = files["loss.py"].split("\n\n\ndef loss")
    files["settings.py"] = head.replace("import PKG.far as far\n", "")
    files["loss.py"] = f"from PKG.far import power as p\n\n\ndef loss{definition}".replace("far.power(", "p(")
    files["main.py"] = files["main.py"].replace(
        "from PKG.loss import Settings, loss", "from PKG.settings import Settings\nfrom PKG.loss import loss"
    )


def export_again(files: dict[str, str]) -> None:
    files["inner/__init__.py"] = "from .deep import power\nfrom . import deep\n"
    files["inner/deep.py"] = files.pop("far.py")
    files["loss.py"] = files["loss.py"].replace("PKG.far", "PKG.inner")


def export_by_star(files: dict[str, str]) -> None:
    files["inner.py"] = "from PKG.far import *\n"
    files["loss.py"] = files["loss.py"].replace("PKG.far", "PKG.inner")


def reorder(files: dict[str, str]) -> None:
    files["far.py"] = "\n\n".join(reversed(files["far.py"].split("\n\n\n")))
    files["base.py"] = "\n\n".join(reversed(files["base.py"].split("\n\n\n")))


WITHOUT_EFFECT = {
    "comment": replace("main.py", "# the loss of a step", "# in words"),
    "docstring": replace("main.py", '"""Sum the losses."""', '"""Add up,\n\n    in full."""'),
    "docstring removed": replace("main.py", '    """Sum the losses."""\n', ""),
    "text of a raise": replace("main.py", 'f"{values} is empty"', '"give values"'),
    "cause of a raise": replace("main.py", 'is empty")', 'is empty") from None'),
    "message of an assertion": replace("main.py", ', "too many"', ""),
    "log line": replace("main.py", '"total %f", total', '"done"'),
    "log line removed": replace("main.py", '    log.info("total %f", total)\n', ""),
    "condition of a log line": after_sum("    if len(values) > 3:\n        log.warning('many')\n"),
    "first log line": replace("far.py", "def power(", "import logging\nlog = logging.getLogger('far')\ndef power("),
    "print by warnings": after_sum("    import warnings\n    warnings.warn('sum')\n"),
    "progress": replace("main.py", "        progress.add()\n", "        progress.add(2)\n"),
    "progress removed": lambda files: [
        replace("main.py", 'progress, total = Progress("sum", STEPS, "steps"), 0.0', "total = 0.0")(files),
        replace("main.py", "        progress.add()\n", "")(files),
    ],
    "time": after_sum("    import time\n    start = time.monotonic()\n    log.info(time.monotonic() - start)\n"),
    "signals": after_sum("    import signal\n    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"),
    "lock": after_sum("    import fcntl\n    fcntl.flock(folder, fcntl.LOCK_EX)\n"),
    "context without effect": lambda files: [
        replace("main.py", "import logging\n", "import logging\nimport warnings\n")(files),
        replace(
            "main.py", "        total += loss", "        with warnings.catch_warnings():\n            total += loss"
        )(files),
    ],
    "infrastructure": after_sum("    from resurgence.provenance.verify import problems\n    problems(folder)\n"),
    "check of settings": lambda files: [
        replace("loss.py", "import PKG.far", "from resurgence.config.fields import at_least\nimport PKG.far")(files),
        replace("loss.py", "    return far", "    for key in ('a', 'b'):\n        at_least(key, 1, 0)\n    return far")(
            files
        ),
    ],
    "annotation of an argument": replace("main.py", "values: list[float]", "values: np.ndarray"),
    "annotation of a local": replace("main.py", "    cfg = Settings", "    cfg: Settings = Settings"),
    "import for annotations": replace(
        "main.py", "log = ", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pathlib import Path\nlog = "
    ),
    "name of an import": lambda files: [
        replace("main.py", "import Settings, loss", "import Settings, loss as f")(files),
        replace("main.py", "+= loss(", "+= f(")(files),
    ],
    "attribute of a module": lambda files: [
        replace("main.py", "from PKG.loss import Settings, loss", "from PKG import loss as m\nimport PKG.loss")(files),
        replace("main.py", "+= loss(", "+= m.loss(")(files),
        replace("main.py", "= Settings(", "= PKG.loss.Settings(")(files),
    ],
    "import in a function": lambda files: [
        replace("main.py", "from PKG.loss import Settings, loss", "from PKG.loss import Settings")(files),
        replace("main.py", "    cfg = S", "    from PKG.loss import loss as own\n    cfg = S")(files),
        replace("main.py", "+= loss(", "+= own(")(files),
    ],
    "relative import": replace("main.py", "from PKG.loss import", "from .loss import"),
    "import of another package": lambda files: [
        replace("main.py", "import numpy as np", "import numpy")(files),
        replace("main.py", "np.asarray", "numpy.asarray")(files),
    ],
    "renamed module": rename_module,
    "module split in two": split_module,
    "moved to a package that exports it": export_again,
    "exported by a star": export_by_star,
    "order of definitions": reorder,
    "definition that is not reached": replace("main.py", "return 1", "return 2"),
    "constant that is not reached": replace("main.py", "= 3, 5", "= 3, 7"),
    "run as a script": replace("main.py", "make([1.0], {}, None)", "make([2.0], {}, None)"),
    "local named like a definition": replace(
        "far.py", "    return x**exponent", "    return x**exponent\n\n\ndef values():\n    return 1"
    ),
}
WITH_EFFECT = {
    "constant": replace("main.py", "STEPS, OTHER = 3", "STEPS, OTHER = 4"),
    "constant changed later": replace("main.py", "def unused", "STEPS += 1\n\n\ndef unused"),
    "formula": replace("loss.py", ".sum()", ".mean()"),
    "operator": replace("main.py", "total += loss", "total -= loss"),
    "default": replace("loss.py", "weight=2.0", "weight=3.0"),
    "default in another module": replace("far.py", "exponent=2", "exponent=3"),
    "callee two modules away": replace("far.py", "x**exponent", "abs(x) ** exponent"),
    "class attribute": replace("loss.py", '"square"', '"absolute"'),
    "default of a field": replace("loss.py", "weight: float = 1.0", "weight: float = 2.0"),
    "type of a field": replace("loss.py", "weight: float", "weight: int"),
    "attribute of a base class": replace("base.py", "scale = 1", "scale = 2"),
    "base class": replace("loss.py", "Base", "OtherBase"),
    "decorator": replace("loss.py", "@dataclass\n", "@dataclass(frozen=True)\n"),
    "new branch": replace("loss.py", "    return far", "    if weight < 0:\n        return 0\n    return far"),
    "condition of a raise": replace("main.py", "if not values:", "if values:"),
    "type of an exception": replace("main.py", "raise ValueError", "raise TypeError"),
    "condition of an assertion": replace("main.py", "len(values) < 10", "len(values) < 11"),
    "another function of the name": replace("main.py", "import numpy as np", "import torch as np"),
    "what is written": replace("main.py", '{"total": total}', '{"sum": total}'),
    "statement at the top": replace("far.py", "def power", "import numpy\nnumpy.seterr(all='ignore')\n\n\ndef power"),
    "statement of a package": lambda files: files.update({"__init__.py": "import torch\ntorch.manual_seed(0)\n"}),
    "list named log": after_sum("    log = []\n    log.append(total)\n"),
    "condition with an effect": after_sum("    if values.pop() > 3:\n        log.warning('many')\n"),
    "value of the infrastructure": after_sum("    from resurgence.files import sha256\n    total = sha256(folder)\n"),
}


@pytest.mark.parametrize("edit", WITHOUT_EFFECT.values(), ids=WITHOUT_EFFECT)
def test_same_version(version: Callable[..., str], edit: Edit) -> None:
    files = dict(FILES)
    edit(files)
    assert files != FILES and version(files) == version(FILES)


@pytest.mark.parametrize("edit", WITH_EFFECT.values(), ids=WITH_EFFECT)
def test_another_version(version: Callable[..., str], edit: Edit) -> None:
    files = dict(FILES)
    edit(files)
    assert version(files) != version(FILES)


def test_two_definitions_of_one_name_are_not_confused(version: Callable[..., str]) -> None:
    files = {
        "a.py": "def save(x):\n    return x\n",
        "b.py": "def save(x):\n    return 2 * x\n",
        "main.py": "from PKG import a, b\n\n\ndef make(x):\n    return a.save(x) - b.save(x)\n",
    }
    swapped = files | {"main.py": files["main.py"].replace("a.save(x) - b", "b.save(x) - a")}
    assert version(files) != version(swapped)


def test_a_fallback_of_an_import_counts(version: Callable[..., str]) -> None:
    text = (
        "try:\n    from math import pow as p\nexcept ImportError:\n    p = None\n\n\ndef make(x):\n    return p(x, 2)\n"
    )
    others = text.replace("from math", "from operator"), text.replace("p = None", "p = 1")
    assert len({version({"main.py": other}) for other in (text, *others)}) == 3


def test_one_local_name_for_several_imports_reaches_all(version: Callable[..., str]) -> None:
    branches = "    if x:\n        from PKG.a import run\n    else:\n        from PKG.b import run\n    return run(x)\n"
    files = {"a.py": "def run(x):\n    return 1\n", "b.py": "def run(x):\n    return 2\n"}
    files["main.py"] = f"def make(x):\n{branches}"
    for name in ("a.py", "b.py"):
        assert version(files) != version(files | {name: files[name].replace("return ", "return -")}), name


def test_a_local_variable_is_no_reference(version: Callable[..., str]) -> None:
    files = {"main.py": "def make(found):\n    return [found for found in found]\n\n\ndef found():\n    return 1\n"}
    assert version(files) == version({"main.py": files["main.py"].replace("return 1", "return 2")})


def test_a_module_used_as_a_value_counts_whole(version: Callable[..., str]) -> None:
    files = {
        "main.py": "from PKG import a\n\n\ndef make(x):\n    return getattr(a, x)()\n",
        "a.py": "def f():\n    return 1\n",
    }
    assert version(files) != version(files | {"a.py": "def f():\n    return 2\n"})


def test_all_definitions_of_a_module_are_the_entry(version: Callable[..., str]) -> None:
    changed = FILES | {"main.py": MAIN.replace("return 1", "return 2")}
    assert version(FILES, "main") != version(changed, "main") and version(FILES, "main") != version(FILES)


def test_entries_that_are_not_there() -> None:
    for entry in ("resurgence.none", "not_installed.at_all", "resurgence.seeds:none", "not_installed"):
        with pytest.raises(LookupError, match=r"none|not_installed"):
            code_version(entry)


def test_an_entry_is_a_definition_by_colon_or_dot() -> None:
    assert code_version("resurgence.seeds:generator") == code_version("resurgence.seeds.generator")
    assert code_version("resurgence.seeds:generator") != code_version("resurgence.seeds")


def test_infrastructure_is_there() -> None:
    for name in (*INFRASTRUCTURE, *EFFECTS):
        module, _, definition = name.rpartition(".")
        assert find_file(name) or follow(module, (definition,), "resurgence")[0][0].name, name


def test_alternatives_that_are_not_chosen_are_not_followed() -> None:
    registry = "resurgence.data.segmenters"

    def segmenters(*chosen: str) -> set[str]:
        found = definitions("resurgence.stages.masks", *chosen, without=(registry,))
        return {target.path.rpartition(".")[2] for target in found if within(target.path, (registry,))}

    assert segmenters() == set()
    assert segmenters(f"{registry}.foreground") == {"foreground"}
    every = {target.path for target in definitions("resurgence.stages.masks")}
    assert {f"{registry}.{name}" for name in ("foreground", "cross_attention", "grounded_sam")} <= every


def test_what_an_entry_shares_with_its_alternatives_is_followed() -> None:
    found = definitions("resurgence.erasers.gradient.esd", without=("resurgence.erasers",))
    assert {target.path for target in found} >= {
        "resurgence.erasers.gradient.student",
        "resurgence.erasers.gradient.trainer",
    }


# --- this package: the versions of all its rules in a copy of the tree

ENTRIES = {f"stages.{rule.stage}": f"resurgence.stages.{rule.stage}" for rule in RULES.values()}
ENTRIES |= {
    name.removeprefix("resurgence."): name for name in map(method_module, erasers()) if name.startswith("resurgence.")
}
ENTRIES |= {f"mace:{name}": f"resurgence.erasers.mace.method:{name}" for name in ("train_loras", "fuse", "erase")}
PARTS = ("autoencoder", "clip", "drawings", "quality", "recogniser", "text_to_image")
ENTRIES |= {f"miniature.{name}": f"resurgence.miniature.{name}" for name in PARTS}
SCORERS = (path.stem for path in (ROOT / "src/resurgence/scorers").glob("[!_]*.py"))
ENTRIES |= {f"scorers.{name}": f"resurgence.scorers.{name}" for name in SCORERS}
SCRIPT = """import json, sys
from resurgence.provenance.code_version import code_version
print(json.dumps({key: code_version(entry) for key, entry in json.loads(sys.argv[1]).items()}))"""


def versions_of(source: Path, entries: dict[str, str] = ENTRIES) -> dict[str, str]:
    """Versions of all entries, by the package in a folder."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(entries)]
    environment = os.environ | {"PYTHONPATH": str(source)}
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    return versions_of(ROOT / "src")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package's source."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    return shutil.copytree(ROOT / "src", tmp_path / "src", ignore=ignored)


def changed(copy: Path, before: dict[str, str], *edits: tuple[str, str, str]) -> set[str]:
    """Entries whose version is another after edits (file, old, new)."""
    for file, old, new in edits:
        path = copy / "resurgence" / file
        text = path.read_text()
        assert old in text, f"{file} holds no {old!r}"
        path.write_text(text.replace(old, new))
    return {key for key, version in versions_of(copy).items() if version != before[key]}


def test_sampling_bears_on_what_is_sampled(copy: Path, before: dict[str, str]) -> None:
    edit = ("diffusion/sampling.py", "(images / 2 + 0.5)", "(images / 2 + 0.51)")
    sampled = {"stages.sample", "stages.finetune_set", "stages.concept_images", "miniature.quality"}
    assert changed(copy, before, edit) == sampled


def test_loading_the_base_bears_on_every_stage_that_loads_it(copy: Path, before: dict[str, str]) -> None:
    found = changed(copy, before, ("diffusion/pipeline.py", "module.eval().requires_grad_(False)", "module.eval()"))
    sets = ("finetune_set", "real_set")
    loading = (*sets, "concept_images", "erase", "finetune", "geometry", "loras", "masks", "moments", "sample")
    erasers = {"erasers.checkpoint.method", "erasers.checkpoint.update"}
    assert found == {"miniature.quality", *erasers, *(f"stages.{name}" for name in loading)}


def test_a_statistic_bears_on_tables_and_experiments(copy: Path, before: dict[str, str]) -> None:
    edit = ("analysis/random_effects.py", "def jackknife(", "@functools.cache\ndef jackknife(")
    assert changed(copy, before, edit) == {"stages.tables", "stages.experiment"}


def test_the_loop_of_the_gradient_erasers_bears_on_them_alone(copy: Path, before: dict[str, str]) -> None:
    edit = ("erasers/gradient/trainer.py", "cache_enabled=False", "cache_enabled=True")
    found = changed(copy, before, edit)
    assert found == {key for key in before if key.startswith("erasers.gradient.")}


MACE = {  # what an edit bears on: the LoRAs of MACE, or their fusion
    "training": (
        ("erasers/mace/concept_loras.py", 'return {"loss": torch.cat(values)}', 'return {"l": torch.cat(values)}'),
        "train_loras",
    ),
    "data": (("erasers/mace/method.py", "texts = texts.to(pipe.unet.dtype)", "texts = texts.double()"), "train_loras"),
    "fusion": (("erasers/mace/fusion.py", "if scale > 0:", "if scale >= 0:"), "fuse"),
}


@pytest.mark.parametrize("part", MACE)
def test_training_loras_bears_on_no_fusion_and_the_other_way_round(
    part: str, copy: Path, before: dict[str, str]
) -> None:
    edit, function = MACE[part]
    assert changed(copy, before, edit) == {f"mace:{function}", "mace:erase", "erasers.mace.method"}


def test_jobs_digest_the_functions_of_an_eraser_that_they_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a plug-in, with its configuration class where that has the same module."""
    import test_lora_plugin as plugin

    monkeypatch.setitem(ERASERS, plugin.NAME, f"{plugin.__name__}:LoweringConfig")
    erasers.cache_clear()
    study = SimpleNamespace(erasers={name: make_eraser(name, {}) for name in ("mace", "uce", plugin.NAME)})
    called = {"loras": code_entries.loras, "delta": code_entries.eraser}
    entries = {
        (name, part): {entry.rpartition(".")[2] for entry in of(study, job(name))}
        for name in study.erasers
        for part, of in called.items()
    }
    monkeypatch.undo()
    erasers.cache_clear()
    own = f"{plugin.__name__}:LoweringConfig"
    assert entries["mace", "loras"] == {"method:train_loras"} and entries["mace", "delta"] == {"method:fuse"}
    assert entries["uce", "delta"] == {"uce:erase"}
    assert entries[plugin.NAME, "loras"] == {f"{plugin.__name__}:train_loras", own}
    assert entries[plugin.NAME, "delta"] == {f"{plugin.__name__}:fuse", own}


def job(eraser: str) -> SimpleNamespace:
    """The wildcards of an erased model."""
    return SimpleNamespace(task="ship", eraser=eraser, erase_seed="0")


def test_drawing_the_miniature_bears_on_no_score(copy: Path, before: dict[str, str]) -> None:
    found = changed(copy, before, ("miniature/drawings.py", "SIZE = ", "SIZE = 2 * "))
    assert "miniature.drawings" in found and all(key.startswith("miniature.") for key in found)


LOADING = "pretrained/loading.py"
READERS = {  # an edit; a stage that reads or writes through it, and one that does not
    "lines": (("files.py", "[line.strip() for line", "[line.rstrip() for line"), "moments", "sample"),
    "text": (("files.py", "utf-8-sig", "utf-8"), "prompts", "tables"),
    "json": (("files.py", "sort_keys=True", "sort_keys=False"), "tables", "sample"),
    "safetensors": ((LOADING, "file.metadata() or {}", "dict(file.metadata() or {})"), "sample", "tables"),
    "fill": ((LOADING, "load_state_dict(dict(tensors))", "load_state_dict(dict(tensors), False)"), "", "sample"),
    "pretrained": ((LOADING, "    return model.eval()", "    return model.half().eval()"), "sample", "tables"),
}


@pytest.mark.parametrize("reader", READERS)
def test_readers_bear_on_what_reads_through_them(reader: str, copy: Path, before: dict[str, str]) -> None:
    edit, reads, another = READERS[reader]
    found = changed(copy, before, edit)
    assert (f"stages.{reads}" if reads else "scorers.recogniser") in found and f"stages.{another}" not in found


def test_wording_and_infrastructure_bear_on_nothing(copy: Path, before: dict[str, str]) -> None:
    edits = (
        ("stages/job.py", '"""The frame of all jobs', '"""  The frame of each job'),
        ("stages/job.py", "signal.signal(signal.SIGTERM, leave)", "signal.signal(signal.SIGINT, leave)"),
        ("training/checkpoint.py", "SHARE = 20", "SHARE = 30"),
        ("config/erasers.py", "closed_form: ClassVar[bool] = False", "closed_form: ClassVar[bool] = True"),
        ("progress.py", "EVERY = 15.0", "EVERY = 20.0"),
        ("files.py", "-{os.getpid()}.tmp", "-{os.getpid()}.part"),
        ("pretrained/finite.py", "bool(low.isfinite() & high.isfinite())", "bool(high.isfinite())"),
        ("stages/runtime.py", "POLL = 0.5", "POLL = 0.7"),
        ("diffusion/sampling.py", '"out of memory on %s', '"no memory left on %s'),
        ("diffusion/sampling.py", '"""Run DDIM from noise', '"""Sample by DDIM from noise'),
        ("diffusion/sampling.py", "must be a multiple of", "has to be a multiple of"),
        ("miniature/drawings.py", "SIZE = ", "# pixels\nSIZE = "),
    )
    assert changed(copy, before, *edits) == set()


def test_moved_modules_bear_on_nothing(copy: Path, before: dict[str, str]) -> None:
    moves = {
        "diffusion.sampling": "diffusion.ddim",
        "seeds": "data.seeds",
        "scorers.frechet": "analysis.frechet_distance",
    }
    for path in copy.rglob("*.py"):
        text = path.read_text()
        for old, new in moves.items():
            text = text.replace(f"resurgence.{old}", f"resurgence.{new}")
            package, _, name = f"resurgence.{old}".rpartition(".")
            where, _, renamed = f"resurgence.{new}".rpartition(".")
            text = text.replace(f"from {package} import {name}\n", f"from {where} import {renamed} as {name}\n")
        path.write_text(text)
    for old, new in moves.items():
        source, target = (copy / "resurgence" / f"{name.replace('.', '/')}.py" for name in (old, new))
        source.rename(target)
    entries = {key: entry for key, entry in ENTRIES.items() if key not in moves}
    entries["scorers.frechet"] = "resurgence.analysis.frechet_distance"
    assert versions_of(copy, entries) == before


def test_source_written_anew_from_its_syntax_tree_has_the_same_versions(copy: Path, before: dict[str, str]) -> None:
    for path in copy.rglob("*.py"):
        path.write_text(ast.unparse(ast.parse(path.read_text())) + "\n")
    assert changed(copy, before) == set()
