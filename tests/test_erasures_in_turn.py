"""Erasures one after the other: their paths, the jobs that compute them, and a model erased twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from resurgence.config.comparisons import differences
from resurgence.config.experiment import Cells, Claim
from resurgence.config.fields import ConfigError
from resurgence.config.load import make_study
from resurgence.config.model_path import ModelPath
from resurgence.config.study import Cell, Erasure
from resurgence.diffusion.deltas import load_delta
from resurgence.diffusion.pipeline import load_model
from resurgence.erasers import EraserData
from resurgence.erasers.closed_form.configs import UceConfig
from resurgence.erasers.closed_form.uce import erase
from resurgence.provenance.manifest import write_artefact
from resurgence.stages import erase as stage
from resurgence.stages.job import Job
from resurgence.workflow import graph, job_items, job_settings, report_settings
from resurgence.workflow.jobs import jobs
from test_config import config, write_world  # noqa: F401, a fixture
from tiny import make_pipeline

FIRST = {"concepts": ["ship"]}
SECOND = {"concepts": ["cat"], "after": "uce.first"}
NAME = "uce.first+uce.second"


def in_turn(config: dict[str, Any], **changes: Any) -> dict[str, Any]:  # noqa: F811
    """The study of test_config.py with UCE at once, and UCE of one concept after the other."""
    config["erasers"]["uce"]["variants"] = {"default": {}, "first": FIRST, "second": SECOND | changes}
    return config


def test_names_and_paths(config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    write_world(tmp_path)
    study = make_study(in_turn(config), tmp_path)
    first, second = (Erasure("pets", "uce", variant, 0) for variant in ("first", "second"))
    assert study.before(second) == first and study.before(first) is None
    path = study.model(second)
    assert str(path) == "pets/uce.first/s0/uce.second/s0" and ModelPath.parse(str(path)) == path
    assert study.folder(second, "delta") == f"results/erased/miniature-2/{path}/delta"
    assert study.name_of(second) == NAME and study.name_of(first) == "uce.first"
    assert path.columns() == {
        "task": "pets", "state": "erased", "eraser": "uce.first+uce", "variant": "second", "erase_seed": 0,
    }  # fmt: skip
    tuned = study.model(Cell(second, "lora", "default", 0))
    assert str(tuned) == f"{path}/lora/f0"
    assert [ModelPath.of_columns(model.columns()) for model in (path, tuned)] == [path, tuned]


def test_each_step_erases_its_concepts_on_the_model_before(config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    write_world(tmp_path)
    study = make_study(in_turn(config), tmp_path)
    by_variant = {variant: Erasure("pets", "uce", variant, 0) for variant in ("default", "first", "second")}
    erased = {variant: job_settings.erase(study, item)["task"] for variant, item in by_variant.items()}
    assert {variant: task["erase"] for variant, task in erased.items()} == {
        "default": ("ship", "cat"), "first": ("ship",), "second": ("cat",),
    }  # fmt: skip
    assert erased["second"]["mapping"] == {"cat": "ground"} and erased["second"]["retain"] == ("dog", "bird")
    delta = "results/erased/miniature-2/pets/uce.first/s0/delta/manifest.json"
    assert graph.erase(study, by_variant["second"])["changes"] == [delta]
    assert "changes" not in graph.erase(study, by_variant["first"])
    again = delta.replace("/delta", "/uce.second/s0/delta")
    assert graph.sample(study, study.model(by_variant["second"]))["changes"] == [delta, again]
    every = {job.out.as_posix(): job for job in jobs(study)}
    assert every[again].wildcards == {"task": "pets", "eraser": "uce.first/s0/uce.second", "erase_seed": "0"}
    assert job_items.erasure(SimpleNamespace(**every[again].wildcards)) == by_variant["second"]


def test_loras_on_different_models_are_not_shared(config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    write_world(tmp_path)
    variants = {"first": FIRST, "other": {"concepts": ["cat"]}, "after": {"concepts": ["cat"], "after": "mace.first"}}
    config["erasers"]["mace"]["variants"] = variants
    study = make_study(config, tmp_path)
    other, after = (Erasure("pets", "mace", variant, 0) for variant in ("other", "after"))
    assert job_settings.loras(study, other) == job_settings.loras(study, after)
    assert job_settings.loras_of(study, after) == after and job_settings.loras_of(study, other) == other


def test_sides_one_after_the_other_differ_in_what_all_their_steps_do(config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    write_world(tmp_path)
    config = in_turn(config, lamb=2.0)
    config["erasers"]["uce"]["variants"]["third"] = SECOND
    others = ["uce", "uce.first", NAME, "uce.first+uce.third"]
    config["experiments"] = {"tab1": {"title": "", "kind": "table", "tasks": ["pets"], "metrics": ["clip_score"],
                                      "erasers": others}}  # fmt: skip
    study, count = make_study(config, tmp_path), "erasures one after the other"
    lamb = study.eraser_settings("pets", "uce", "first")["lamb"]

    def text(of: str, against: str) -> str:
        claim = Claim("", Cells(eraser=of), "equal", Cells(eraser=against), value="erased")
        return differences(study, "tab1", claim)

    assert text("uce.first+uce.third", "uce") == f"{count} (2 against 1)"  # both erase ship and cat
    assert text("uce.first+uce.third", "uce.first") == f"erased (cat + ship against ship), {count} (2 against 1)"
    assert text(NAME, "uce.first+uce.third") == f"lamb ({lamb} + 2.0 against {lamb})"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"after": "uce.third"}, r"erasers\.uce\.variants\.second\.after = 'uce\.third'"),
        ({"after": "uce.second"}, r"erasers\.uce\.variants\.second\.after = 'uce\.second': works after itself"),
        ({"concepts": ["dog"]}, r"erasers\.uce\.variants\.second\.concepts = 'dog'"),
        ({"concepts": []}, r"erasers\.uce\.variants\.second\.concepts = \[\]: must not be empty"),
    ],
)
def test_what_is_no_order(changes: dict[str, Any], message: str, config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    write_world(tmp_path)
    with pytest.raises(ConfigError, match=message):
        make_study(in_turn(config, **changes), tmp_path)


def test_a_changed_objective_of_an_earlier_step_marks_the_model(config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    write_world(tmp_path)
    second = {"concepts": ["cat"], "after": "fmn.first"}
    config["erasers"]["fmn"] = {"variants": {"first": FIRST | {"use_pooler": False}, "second": second}}
    changed = report_settings.tables(make_study(config, tmp_path))["changed_objectives"]
    assert changed == dict.fromkeys(("fmn.first", "fmn.first+fmn.second"), "use_pooler: false")


def test_moments_of_the_base_are_not_read_after_its_text_encoder_was_trained(
    config: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    """They are sums of e e^T over the base's embeddings, and those of the model before are others."""
    write_world(tmp_path)
    config["erasers"]["advunlearn"] = {"variants": {"first": FIRST}}
    config["erasers"]["mace"]["variants"] = {"second": {"concepts": ["cat"], "after": "advunlearn.first"}}
    key = r"erasers\.mace\.variants\.second\.after = 'advunlearn\.first'"
    with pytest.raises(ConfigError, match=key + ": trains the text encoder, of which the second moments"):
        make_study(config, tmp_path)
    config["erasers"]["advunlearn"]["parameters"] = "xattn"
    assert make_study(config, tmp_path)
    config["erasers"]["advunlearn"].pop("parameters")
    config["erasers"]["mace"]["variants"] = {"default": {}}
    config["erasers"]["uce"]["variants"] = {"second": {"concepts": ["cat"], "after": "advunlearn.first"}}
    assert make_study(config, tmp_path)  # it embeds the captions itself


def test_an_eraser_that_changes_nothing_is_after_no_other(config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    """Its scores are those of the base, which the model of the erasure before it is not."""
    write_world(tmp_path)
    config["erasers"]["nothing"] = {"method": "none", "variants": {"x": {"after": "uce"}}}
    with pytest.raises(ConfigError, match=r"nothing\.variants\.x\.after = 'uce': is of an eraser that changes"):
        make_study(config, tmp_path)


def test_the_earlier_erasure_has_the_same_seed_and_task(config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    write_world(tmp_path)
    config["seeds"] = {"erase": [0, 1], "finetune": [0, 1], "paired": True}
    config["erasers"]["uce"]["variants"] = {"default": {}, "first": FIRST | {"seeds": [0]}, "second": SECOND}
    with pytest.raises(ConfigError, match=r"second\.after = 'uce\.first': erases no pets with seed 1"):
        make_study(config, tmp_path)


@pytest.mark.parametrize("key", ["mapping", "concepts", "after"])
def test_a_finetune_has_no_keys_of_erasers(key: str, config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    write_world(tmp_path)
    value = ["ship"] if key == "concepts" else "ground"
    config["finetunes"]["lora"]["variants"] = {"default": {key: value}}
    with pytest.raises(ConfigError, match=rf"finetunes\.lora\.variants\.default\.{key}.*is of an eraser"):
        make_study(config, tmp_path)


def test_the_second_erasure_starts_from_the_erased_weights(tmp_path: Path) -> None:
    """The stage with a delta among its inputs gives what the eraser gives on the base with that delta applied."""
    make_pipeline().save_pretrained(tmp_path / "base")
    moment = torch.eye(32, dtype=torch.float64)
    tasks = [
        {"name": "pets", "kind": "object", "erase": [word], "retain": ["dog"], "mapping": {word: "ground"}}
        for word in ("ship", "cat")
    ]
    block = {"base": {"path": str(tmp_path / "base"), "revision": None}, "method": "uce", "seed": 0,
             "settings": {"captions": ["a photo of the {}"]}, "delta_precision": "fp32"}  # fmt: skip
    folders: list[Path] = []
    for number, task in enumerate(tasks):
        changes = {"changes": tuple(folder / "manifest.json" for folder in folders)} if folders else {}
        job = Job(block | {"task": task}, tmp_path / f"{number}/manifest.json", changes, "cpu")
        with write_artefact(job.out.parent, "erased delta", job.settings, job.manifest_inputs(), {}, {}) as folder:
            stage.make(job, folder)
        folders.append(job.out.parent)
    first, second = (load_delta(folder / "delta.safetensors") for folder in folders)
    cfg = UceConfig(captions=("a photo of the {}",))
    on_first, on_base = (
        erase(load_model(tmp_path / "base", before), job.task, cfg, EraserData(prior=moment, domain=moment), 0)
        for before in (folders[:1], [])
    )
    name = next(iter(second))
    torch.testing.assert_close(second, on_first)
    assert not torch.equal(second[name], on_base[name]) and not torch.equal(second[name], first[name])
