"""The configuration is strict: every mistake stops before a job, with the key, the value and the remedy."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from resurgence.config import erasers, registry
from resurgence.config.fields import ConfigError, read_yaml
from resurgence.config.load import load_study, make_study, merge
from resurgence.config.model_path import ModelPath, method_name, split_name
from resurgence.config.settings import make_method
from resurgence.config.study import Erasure
from resurgence.config.task import load_task, make_task
from resurgence.erasers import EraserConfig, EraserData, Optimisation, method
from resurgence.workflow import experiment_settings, job_settings
from shipped_worlds import require_world

ROOT = Path(__file__).parents[1]
TASK = {
    "name": "pets",
    "kind": "object",
    "erase": ["ship", "cat"],
    "mapping": "ground",
    "retain": ["dog", "bird"],
    "templates": ["a photo of the {}"],
    "seeds": {"erase": 2, "retain": 1, "synonym": 1},
    "synonyms": {"ship": ["boat"]},
    "finetune": ["rose", "crab"],
}


def write_world(root: Path, task: dict[str, Any] = TASK) -> None:
    """The files that the default study names, as small as they may be."""
    for folder in ("data/miniature-2/base", "data/miniature-2/recogniser", "data/miniature-2/clip", "tasks", "config"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tasks/pets.yaml").write_text(yaml.safe_dump(task))
    (root / "general.txt").write_text("a photo of the person\n")
    (root / "closed_form.txt").write_text("a photo of the {}\n")
    names = ["ship", "cat", "dog", "bird", "rose", "crab", "bee"]
    world = {"concepts": [{"name": n, "hypernyms": ["object"]} for n in names], "scenes": [{"name": "ground"}]}
    (root / "config/concepts.yaml").write_text(yaml.safe_dump(world))


@pytest.fixture
def config() -> dict[str, Any]:
    """The default study on one task."""
    values = read_yaml(ROOT / "params.yaml")
    values["tasks"] = {"folder": "tasks", "names": ["pets"], "concepts": "config/concepts.yaml"}
    values["moments"] = {"prior": "general.txt", "domain": "closed_form.txt"}
    for eraser in ("mace", "uce"):
        values["erasers"][eraser]["captions"] = "closed_form.txt"
    values["finetune_sets"] = {"random": {"images_per_prompt": 5}}
    values["finetunes"]["lora"] |= {"steps": 400, "checkpoints": [50, 400]}
    return values


def put(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Set a value by its dotted key; `REMOVE` takes the key out."""
    *path, last = key.split(".")
    place = values
    for step in path:
        place = place.setdefault(step, {})
    if value is REMOVE:
        del place[last]
    else:
        place[last] = value
    return values


REMOVE = object()
BAD_TASKS = {
    "unknown key": ("retian", ["dog"], ["retian", "['dog']", "did you mean 'retain'"]),
    "missing key": ("mapping", REMOVE, ["mapping", "missing", "add"]),
    "erased and retained": ("retain", ["cat", "dog"], ["retain", "'cat'", "remove it"]),
    "erase empty": ("erase", [], ["erase", "[]", "name at least one"]),
    "retain empty": ("retain", [], ["retain", "[]", "name at least one"]),
    "mapping empty": ("mapping", "", ["mapping.ship", "''", "name the concept to map to"]),
    "mapping to itself": ("mapping", {"ship": "ship", "cat": "ground"}, ["mapping.ship", "'ship'", "wider concept"]),
    "mapping to an erased": ("mapping", {"ship": "cat", "cat": "ground"}, ["mapping.ship", "'cat'", "that stays"]),
    "mapping incomplete": ("mapping", {"ship": "ground"}, ["mapping", "'cat'", "add one"]),
    "mapping of another": ("mapping", {"ships": "ground"}, ["mapping", "'ships'", "did you mean 'ship'"]),
    "concept twice": ("erase", ["ship", "ship"], ["erase", "'ship'", "remove one"]),
    "blank concept": ("retain", ["dog", " "], ["retain", "' '", "write the word"]),
    "template without {}": ("templates", ["a photo"], ["templates", "'a photo'", "exactly once"]),
    "template with two {}": ("templates", ["{} and {}"], ["templates", "'{} and {}'", "exactly once"]),
    "text for a list": ("erase", "ship", ["erase", "'ship'", "write [ship]"]),
    "number for text": ("retain", ["dog", 7], ["retain[1]", "7", "must be text"]),
    "unknown kind": ("kind", "persons", ["kind", "'persons'", "did you mean 'person'"]),
    "count 0": ("seeds", {"erase": 0, "retain": 1, "synonym": 1}, ["seeds.erase", "0", "at least 1"]),
    "count negative": ("seeds", {"erase": 1, "retain": -4, "synonym": 1}, ["seeds.retain", "-4", "at least 1"]),
    "count true": ("seeds", {"erase": True, "retain": 1, "synonym": 1}, ["seeds.erase", "True", "whole number"]),
    "count missing": ("seeds", {"erase": 1, "retain": 1}, ["seeds", "'synonym'", "add the images"]),
    "unknown role": (
        "seeds",
        {"erase": 1, "retain": 1, "synonyms": 1},
        ["seeds", "'synonyms'", "'synonym'?"],
    ),
    "fine-tune erased": ("finetune", ["ship"], ["finetune", "'ship'", "remove it"]),
    "fine-tune retained": ("finetune", ["dog"], ["finetune", "'dog'", "remove it"]),
    "synonyms of another": ("synonyms", {"rose": ["red"]}, ["synonyms", "'rose'", "known"]),
    "synonym a concept": ("synonyms", {"ship": ["dog"]}, ["synonyms.ship", "'dog'", "another word"]),
    "label missing": ("labels", ["ship", "cat", "dog"], ["labels", "'bird'", "add"]),
    "name with a slash": ("name", "a/b", ["name", "'a/b'", "small letters"]),
    "eraser unknown": ("erasers", {"mce": {}}, ["erasers", "'mce'", "did you mean 'mace'"]),
    "override unknown": ("erasers", {"mace": {"lambda": 1.0}}, ["erasers.mace.lambda", "1.0", "did you mean 'lamb'"]),
    "unknown to the world": ("retain", ["dog", "bat"], ["retain", "'bat'", "did you mean 'cat'"]),
    "mapping unknown": ("mapping", "grund", ["mapping", "'grund'", "did you mean 'ground'"]),
    "name of another file": ("name", "ship", ["name", "'ship'", "write pets"]),
}


@pytest.mark.parametrize("case", BAD_TASKS)
def test_bad_task(case: str, config: dict[str, Any], tmp_path: Path) -> None:
    key, value, told = BAD_TASKS[case]
    write_world(tmp_path, put(copy.deepcopy(TASK), key, value))
    with pytest.raises(ConfigError) as error:
        make_study(config, tmp_path)
    for part in ["pets.yaml", *told]:
        assert part in str(error.value)


BAD_STUDIES = {
    "unknown key": ("samplng", {}, ["samplng", "{}", "did you mean 'sampling'"]),
    "unknown setting": ("sampling.step", 3, ["sampling.step", "3", "did you mean 'steps'"]),
    "missing block": ("seeds", REMOVE, ["seeds", "missing", "add"]),
    "missing eraser block": ("erasers", REMOVE, ["erasers", "missing", "add"]),
    "unknown eraser": ("erasers.mace.method", "mcae", ["erasers.mace.method", "'mcae'", "did you mean 'mace'"]),
    "eraser setting unknown": ("erasers.uce.lam", 1.0, ["erasers.uce.lam", "1.0", "did you mean 'lamb'"]),
    "1e-4 is text": ("erasers.mace.lr", "1e-4", ["erasers.mace.lr", "'1e-4'", "write 1.0e-4"]),
    "1e3 is text": ("erasers.uce.lamb", "1e3", ["erasers.uce.lamb", "'1e3'", "write 1.0e+3"]),
    "eraser value refused": ("erasers.mace.lr", -1.0, ["erasers.mace.lr", "-1.0", "must be positive"]),
    "no erasers": ("erasers", {}, ["erasers", "{}", "name at least one"]),
    "no variants": ("erasers.uce.variants", {}, ["erasers.uce.variants", "{}", "default: {}"]),
    "variant of an unknown setting": (
        "erasers.mace.variants.big", {"lambb": 1.0}, ["erasers.mace.variants.big.lambb", "1.0", "did you mean 'lamb'"],
    ),
    "mapping outside of a variant": (
        "erasers.uce.mapping", "object", ["erasers.uce.mapping", "'object'", "key of a variant", "variants.default"],
    ),
    "variants misspelt": (
        "finetunes.lora.variant", {"default": {}}, ["finetunes.lora.variant", "did you mean 'variants'"],
    ),
    "limit of a variant misspelt": (
        "erasers.uce.variants.own", {"concept": ["ship"]}, ["uce.variants.own.concept", "did you mean 'concepts'"],
    ),
    "variant mapping to itself": (
        "erasers.uce.variants.own", {"mapping": "cat"}, ["erasers.uce.variants.own", "'cat'", "itself"],
    ),
    "variant mapping unknown": (
        "erasers.uce.variants.own", {"mapping": "objct"}, ["variants.own.mapping", "'objct'", "did you mean 'object'"],
    ),
    "variant on an unknown task": (
        "erasers.uce.variants.one", {"tasks": ["pet"]}, ["erasers.uce.variants.one.tasks", "'pet'", "'pets'"],
    ),
    "settings of none": ("erasers.control", {"method": "none", "lamb": 1}, ["erasers.control.lamb", "1", "remove it"]),
    "unknown segmenter": ("masks.segmenter", "forground", ["masks.segmenter", "'forground'", "'foreground'"]),
    "unknown scorer": ("scorers.clop", {"path": "x"}, ["scorers", "'clop'", "did you mean 'clip'"]),
    "scorer setting unknown": ("scorers.clip.pth", "x", ["scorers.clip.pth", "'x'", "did you mean 'path'"]),
    "metric of no scorer": ("figures", {"metrics": ["fid"]}, ["figures.metrics", "'fid'", "known: clip_accuracy"]),
    "captions missing": ("erasers.uce.captions", "nowhere.txt", ["erasers.uce.captions", "nowhere", "no such file"]),
    "no captions": ("erasers.uce.captions", [], ["erasers.uce.captions", "[]", "is empty", "built-in"]),
    "captions without a place": ("erasers.mace.captions", ["a ship"], ["erasers.mace.captions", "'a ship'", "{}"]),
    "scorer path missing": ("scorers.clip.path", "nowhere", ["scorers.clip.path", "'nowhere'", "dvc pull"]),
    "features of nobody": ("scorers.frechet.features", "clap", ["scorers.frechet.features", "'clap'", "'clip'"]),
    "unknown algorithm": ("finetunes.lora.algorithm", "Lora", ["finetunes.lora.algorithm", "'Lora'", "'lora'"]),
    "unknown set": ("finetunes.lora.set", "randm", ["finetunes.lora.set", "'randm'", "did you mean 'random'"]),
    "no set": ("finetunes.lora.set", REMOVE, ["finetunes.lora.set", "''", "known: random"]),
    "checkpoint beyond": ("finetunes.lora.checkpoints", [50, 4000], ["lora.checkpoints", "4000", "last step"]),
    "checkpoints falling": ("finetunes.lora.checkpoints", [200, 50, 400], ["lora.checkpoints", "200", "rise"]),
    "steps 0": ("finetunes.lora.steps", 0, ["finetunes.lora.steps", "0", "at least 1"]),
    "steps as text": ("finetunes.lora.steps", "400", ["finetunes.lora.steps", "'400'", "whole number"]),
    "follows an unknown eraser": ("finetunes.lora.erasers", ["ucee"], ["finetunes.lora", "'ucee'", "mean 'uce'"]),
    "maps in a fine-tune": ("finetunes.lora.variants.x", {"mapping": "object"}, ["mapping", "'object'", "remove it"]),
    "seeds empty": ("seeds.erase", [], ["seeds.erase", "[]", "write [0]"]),
    "seed twice": ("seeds.finetune", [1, 1], ["seeds.finetune", "1", "remove one"]),
    "seed negative": ("seeds.erase", [-1], ["seeds.erase", "-1", "at least 0"]),
    "seeds a number": ("seeds.erase", 0, ["seeds.erase", "0", "write [0]"]),
    "seeds in unequal pairs": (
        "seeds",
        {"erase": [0, 1], "finetune": [0], "paired": True},
        ["seeds.paired", "erase (2)", "fine-tune (1)", "write false"],
    ),
    "limit to no task": ("erasers.uce.tasks", [], ["erasers.uce", "tasks", "[]", "name tasks, or leave it out"]),
    "limit to no seed": ("erasers.uce.seeds", [], ["erasers.uce", "seeds", "[]", "name seeds, or leave it out"]),
    "follows no eraser": ("finetunes.lora.erasers", [], ["finetunes.lora", "erasers", "[]", "name erasers, or leave"]),
    "study without a name": ("study", "", ["study", "''", "must be text without /"]),
    "study named as a path": ("study", "a/b", ["study", "'a/b'", "must be text without /"]),
    "world missing": ("world", "nowhere.yaml", ["world", "'nowhere.yaml'", "no such file", "write a path"]),
    "seed not of the study": ("erasers.uce.seeds", [5], ["erasers.uce", "5", "known: 0"]),
    "no tasks": ("tasks.names", [], ["tasks.names", "[]", "name at least one"]),
    "task twice": ("tasks.names", ["pets", "pets"], ["tasks.names", "'pets'", "remove one"]),
    "task file missing": ("tasks.names", ["pats"], ["tasks.names", "'pats'", "no file pats.yaml", "mean 'pets'"]),
    "corpus missing": ("moments.prior", "no.txt", ["moments.prior", "'no.txt'", "write a path"]),
    "base missing": ("base.path", "data/base", ["base.path", "'data/base'", "dvc pull"]),
    "device unknown": ("base.device", "gpu", ["base.device", "'gpu'", "cuda"]),
    "resamples few": ("statistics.resamples", 20, ["statistics.resamples", "20", "at least 100"]),
    "level in percent": ("statistics.level", 95, ["statistics.level", "95", "write 0.95"]),
    "true for a number": ("sampling.batch", True, ["sampling.batch", "True", "whole number"]),
    "guidance text": ("sampling.guidance", "high", ["sampling.guidance", "'high'", "a number"]),
    "steps a fraction": ("sampling.steps", 2.5, ["sampling.steps", "2.5", "whole number"]),
    "concept images 0": ("concept_images.per_concept", 0, ["concept_images.per_concept", "0", "at least 1"]),
    "image template": ("concept_images.template", "a photo", ["concept_images.template", "'a photo'", "exactly once"]),
    "set shows an erased": ("finetune_sets.random.concepts", ["ship"], ["finetune_sets.random", "'ship'", "remove it"]),
    "set shows an unknown": ("finetune_sets.random.concepts", ["roose"], ["random", "'roose'", "did you mean 'rose'"]),
    "set of both sizes": ("finetune_sets.random.size", 10, ["finetune_sets.random.images_per_prompt", "5", "not both"]),
    "set of size 0": ("finetune_sets.random.images_per_prompt", 0, ["random.images_per_prompt", "0", "at least 1"]),
    "set keyword": ("finetune_sets.random.concepts", "tasks", ["finetune_sets.random.concepts", "'tasks'", "list"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_STUDIES)
def test_bad_study(case: str, config: dict[str, Any], tmp_path: Path) -> None:
    key, value, told = BAD_STUDIES[case]
    write_world(tmp_path)
    with pytest.raises(ConfigError) as error:
        make_study(put(config, key, value), tmp_path)
    for part in told:
        assert part in str(error.value)


def test_the_world_of_the_checkout_serves_a_study_elsewhere(config: dict[str, Any], tmp_path: Path) -> None:
    write_world(tmp_path)
    study = make_study(put(config, "world", REMOVE), tmp_path)
    assert (tmp_path / study.world).samefile(ROOT / "config/world.yaml")


def test_good_study(config: dict[str, Any], tmp_path: Path) -> None:
    write_world(tmp_path)
    study = make_study(config, tmp_path)
    assert [study.folder(e, "delta") for e in study.erasures()] == [
        "results/erased/miniature-2/pets/mace/s0/delta",
        "results/erased/miniature-2/pets/uce/s0/delta",
    ]
    last = list(study.cells())[1]
    assert study.folder(last, "weights") == "results/finetuned/miniature-2/pets/uce/s0/lora/f0/weights"
    assert study.folder("pets", "finetune_sets/random") == "results/data/miniature-2/pets/finetune_sets/random"
    assert study.folder(None, "moments") == "results/data/miniature-2/moments"


def test_task_overrides_study_and_variant_overrides_task(config: dict[str, Any], tmp_path: Path) -> None:
    write_world(tmp_path, {**TASK, "erasers": {"uce": {"lamb": 2.0, "erase_scale": 2.0}}})
    put(config, "erasers.uce.lamb", 1.0)
    put(config, "erasers.uce.variants", {"default": {}, "three": {"lamb": 3.0}})
    study = make_study(config, tmp_path)
    assert study.eraser_settings("pets", "uce", "default")["lamb"] == 2.0
    assert study.eraser_settings("pets", "uce", "three") == {
        **study.eraser_settings("pets", "uce", "default"),
        "lamb": 3.0,
    }


def test_variant_mapping_reaches_the_block_of_that_variant_only(config: dict[str, Any], tmp_path: Path) -> None:
    write_world(tmp_path)
    put(config, "erasers.uce.variants", {"default": {}, "wide": {"mapping": "object"}})
    study = make_study(config, tmp_path)
    mapped = [job_settings.erase(study, e)["task"]["mapping"] for e in study.erasures() if e.eraser == "uce"]
    assert mapped == [{"ship": "ground", "cat": "ground"}, {"ship": "object", "cat": "object"}]


@pytest.mark.parametrize(
    ("kind", "use", "masked"), [("object", True, True), ("object", False, False), ("style", True, False)]
)
def test_masks_are_wanted_where_they_are_read(
    config: dict[str, Any], tmp_path: Path, kind: str, use: bool, masked: bool
) -> None:
    write_world(tmp_path, TASK | {"kind": kind})
    put(config, "erasers.mace.use_masks", use)
    config["moments"] = {"prior": "general.txt", "domain": {kind: "closed_form.txt"}}
    study = make_study(config, tmp_path)
    assert ("masks" in job_settings.reads(study, Erasure("pets", "mace", "default", 0))) == masked
    assert "masks" not in job_settings.reads(study, Erasure("pets", "uce", "default", 0))


def test_limits_choose_cells(config: dict[str, Any], tmp_path: Path) -> None:
    write_world(tmp_path)
    config["seeds"] = {"erase": [0, 1], "finetune": [0, 1]}
    put(config, "erasers.uce.seeds", [0])
    put(config, "erasers.none", {"method": "none", "seeds": [0]})
    put(config, "finetunes.lora.variants", {"default": {}, "once": {"erasers": ["mace"], "seeds": [1], "lr": 1.0e-5}})
    study = make_study(config, tmp_path)
    count = {(e, v): 0 for e in ("mace", "uce", "none") for v in ("default", "once")}
    for cell in study.cells():
        count[cell.erasure.eraser, cell.variant] += 1
    assert count == {
        ("mace", "default"): 4, ("mace", "once"): 2, ("uce", "default"): 2, ("uce", "once"): 0,
        ("none", "default"): 2, ("none", "once"): 0,
    }  # fmt: skip


def test_paired_seeds(config: dict[str, Any], tmp_path: Path) -> None:
    write_world(tmp_path)
    config["seeds"] = {"erase": [3, 5], "finetune": [7, 4], "paired": True}
    put(config, "erasers.uce.seeds", [5])
    put(config, "finetunes.lora.variants", {"default": {}, "once": {"seeds": [4], "lr": 1.0e-5}})
    study = make_study(config, tmp_path)
    found = {(c.erasure.eraser, c.erasure.seed, c.variant, c.seed) for c in study.cells()}
    assert found == {
        ("mace", 3, "default", 7), ("mace", 5, "default", 4), ("mace", 5, "once", 4),
        ("uce", 5, "default", 7), ("uce", 5, "default", 4), ("uce", 5, "once", 4),
    }  # fmt: skip


def test_variants_that_differ_in_the_fusion_share_their_loras(config: dict[str, Any], tmp_path: Path) -> None:
    write_world(tmp_path)
    changed = {"default": {}, "fused": {"fuse_preserve_scale": 0.1}, "longer": {"steps": 99}}
    put(config, "erasers.mace.variants", changed)
    study = make_study(config, tmp_path)
    found = {e.variant: job_settings.loras_of(study, e).variant for e in study.erasures() if e.eraser == "mace"}
    assert found == {"default": "default", "fused": "default", "longer": "longer"}


def test_configurations_of_erasers_are_read_without_torch() -> None:
    code = (
        "import sys; from resurgence.config.erasers import erasers, eraser_config, method_module\n"
        "import resurgence.erasers\n"
        "names = [name for name in erasers() if method_module(name) and eraser_config(name)]\n"
        "print(len(names), [m for m in ('torch', 'diffusers', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True
    )
    assert done.stdout.strip() == f"{len(erasers.ERASERS)} []", done.stderr


def test_every_method_has_what_its_configuration_says() -> None:
    # state and sums are of the same eraser's jobs, anchor_captions come with the anchors
    files = {f.name for f in dataclasses.fields(EraserData)} - {"state", "sums", "anchor_captions"}
    assert set(erasers.DATA) == files
    for name in erasers.ERASERS:
        config, module = erasers.eraser_config(name), method(name)
        assert config.__module__ != module.__name__ and callable(module.erase), name
        assert hasattr(module, "train_loras") == hasattr(module, "fuse") == config.trains_loras, name
        assert config.fusion_settings <= {f.name for f in dataclasses.fields(config)}, name
        assert config.closed_form != issubclass(config, Optimisation) == config.has_curve, name


def test_mace_reads_no_masks_for_styles() -> None:
    mace = erasers.eraser_config("mace")
    assert mace().reads("object") - mace().reads("style") == {"masks"} <= mace().needs
    assert "masks" not in mace(use_masks=False).reads("person")


class Entry(NamedTuple):
    """An entry point."""

    name: str
    value: str


class Elsewhere(EraserConfig):
    """A configuration class of another package."""


class Odd(EraserConfig):
    """One that asks for what is not there."""

    needs = frozenset({"sounds"})


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Entry points of other packages."""

    def entries(*found: Entry) -> None:
        monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "resurgence.erasers" else ())
        erasers.erasers.cache_clear()
        erasers.eraser_config.cache_clear()

    yield entries
    monkeypatch.undo()
    erasers.erasers.cache_clear()
    erasers.eraser_config.cache_clear()


def test_an_entry_point_registers_an_eraser(register: Callable[..., None]) -> None:
    register(Entry("elsewhere", f"{__name__}:Elsewhere"))
    assert erasers.eraser_config("elsewhere") is Elsewhere and erasers.method_module("elsewhere") == __name__
    with pytest.raises(ConfigError, match=r"method = 'elsewere': .*did you mean 'elsewhere'"):
        erasers.eraser_config("elsewere")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (Entry("uce", "other:UceConfig"), ["entry point resurgence.erasers = 'uce'", "choose another name"]),
        (Entry("new", __name__), ["entry point resurgence.erasers: new", "module:Class"]),
        (Entry("new", f"{__name__}:Entry"), ["entry point resurgence.erasers: new", "subclass of"]),
        (Entry("new", f"{__name__}:Missing"), ["entry point resurgence.erasers: new", "'test_config:Missing'"]),
        (Entry("new", f"{__name__}:Odd"), ["test_config:Odd: needs = 'sounds'", "known: prior, domain"]),
    ],
    ids=lambda value: value.value if isinstance(value, Entry) else "",
)
def test_an_entry_point_that_names_no_eraser(register: Callable[..., None], entry: Entry, words: list[str]) -> None:
    register(entry)
    with pytest.raises(ConfigError) as error:
        erasers.eraser_config(entry.name)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("path", sorted((ROOT / "config/tasks/miniature").glob("*.yaml")), ids=lambda path: path.stem)
def test_tasks_of_the_miniature(path: Path) -> None:
    task = load_task(path)
    world = read_yaml(ROOT / "config/concepts/miniature.yaml")
    synonyms = {entry["name"]: tuple(entry["synonyms"]) for entry in world["concepts"]}
    assert task.name == path.stem
    assert {*task.erase, *task.retain, *task.finetune, *task.labels} <= set(synonyms)
    assert all(synonyms[concept] == words for concept, words in task.synonyms.items())
    general = (ROOT / "config/prompts/miniature/general.txt").read_text().splitlines()
    words = {*task.erase, *(word for group in task.synonyms.values() for word in group)}
    padded = [f" {caption} " for caption in general]
    assert not [c for c in padded for word in words if f" {word} " in c]


def test_identities_are_nested_and_share_what_is_retained() -> None:
    tasks = [load_task(ROOT / f"config/tasks/miniature/identities-{n}.yaml") for n in (1, 5, 10, 30)]
    assert [len(task.erase) for task in tasks] == [1, 5, 10, 30]
    assert all(set(a.erase) < set(b.erase) for a, b in itertools.pairwise(tasks))
    assert len({(task.retain, task.finetune, task.templates) for task in tasks}) == 1
    assert len(tasks[0].retain) == 30
    assert all(len(task.erase) * task.seeds["erase"] >= 30 for task in tasks)


@pytest.mark.parametrize("overlay", [None, *sorted((ROOT / "studies").glob("*.yaml"))], ids=str)
def test_shipped_studies(overlay: Path | None, tmp_path: Path) -> None:
    text = (overlay or ROOT / "params.yaml").read_text()
    for world in {"miniature-2", *re.findall(r"data/(miniature[-\d]*)/", text)}:
        require_world(world)
    # laid over another study
    below = {
        "sd21-768": "sd21",
        "coco-5k": "sd14",
        "sd14-lean": "sd14",
        "sd14-sources": "sd14",
        "sources-quick": "sources",
        "eap-lpips": "eap",
        "eap-synonyms": "eap",
        "doco-captions": "doco",
    }
    layers = [ROOT / f"studies/{below[overlay.stem]}.yaml"] if overlay and overlay.stem in below else []
    if layers:
        told = rf"{overlay.name}: over = \[.*'{below[overlay.stem]}'.*of these studies none is given"
        with pytest.raises(ConfigError, match=told):
            load_study([ROOT / "params.yaml", overlay], ROOT)
    paths = [ROOT / "params.yaml", *layers, *([overlay] if overlay else [])]
    study = load_study(paths, ROOT)
    folders = [study.folder(item, "scores") for item in (*study.erasures(), *study.cells())]
    assert len(set(folders)) == len(folders) > 5
    elsewhere = load_study(paths, tmp_path)  # the files of the checkout, also those that its tasks name
    assert [elsewhere.folder(item, "scores") for item in (*elsewhere.erasures(), *elsewhere.cells())] == folders


def test_mapping_word_stands_for_all() -> None:
    assert make_task(TASK).mapping == {"ship": "ground", "cat": "ground"}


def test_labels_default_to_erase_and_retain() -> None:
    assert make_task(TASK).labels == ("ship", "cat", "dog", "bird")


def test_key_written_twice(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: 1\nb: {c: 1, c: 2}\n")
    with pytest.raises(ConfigError, match=r"line 2, key = 'c': .*remove one"):
        read_yaml(tmp_path / "x.yaml")


def test_bad_yaml_and_missing_file(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match=r"x.yaml.*not valid YAML"):
        read_yaml(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match=r"y.yaml.*does not exist"):
        read_yaml(tmp_path / "y.yaml")


def test_merge_is_that_of_snakemake() -> None:
    from snakemake.utils import update_config

    below = {"a": {"b": [1, 2], "c": {"d": 1}}, "e": 1}
    above = {"a": {"b": [3], "c": {"f": 2}}, "g": None}
    expected = copy.deepcopy(below)
    update_config(expected, above)
    assert merge(below, above) == expected
    assert below["a"]["b"] == [1, 2]


def test_names_in_paths() -> None:
    assert method_name("mace", "default") == "mace" and method_name("mace", "to-object") == "mace.to-object"
    assert split_name("mace") == ("mace", "default") and split_name("mace.to-object") == ("mace", "to-object")


def test_paths_of_models() -> None:
    base, erased = ModelPath("ship"), ModelPath("ship").then("erase", "mace", "to-sky", 1)
    tuned = erased.then("finetune", "lora", "default", 2)
    again = tuned.then("erase", "uce", "default", 0)
    texts = ["ship", "ship/mace.to-sky/s1", "ship/mace.to-sky/s1/lora/f2", "ship/mace.to-sky/s1/lora/f2/uce/s0"]
    assert [str(model) for model in (base, erased, tuned, again)] == texts
    assert [ModelPath.parse(text) for text in texts] == [base, erased, tuned, again]
    assert [model.state for model in (base, erased, tuned, again)] == ["base", "erased", "finetuned", "erased"]
    assert again.prefixes() == [erased, tuned, again] and again.base == base
    for model in (base, erased, tuned):
        assert ModelPath.of_columns(model.columns()) == model
    assert ModelPath.of_columns({"task": "ship", "eraser": "", "finetune": ""}) == base


@pytest.mark.parametrize(
    "text", ["", "Ship", "ship/", "ship/mace", "ship/mace/0", "ship/mace/x0", "ship/s0", "a/b/s1/"]
)
def test_what_is_no_path_of_a_model(text: str) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(repr(text))} is not the path of a model"):
        ModelPath.parse(text)


def test_method_without_variants_has_the_default() -> None:
    assert list(make_method({}, "erasers.x", None, "erasers").variants) == ["default"]


EXPERIMENT = {"title": "T", "kind": "bars", "tasks": ["pets"], "erasers": ["mace"], "finetunes": ["lora"]}
MEMBERS = {"kind": "members", "erasers": [], "finetunes": []}
BAD_EXPERIMENTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "task": ({"tasks": ["pet"]}, ["experiments.fig5.tasks", "'pet'", "'pets'?"]),
    "eraser": ({"erasers": ["mace.wide"]}, ["experiments.fig5.erasers", "'mace.wide'", "known:"]),
    "fine-tune": ({"finetunes": ["full"]}, ["experiments.fig5.finetunes", "'full'", "lora"]),
    "kind": ({"kind": "bar"}, ["experiments.fig5.kind", "'bar'", "'bars'?"]),
    "axis": ({"along": "lr"}, ["experiments.fig5.along", "'lr'", "known: eraser, finetune, task"]),
    "setting": ({"kind": "line", "along": "captions"}, ["experiments.fig5.along", "not a number"]),
    "unknown setting": ({"kind": "line", "along": "lambda"}, ["experiments.fig5.along", "'lambda'", "lamb"]),
    "no erasers": ({"erasers": []}, ["experiments.fig5.erasers", "[]", "at least one"]),
    "no sets": (MEMBERS, ["experiments.fig5.sets", "[]", "members"]),
    "unknown set": ({**MEMBERS, "sets": ["third"]}, ["experiments.fig5.sets", "'third'", "random"]),
    "claim": (
        {"claims": [{"says": "", "of": {"task": "ship"}, "expect": "above"}]},
        ["experiments.fig5.claims[0].of", "no row of this experiment"],
    ),
    "unknown role": ({"roles": ["erased"]}, ["experiments.fig5.roles", "'erased'", "did you mean 'erase'"]),
    "no general prompts": ({"roles": ["erase", "general"]}, ["fig5.roles", "'general'", "no prompts in pets"]),
    "no synonyms": ({"roles": ["synonym-retain"]}, ["fig5.roles", "'synonym-retain'", "no prompts in pets"]),
    "claim role": (
        {"claims": [{"says": "", "of": {"role": "retain"}, "expect": "above"}]},
        ["experiments.fig5.claims[0].of", "no row of this experiment"],
    ),
    "claim word": (
        {"claims": [{"says": "", "of": {}, "expect": "more"}]},
        ["experiments.fig5.claims[0].expect", "'more'", "above, below, equal"],
    ),
    "unknown key": ({"eraser": "mace"}, ["experiments.fig5.eraser", "unknown key", "erasers"]),
    "unknown metric": ({"metric": "esr_1"}, ["experiments.fig5.metric", "'esr_1'", "known:"]),
    "table of nothing": ({"kind": "table"}, ["experiments.fig5.metrics", "[]", "at least one"]),
    "metrics of bars": ({"metrics": ["blank"]}, ["experiments.fig5.metrics", "['blank']", "no effect in"]),
    "metric of a table": (
        {"kind": "table", "metrics": ["blank"], "metric": "clip_score"},
        ["experiments.fig5.metric", "'clip_score'", "has no effect in an experiment of kind table; remove it"],
    ),
    "unknown column": (
        {"kind": "table", "metrics": ["blank", "psr_1"]},
        ["experiments.fig5.metrics", "'psr_1'", "known:"],
    ),
    "one task": ({"kind": "table", "metrics": ["blank"], "over_tasks": True}, ["fig5.over_tasks", "name two tasks"]),
    "concepts of bars": ({"each_concept": True}, ["fig5.each_concept", "no effect in an experiment of kind bars"]),
    "concepts over tasks": (
        {"kind": "table", "metrics": ["blank"], "tasks": ["pets", "pets2"], "over_tasks": True, "each_concept": True},
        ["fig5.each_concept", "is for a table of single tasks"],
    ),
    "claims of a grid": (
        {"kind": "grid", "claims": [{"says": "more", "of": {}, "expect": "above"}]},
        ["experiments.fig5.claims", "['more']", "no effect in an experiment of kind grid; remove it"],
    ),
    "choice of bars": ({"choose": "largest"}, ["experiments.fig5.choose", "'largest'", "no effect in an experiment"]),
    "metric of the largest": (
        {"kind": "grid", "choose": "largest", "metric": "H_c"},
        ["experiments.fig5.metric", "'H_c'", "known:"],
    ),
    "heat map of scores": (
        {"kind": "heatmap", "metric": "clip_score"},
        ["experiments.fig5.metric", "'clip_score'", "is no share in percent"],
    ),
    "claim metric": (
        {"kind": "table", "metrics": ["blank"],
         "claims": [{"says": "", "of": {}, "expect": "above", "metric": "clip_score"}]},
        ["fig5", "claims[0].metric", "'clip_score'", "known: blank"],
    ),
    "claim concept": (
        {"kind": "table", "metrics": ["blank"], "each_concept": True,
         "claims": [{"says": "", "of": {"concept": "dragon"}, "expect": "above"}]},
        ["experiments.fig5.claims[0].of", "'dragon'", "no row of this experiment"],
    ),
    "claim task": (
        {"kind": "table", "metrics": ["blank"], "tasks": ["pets", "pets2"], "over_tasks": True,
         "claims": [{"says": "", "of": {"task": "pets"}, "expect": "above"}]},
        ["claims[0].of.task", "'pets'", "is averaged with the other tasks"],
    ),
    "no fine-tunes": (
        {"finetunes": [], "claims": [{"says": "", "of": {}, "expect": "above"}]},
        ["claims[0].value", "'resurgence'", "is of a fine-tuned model, and the experiment has none; write erased"],
    ),
    "curves of nothing": ({"kind": "curves", "finetunes": []}, ["experiments.fig5.finetunes", "[]", "at least one"]),
    "axis of nothing": ({"finetunes": [], "along": "finetune"}, ["fig5.along", "'finetune'", "known: eraser, task"]),
    "largest of nothing": ({"kind": "grid", "finetunes": [], "choose": "largest"}, ["fig5.choose", "write first"]),
    "words of a fine-tune": ({"kind": "words"}, ["fig5.finetunes", "['lora']", "kind words; remove it"]),
    "similarity of nothing": (
        {"kind": "similarity", "finetunes": [], "texts": ["a photo"]}, ["experiments.fig5.words", "[]", "at least one"],
    ),
    "scatter without its scorer": (
        {"kind": "scatter", "finetunes": []},
        ["experiments.fig5.kind", "'scatter'", "is computed by scorers.sensitivity, which the study does not have"],
    ),
    "words of MACE": (
        {"kind": "words", "finetunes": []},
        ["experiments.fig5.erasers", "'mace'", "searches no words; name erasers that do, such as eap"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_EXPERIMENTS)
def test_bad_experiment(case: str, config: dict[str, Any], tmp_path: Path) -> None:
    changes, told = BAD_EXPERIMENTS[case]
    write_world(tmp_path)
    config["experiments"] = {"fig5": {**EXPERIMENT, **changes}}
    with pytest.raises(ConfigError) as error:
        make_study(config, tmp_path)
    for part in told:
        assert part in str(error.value), error.value


@pytest.mark.parametrize("limited", ["erasers", "finetunes"])
def test_means_over_tasks_are_over_the_same_tasks(limited: str, config: dict[str, Any], tmp_path: Path) -> None:
    write_world(tmp_path)
    (tmp_path / "tasks/cars.yaml").write_text((tmp_path / "tasks/pets.yaml").read_text().replace("pets", "cars"))
    config["tasks"]["names"] = ["pets", "cars"]
    table = {"title": "", "kind": "table", "tasks": ["pets", "cars"], "metrics": ["clip_score"], "over_tasks": True}
    config["experiments"] = {"tab1": {**table, "erasers": ["mace", "uce"], "finetunes": ["lora"]}}
    make_study(config, tmp_path)
    name = {"erasers": "uce", "finetunes": "lora"}[limited]
    config[limited][name]["variants"] = {"default": {"tasks": ["pets"]}}
    if limited == "finetunes":  # which follows MACE on both tasks and UCE on one
        config[limited][name]["variants"] = {"default": {"erasers": ["mace"]}, "x": {}}
        config["experiments"]["tab1"]["finetunes"] = ["lora", "lora.x"]
        make_study(config, tmp_path)
        config[limited][name]["variants"]["x"] = {"tasks": ["pets"]}
    model = {"erasers": r"uce \+ lora", "finetunes": r"mace \+ lora\.x"}[limited]
    with pytest.raises(ConfigError, match=rf"experiments\.tab1\.erasers = '{model}': leaves out cars, which others"):
        make_study(config, tmp_path)


def test_one_task_with_prompts_of_a_role_is_enough_but_for_a_grid(config: dict[str, Any], tmp_path: Path) -> None:
    write_world(tmp_path)
    (tmp_path / "tasks/cars.yaml").write_text(yaml.safe_dump({**TASK, "name": "cars", "synonyms": {"dog": ["hound"]}}))
    config["tasks"]["names"] = ["pets", "cars"]
    shown = {**EXPERIMENT, "tasks": ["pets", "cars"], "roles": ["synonym"]}
    config["experiments"] = {"fig5": shown, "fig6": {**shown, "kind": "grid", "tasks": ["pets"]}}
    make_study(config, tmp_path)
    config["experiments"]["fig6"]["tasks"] = ["pets", "cars"]
    with pytest.raises(ConfigError, match=r"experiments\.fig6\.roles = 'synonym': has no prompts in cars"):
        make_study(config, tmp_path)


def test_a_grid_shows_models_of_the_first_seed(config: dict[str, Any], tmp_path: Path) -> None:
    write_world(tmp_path)
    config["seeds"] = {"erase": [0, 1], "finetune": [0]}
    config["experiments"] = {"fig6": {**EXPERIMENT, "kind": "grid"}}
    make_study(config, tmp_path)
    eraser = EXPERIMENT["erasers"][0]
    config["erasers"][eraser]["seeds"] = [1]
    with pytest.raises(
        ConfigError, match=rf"experiments\.fig6\.erasers = '{eraser}': has no model of seed 0, the first"
    ):
        make_study(config, tmp_path)


def test_a_line_has_one_place_for_an_eraser_in_all_tasks(config: dict[str, Any], tmp_path: Path) -> None:
    write_world(tmp_path)
    cars = {**TASK, "name": "cars", "erasers": {"mace": {"lamb": 3.0}}}
    (tmp_path / "tasks/cars.yaml").write_text(yaml.safe_dump(cars))
    config["tasks"]["names"] = ["pets", "cars"]
    line = {**EXPERIMENT, "kind": "line", "along": "lamb", "erasers": ["mace"]}
    config["experiments"] = {"fig7": line, "fig8": {**line, "tasks": ["cars"]}}
    make_study(config, tmp_path)
    config["experiments"]["fig7"]["tasks"] = ["pets", "cars"]
    with pytest.raises(ConfigError, match=r"fig7\.along = 'lamb': is 3 for mace in cars and .* in another"):
        make_study(config, tmp_path)


@pytest.mark.parametrize("shown", [{"metric": "clip_score"}, {"kind": "table", "metrics": ["clip_score"]}])
def test_a_metric_is_scored_for_every_task_of_its_experiment(
    shown: dict[str, Any], config: dict[str, Any], tmp_path: Path
) -> None:
    write_world(tmp_path)
    config["experiments"] = {"fig5": {**EXPERIMENT, **shown}}
    config["scorers"]["clip"]["kinds"] = ["object"]
    make_study(config, tmp_path)
    config["scorers"]["clip"]["kinds"] = ["style"]
    with pytest.raises(ConfigError, match=r"'clip_score': is of scorers\.clip, whose kinds leave out object"):
        make_study(config, tmp_path)


def test_settings_of_an_experiment_have_keys_of_tables_only_in_tables(config: dict[str, Any], tmp_path: Path) -> None:
    """So that the manifests of experiments of other kinds stay as they were."""
    write_world(tmp_path)
    claim = {"says": "", "of": {}, "expect": "above"}
    table = {**EXPERIMENT, "kind": "table", "metrics": ["blank"], "each_concept": True}
    concept = TASK["erase"][0]
    claims = [{**claim, "metric": "blank", "of": {"concept": concept}, "against": {}}]
    config["experiments"] = {"fig5": {**EXPERIMENT, "claims": [claim]}, "tab1": {**table, "claims": claims}}
    study = make_study(config, tmp_path)
    bars, columns = (experiment_settings.experiment(study, name) for name in ("fig5", "tab1"))
    assert not {"metrics", "each_concept", "over_tasks"} & set(bars)
    assert set(bars["claims"][0]) == {"says", "of", "expect", "against", "value", "than", "margin"}
    assert set(bars["claims"][0]["of"]) == {"task", "eraser", "finetune", "role"}
    assert columns["metrics"] == ("blank",) and columns["each_concept"] is True and "over_tasks" not in columns
    assert columns["claims"][0]["metric"] == "blank" and columns["claims"][0]["of"]["concept"] == concept
    assert "concept" not in columns["claims"][0]["against"]


def test_an_experiment_without_finetunes_reads_bases_and_erased_models(config: dict[str, Any], tmp_path: Path) -> None:
    write_world(tmp_path)
    claim = {"says": "", "of": {}, "against": {}, "value": "erased", "expect": "equal"}
    alone = {**EXPERIMENT, "finetunes": []}
    config["experiments"] = {"fig5": {**alone, "claims": [claim]}, "fig8": {**alone, "kind": "grid"}}
    study = make_study(config, tmp_path)
    erased = [study.model(e) for e in study.erasures() if e.eraser == "mace" and e.variant == "default"]
    settings = experiment_settings.experiment(study, "fig5")
    assert settings["models"] == ["pets", *map(str, erased)] and settings["differences"] == [""]
    scores = [study.folder(model, "scores") for model in ("pets", *erased)]
    assert experiment_settings.experiment_reads(study, "fig5") == scores
    images = [study.folder(model, "images") for model in ("pets", erased[0])]
    grid = experiment_settings.experiment(study, "fig8")
    assert grid["columns"] == {"pets, mace": dict(zip(("base", "erased"), images, strict=True))}
    assert experiment_settings.experiment_reads(study, "fig8") == images


def test_a_grid_of_several_erasers_has_them_side_by_side(config: dict[str, Any], tmp_path: Path) -> None:
    """But for the concepts that fine-tuning changed most, which each eraser has of its own."""
    write_world(tmp_path)
    shown = {**EXPERIMENT, "kind": "grid", "erasers": ["uce", "mace"], "finetunes": ["lora"]}
    config["experiments"] = {"fig5": shown, "fig6": {**shown, "choose": "largest"}, "fig7": {**shown, "finetunes": []}}
    study = make_study(config, tmp_path)
    together, apart, erased = (
        experiment_settings.experiment(study, name)["columns"] for name in ("fig5", "fig6", "fig7")
    )
    first = [cell for cell in study.cells() if (cell.erasure.seed, cell.seed) == (0, 0) and cell.finetune == "lora"]
    cells = {cell.erasure.eraser: cell for cell in first if cell.erasure.variant == "default"}
    images = {"base": study.folder("pets", "images")}
    for name in ("uce", "mace"):
        of_eraser = {"erased": cells[name].erasure, "fine-tuned": cells[name]}
        folders = {label: study.folder(item, "images") for label, item in of_eraser.items()}
        assert apart[f"pets, {name}, lora"] == {"base": images["base"], **folders}
        images |= {name: folders["erased"], f"{name}, fine-tuned": folders["fine-tuned"]}
    assert together == {"pets, lora": images} and set(apart) == {"pets, uce, lora", "pets, mace, lora"}
    assert erased == {"pets": {label: images[label] for label in ("base", "uce", "mace")}}


@pytest.mark.parametrize("kind", ["person", "object"])
def test_a_template_of_concept_images_for_each_kind(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    write_world(tmp_path)
    config["concept_images"]["template"] = {kind: "the {} itself"}
    own = make_task(TASK).kind
    if kind != own:
        with pytest.raises(ConfigError, match=rf"concept_images.template = '{own}': .*known: {kind}"):
            make_study(config, tmp_path)
        return
    settings = job_settings.concept_images(make_study(config, tmp_path), "pets")
    assert settings["template"] == "the {} itself"


@pytest.mark.parametrize("name", ["Fig5", "fig-5"])
def test_bad_name_of_an_experiment(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    write_world(tmp_path)
    config["experiments"] = {name: EXPERIMENT}
    with pytest.raises(ConfigError, match=f"experiments = '{name}'"):
        make_study(config, tmp_path)


def test_an_experiment_without_cells_names_the_limits(config: dict[str, Any], tmp_path: Path) -> None:
    write_world(tmp_path)
    put(config, "finetunes.lora.variants", {"default": {}, "other": {"erasers": ["uce"], "lr": 1.0e-5}})
    config["experiments"] = {"fig5": {**EXPERIMENT, "finetunes": ["lora", "lora.other"]}}
    with pytest.raises(ConfigError, match=r"lora.other.*look at the limits"):
        make_study(config, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "finetune_sets.random.tercile",
            {"candidates": "names.txt", "number": 1},
            ["candidates", "names.txt", "no such file"],
        ),
        ("finetune_sets.random.tercile", {"candidates": "names.txt", "number": 4}, ["tercile.number", "4", "1, 2, 3"]),
        (
            "finetune_sets.random.tercile",
            {"candidate": "names.txt"},
            ["tercile.candidate", "unknown key", "candidates"],
        ),
    ],
)
def test_bad_terciles_and_captions(
    key: str, value: object, told: list[str], config: dict[str, Any], tmp_path: Path
) -> None:
    write_world(tmp_path)
    with pytest.raises(ConfigError) as error:
        make_study(put(config, key, value), tmp_path)
    for part in told:
        assert part in str(error.value), error.value
