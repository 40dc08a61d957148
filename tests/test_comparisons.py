"""What else differs between the sides of a claim, and erasers with another objective, in the studies of the project."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from resurgence.analysis.headline import changed_note, marked
from resurgence.config.comparisons import both, differences
from resurgence.config.erasers import eraser_config, erasers
from resurgence.config.experiment import Cells, Claim
from resurgence.config.fields import ConfigError, read_yaml
from resurgence.config.load import load_study, make_study, merge
from resurgence.config.study import Study
from resurgence.workflow.report_settings import index, tables

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def study() -> Study:
    """The reference study; its base, which comparisons do not read, is the one that ships with the default study."""
    default = read_yaml(ROOT / "params.yaml")
    overlay = read_yaml(ROOT / "studies/miniature-full.yaml")
    return make_study(merge(merge(default, overlay), {key: default[key] for key in ("base", "scorers")}), ROOT)


def test_more_erased_people_have_another_mapping_and_weight(study: Study) -> None:
    text = differences(study, "fig5", Claim("", Cells(task="identities-30"), "above", Cells(task="identities-1")))
    lamb = [study.eraser_settings(f"identities-{n}", "mace", "default")["lamb"] for n in (30, 1)]
    assert f"lamb ({lamb[0]:g} against {lamb[1]:g})" in text
    assert "erased (30 against 1, 1 in both)" in text and "mapping (person against woman)" in text
    assert "retained" not in text and "templates" not in text and "checkpoints" not in text


def test_one_changed_setting_is_the_only_difference(study: Study) -> None:
    of, against = (Cells(task="ship", eraser=f"mace.lambda-{n}") for n in (1, 0))
    assert differences(study, "fig7", Claim("", of, "equal", against)) == "train preserve scale (1 against 0)"
    assert differences(study, "fig7", Claim("", of, "equal")) == ""
    assert differences(study, "fig7", Claim("", of, "equal", of)) == ""


def test_two_fine_tunes_differ_in_their_set_or_their_rate(study: Study) -> None:
    sets = differences(
        study, "fig9", Claim("", Cells(finetune="lora.people-3"), "equal", Cells(finetune="lora.people-1"))
    )
    assert sets == "fine-tune set (people-3 against people-1)"
    of, against = (Cells(task="ship", eraser="mace", finetune=name) for name in ("full", "lora"))
    kinds = differences(study, "fig8", Claim("", of, "equal", against))
    assert "fine-tune algorithm (full against lora)" in kinds and "fine-tune lr (3e-05 against 0.002)" in kinds


def test_a_name_that_means_something_else_in_each_method_is_no_difference() -> None:
    """lamb of EAP weighs its loss of preservation, that of UCE how little weights move; both of EAP are the same."""
    default, overlay = read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "studies/eap.yaml")
    overlay["erasers"]["eap"]["variants"]["half"] = {"lamb": 0.5, "eta": 0.2}
    overlay["experiments"]["eap_tab1"]["erasers"].append("eap.half")
    eap = make_study(merge(default, overlay), ROOT)
    sides = [Cells(eraser=name) for name in ("uce", "esd", "eap", "eap.half")]
    for other in sides[:2]:
        text = differences(eap, "eap_tab1", Claim("", other, "equal", sides[2]))
        assert "lamb" not in text and "eta" not in text.replace("beta", "")
    text = differences(eap, "eap_tab1", Claim("", sides[2], "equal", sides[3]))
    assert "lamb (1 against 0.5)" in text and "eta (0.1 against 0.2)" in text


def test_two_methods_are_compared_in_the_settings_that_both_have(study: Study) -> None:
    of, against = (Cells(task="ship", eraser=name) for name in ("mace", "uce"))
    text = differences(study, "fig8", Claim("", of, "equal", against))
    mace, uce = (study.eraser_settings("ship", name, "default") for name in ("mace", "uce"))
    assert f"lamb ({mace['lamb']:g} against {uce['lamb']:g})" in text
    assert not any(key.replace("_", " ") in text for key in set(mace) - set(uce))


@pytest.mark.parametrize(
    ("left", "right", "text"),
    [
        ([1.0], [2.5], " (1 against 2.5)"),
        ([1, 2], [3], " (1 or 2 against 3)"),
        ([True], [False], " (true against false)"),
        ([frozenset("ab")], [frozenset("c")], " (a + b against c)"),
        ([frozenset("abc")], [frozenset("cde")], " (3 against 3, 1 in both)"),
        ([("long " * 10,)], [()], ""),
        ([(" ",)], [()], ' (" " against none)'),
        ([""], ["names.txt"], ' ("" against names.txt)'),
        ([{"max": [1, 2]}], [None], " (max: 1 + 2 against None)"),
    ],
)
def test_values_of_both_sides(left: list, right: list, text: str) -> None:
    assert both(left, right) == text


OURS = {
    "rece": {"accumulate": True},
    "fmn": {"use_pooler": False},
    "erasediff": {"inner_steps": 0},
    "scissorhands": {"forget": "pseudo", "projection": "none"},
    "spm": {"adapters": "shared"},
    "doco": {"discriminators": "concept"},
}
MORE = [
    ("doco", {"surgery": "none"}),
    ("doco", {"surgery": "sum"}),
    ("doco", {"unlearning": "l2"}),
    ("doco", {"lamb": 0.0}),
    ("eap", {"lamb": 0.0}),
    ("salun", {"target_from": "frozen"}),
    ("erasediff", {"target_from": "frozen"}),
    ("spm", {"anchor_weight": 0.0}),
]


def test_erasers_whose_objective_was_changed_are_marked() -> None:
    """With the settings of studies/methods.yaml; by their defaults all methods have the published objective."""
    study = load_study([ROOT / "params.yaml", ROOT / "studies/methods.yaml"])
    changed = tables(study)["changed_objectives"]
    expected = {name: ", ".join(f"{k}: {str(v).lower()}" for k, v in of.items()) for name, of in OURS.items()}
    del expected["doco"]
    expected["spm"] += ", anchoring: retained"
    assert changed == expected and index(study)["changed_objectives"] == expected
    assert "changed_objectives" not in tables(load_study([ROOT / "params.yaml"]))
    for name in erasers():
        values = {"path": "erased", "format": "diffusers"} if name == "checkpoint" else {}
        with contextlib.suppress(TypeError, ConfigError):  # a method without a default of some setting
            assert eraser_config(name)(**values).changed_objective() == ""


@pytest.mark.parametrize(("name", "settings"), [*OURS.items(), *MORE])
def test_each_change_is_named_with_its_value(name: str, settings: dict[str, Any]) -> None:
    config = eraser_config(name)(**settings)
    assert config.changed_objective() == ", ".join(f"{k}: {str(v).lower()}" for k, v in settings.items())


def test_the_authors_code_is_no_change() -> None:
    """Where paper and code differ, each is a published objective."""
    for name, settings in (
        ("doco", {"surgery": "code"}),
        ("eap", {"target": "guided"}),
        ("scissorhands", {"trim": "official"}),
    ):
        assert eraser_config(name)(**settings).changed_objective() == ""


def test_a_dagger_marks_the_name_and_a_note_says_why() -> None:
    assert marked("fmn", {"fmn": "use_pooler: false"}) == "fmn †" and marked("uce", {"fmn": ""}) == "uce"
    assert changed_note({}) == ""
    assert changed_note({"fmn": "use_pooler: false"}) == "† not the published objective: fmn has use_pooler: false."
