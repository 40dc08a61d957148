"""Names of concepts that are one name in another spelling are refused, in every role; other names are not."""

from __future__ import annotations

import dataclasses
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPTokenizer

from resurgence.config.fields import ConfigError
from resurgence.config.finetune_sets import FinetuneSet
from resurgence.config.load import load_study, merge
from resurgence.config.names import check_names, token_form
from resurgence.config.spelling import normal_form
from resurgence.config.study import Study
from resurgence.config.task import Task, load_task, make_task
from resurgence.workflow.token_names import check_tokens
from tiny import make_pipeline, make_tokenizer

ROOT = Path(__file__).parents[1]
TASK = {
    "name": "ship", "kind": "object", "erase": ["ship", "cat"], "retain": ["dog", "bird"], "mapping": "sky",
    "templates": ["a photo of the {}"], "seeds": {"erase": 1, "retain": 1, "synonym": 1},
    "synonyms": {"ship": ["boat"]}, "finetune": ["rose"],
}  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyzàáâãäåçèéêëìíîïñòóôõöøùúûüýÿāăąćĉčďēĕęěğģĩīňőřśşšťũūůűźżž"
LETTERS += "αβγδεζηθικλμνξοπρστυφχψωάέήίόύώабвгдежзийклмнопрстуфхцчшщъыьэюя"
WORDS = st.text(LETTERS, min_size=1, max_size=6)
NAMES = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)
SPACES = " \u00a0\u2009\u3000\t\n\u2028"
NORMALISER = CLIPTokenizer().backend_tokenizer.normalizer
PROPERTY = settings(deadline=None)  # a busy machine is slow
INVISIBLE = "\u200b\u200d\u2060\ufeff\u00ad"


def full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


CHANGES: dict[str, Callable[[str], str]] = {
    "upper": str.upper, "title": str.title, "lower": str.lower, "swapped": str.swapcase, "full width": full_width,
    **{form: lambda text, form=form: unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")},
    "around": lambda text: f"  {text}\u00a0", "invisible": lambda text: INVISIBLE.join((text[:1], text[1:])),
    **{f"space {ord(s):x}": lambda text, s=s: text.replace(" ", s * 2) for s in SPACES},
}  # fmt: skip
SPELLINGS = st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=4)


def spell(name: str, changes: list[str]) -> str:
    for change in changes:
        name = CHANGES[change](name)
    return name


def changed(**values: Any) -> Task:
    return make_task({**TASK, **values})


def told(error: pytest.ExceptionInfo[ConfigError], *parts: str) -> None:
    for part in parts:
        assert part in str(error.value)


@PROPERTY
@given(NAMES, SPELLINGS)
def test_the_normal_form_knows_no_spelling(name: str, changes: list[str]) -> None:
    form = normal_form(spell(name, changes))
    assert form == normal_form(name) == normal_form(form)


@PROPERTY
@given(st.text(st.characters(max_codepoint=0x24FF, exclude_characters="ıİ", exclude_categories=("Cs", "Cc", "Cn"))))
def test_what_clips_normaliser_makes_equal_has_one_form(text: str) -> None:
    assert normal_form(NORMALISER.normalize_str(text)) == normal_form(text)


@PROPERTY
@given(WORDS, WORDS)
def test_other_names_have_other_forms(one: str, two: str) -> None:
    plain = [unicodedata.normalize("NFC", word).replace("\u03c2", "\u03c3") for word in (one, two)]  # sigma
    assert (normal_form(one) == normal_form(two)) == (plain[0] == plain[1])


ROLES: dict[str, Callable[[str, str], tuple[dict[str, Any], str, str]]] = {
    # values of a task with a name and another spelling of it, the key of the error, where the first spelling is
    "erase": lambda a, b: ({"erase": [a, b], "synonyms": {}}, "erase", "erase"),
    "retain": lambda a, b: ({"retain": [a, b]}, "retain", "retain"),
    "retain an erased": lambda a, b: ({"erase": [a], "retain": [b], "synonyms": {}}, "retain", "erase"),
    "fine-tune on an erased": lambda a, b: ({"erase": [a], "finetune": [b], "synonyms": {}}, "finetune", "erase"),
    "fine-tune on a retained": lambda a, b: ({"retain": [a], "finetune": [b]}, "finetune", "retain"),
    "fine-tune twice": lambda a, b: ({"finetune": [a, b]}, "finetune", "finetune"),
    "synonym of itself": lambda a, b: ({"erase": [a], "synonyms": {a: [b]}}, f"synonyms.{a}", "erase"),
    "synonym a retained": lambda a, b: ({"retain": [a], "synonyms": {"ship": [b]}}, "synonyms.ship", "retain"),
    "synonym to fine-tune on": lambda a, b: ({"finetune": [a], "synonyms": {"ship": [b]}}, "synonyms.ship", "finetune"),
    "synonym twice": lambda a, b: ({"synonyms": {"ship": [a, b]}}, "synonyms.ship", "synonyms.ship"),
    "synonym of two": lambda a, b: ({"synonyms": {"ship": [a], "dog": [b]}}, "synonyms.dog", "synonyms.ship"),
    "mapping to another erased": lambda a, b: (
        {"erase": ["plane", a], "mapping": {"plane": b, a: "sky"}, "synonyms": {}}, "mapping.plane", "erase"
    ),
    "mapping to a synonym": lambda a, b: (
        {"mapping": {"ship": b, "cat": "sky"}, "synonyms": {"ship": [a]}}, "mapping.ship", "synonyms.ship"
    ),
    "mapping in two spellings": lambda a, b: ({"mapping": {"ship": a, "cat": b}}, "mapping.cat", "mapping.ship"),
    "labels": lambda a, b: ({"labels": ["ship", "cat", "dog", "bird", a, b]}, "labels", "labels"),
    "templates": lambda a, b: ({"templates": [f"a {a} {{}}", f"a {b} {{}}"]}, "templates", "templates"),
}  # fmt: skip


REMEDIES = (
    "; remove ",
    "; write another word",
    "; it is itself erased; name a concept that stays",
    "; write both the same",
)


@pytest.mark.parametrize("role", ROLES)
@settings(PROPERTY, max_examples=30)
@given(name=NAMES, changes=SPELLINGS)
def test_two_spellings_in_two_roles_are_named(role: str, name: str, changes: list[str]) -> None:
    name, other = f"zz {name}", spell(f"zz {name}", changes)  # a name that the task has in no other role
    assume(other != name and "{" not in other)
    values, key, where = ROLES[role](name, other)
    with pytest.raises(ConfigError) as error:
        changed(**values)
    told(error, f"{key} = ", repr(other)[1:-1], repr(name)[1:-1], f" in {where}")
    assert any(remedy in str(error.value) for remedy in REMEDIES)


@PROPERTY
@given(name=NAMES, changes=SPELLINGS)
def test_mapping_to_itself_in_another_spelling(name: str, changes: list[str]) -> None:
    other = spell(name, changes)
    assume(other != name)
    with pytest.raises(ConfigError) as error:
        changed(erase=[name], mapping=other, synonyms={})
    told(error, f"mapping.{name} = {other!r}", "as the concept, so nothing would be erased; name a wider concept")


@PROPERTY
@given(name=NAMES, changes=SPELLINGS)
def test_a_label_in_another_spelling_than_its_concept(name: str, changes: list[str]) -> None:
    name, other = f"zz {name}", spell(f"zz {name}", changes)
    assume(other != name)
    with pytest.raises(ConfigError) as error:
        changed(erase=[name], labels=[other, "dog", "bird"], synonyms={})
    told(error, "labels", f"write {name!r} instead of {other!r}, as the concept")


@PROPERTY
@given(st.text(SPACES + INVISIBLE, max_size=4))
@pytest.mark.parametrize("key", ["erase", "retain", "finetune", "labels"])
def test_a_name_of_nothing_visible_is_empty(key: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} = .*is empty"):
        changed(**{key: ["bee", name]})


@PROPERTY
@given(st.lists(st.text("abcdefghij", min_size=1, max_size=5), min_size=6, max_size=6, unique=True))
def test_other_names_are_accepted(names: list[str]) -> None:
    one, two, synonym, kept, tuned, aim = names
    task = changed(
        erase=[one, two], retain=[kept], finetune=[tuned], synonyms={one: [synonym]}, mapping={one: aim, two: aim}
    )
    assert set(task.mapping.values()) == {aim} and task.labels == (one, two, kept)
    assert changed(erase=[one], retain=[two, aim], mapping=aim, finetune=[], synonyms={}).mapping == {one: aim}


@PROPERTY
@given(name=NAMES, changes=SPELLINGS)
def test_concepts_of_a_set_in_two_spellings(name: str, changes: list[str]) -> None:
    other = spell(name, changes)
    assume(other != name)
    with pytest.raises(ConfigError) as error:
        FinetuneSet(concepts={"object": (name, other)}, size=8)
    told(error, "concepts.object", repr(name), repr(other))


@pytest.mark.parametrize("word", ["ship", "SHIP", "ship\u00a0", "Vessel", "boat"])
def test_a_set_with_an_erased_word_is_refused(word: str, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    sets = {"random": {"concepts": ["bee", word]}}
    overlay.write_text(yaml.safe_dump({"tasks": {"names": ["ship"], "concepts": None}, "finetune_sets": sets}))
    with pytest.raises(ConfigError) as error:
        load_study([ROOT / "params.yaml", overlay], ROOT)
    told(error, "finetune_sets.random.concepts", repr(word), "the task ship erases it", "remove it from the set")


def test_a_setting_that_maps_the_concept_to_itself(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("tasks: {names: [ship]}\nerasers: {uce: {destination: SHIP}}\n")
    with pytest.raises(ConfigError) as error:
        load_study([ROOT / "params.yaml", overlay], ROOT)
    told(error, "erasers.uce.variants.default: destination.ship = 'SHIP'", "as the concept, so nothing would be erased")


TOKENS = [("ice-cream", "ice - cream"), ("R2D2", "r 2 d 2"), ("judge's wig", "judge 's wig"), ("co.", "co .")]


@pytest.mark.parametrize(("name", "other"), TOKENS)
def test_names_of_equal_tokens_are_named(name: str, other: str) -> None:
    """The pre-tokenizer of CLIP splits punctuation and digits off, with or without a space."""
    form = token_form(make_tokenizer())
    for values in ({"retain": [name]}, {"synonyms": {other: [name]}}, {"mapping": name}, {"finetune": [name]}):
        task = changed(**{"synonyms": {}, **values, "erase": [other]})
        with pytest.raises(ConfigError, match="has the same tokens as") as error:
            check_names(task, form)
        told(error, repr(name))
    labels = changed(labels=["ship", "cat", "dog", "bird", name, other])
    with pytest.raises(ConfigError, match=r"labels = .*same tokens"):
        check_names(labels, form)


OF_A_STUDY: dict[str, tuple[dict[str, Any], list[str]]] = {
    # overlay on the task below, which erases "R2D2" with the synonym "ice-cream"; what the error holds
    "concept of a set": (
        {"finetune_sets": {"random": {"concepts": ["bee", "r 2 d 2"]}}},
        ["finetune_sets.random.concepts = 'r 2 d 2'", "'R2D2' in erase", "the task robot erases it"],
    ),
    "concept of a set and a synonym": (
        {"finetune_sets": {"random": {"concepts": ["bee", "ice - cream"]}}},
        ["finetune_sets.random.concepts = 'ice - cream'", "'ice-cream' in synonyms.R2D2", "remove it from the set"],
    ),
    "twice in a set": (
        {"finetune_sets": {"random": {"concepts": ["co.", "co ."]}}},
        ["finetune_sets.random.concepts = 'co .'", "'co.' in finetune_sets.random.concepts", "remove one"],
    ),
    "templates of a set": (
        {"finetune_sets": {"random": {"concepts": ["bee"], "templates": ["a {}, old", "a {} , old"]}}},
        ["finetune_sets.random.templates = 'a {} , old'", "'a {}, old'", "remove one"],
    ),
    "mapping of a variant": (
        {"erasers": {"uce": {"variants": {"default": {"mapping": "ice - cream"}}}}},
        ["erasers.uce.variants.default: destination.R2D2 = 'ice - cream'", "in synonyms.R2D2", "is itself erased"],
    ),
    "candidates of a tercile": (
        {"finetune_sets": {"random": {"concepts": "task", "tercile": {"candidates": "names.txt", "number": 1}}}},
        ["names.txt = 'ice - cream'", "'ice-cream' in synonyms.R2D2", "the task robot erases it; remove it from"],
    ),
    "synonyms of the task": (
        {"tasks": {"folder": "tasks", "names": ["wigs"]}},
        ["tasks/wigs.yaml: synonyms.robot = \"judge 's wig\"", "in retain", "write another word"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make_pipeline().save_pretrained(folder := tmp_path_factory.mktemp("base"))
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the tasks of OF_A_STUDY, and a base."""
    for name, words in (
        ("robot", {"erase": ["R2D2"], "synonyms": {"R2D2": ["ice-cream"]}}),
        ("wigs", {"erase": ["robot"], "synonyms": {"robot": ["judge 's wig"]}, "retain": ["judge's wig"]}),
    ):
        (tmp_path / "tasks").mkdir(exist_ok=True)
        task = {**TASK, "name": name, "finetune": ["rose"], **words}
        (tmp_path / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(task))
    (tmp_path / "names.txt").write_text("ICE-CREAM\nbee\nice - cream\nfern\n")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, "base")
    return tmp_path


def study_of(folder: Path, overlay: dict[str, Any]) -> Study:
    tasks = {"tasks": {"folder": "tasks", "names": ["robot"], "concepts": None}, "base": {"path": "base"}}
    (folder / "overlay.yaml").write_text(yaml.safe_dump(merge(tasks, overlay)))
    return load_study([ROOT / "params.yaml", folder / "overlay.yaml"])


@pytest.mark.parametrize("case", OF_A_STUDY)
def test_names_of_a_study_with_equal_tokens_stop_it_before_its_first_job(case: str, folder: Path) -> None:
    overlay, parts = OF_A_STUDY[case]
    study = study_of(folder, overlay)  # as text they differ
    with pytest.raises(ConfigError, match="has the same tokens as") as error:
        check_tokens(study, {"prompts", "sample"})
    told(error, *parts)
    check_tokens(study, {"sample"})  # no new names are read


def test_names_of_a_study_with_other_tokens_pass(folder: Path) -> None:
    check_tokens(study_of(folder, {}), {"prompts", "finetune_set"})
    (folder / "base/tokenizer/tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"base/tokenizer has neither tokenizer\.json nor vocab\.json"):
        check_tokens(study_of(folder, {}), {"prompts"})


def test_captions_of_real_pictures_are_compared_before_the_first_job(folder: Path) -> None:
    (folder / "photos").mkdir()
    for caption in ("a bee", "R2D2 on the street"):
        Image.new("RGB", (8, 8)).save(folder / f"photos/{caption}.png")
    real = {"made_by": "real", "images": "photos", "images_per_prompt": None}
    study = study_of(folder, {"finetune_sets": {"random": real}})
    check_tokens(study, {"prompts"})  # the pictures are not read
    with pytest.raises(ConfigError) as error:
        check_tokens(study, {"real_set"})
    told(error, "finetune_sets.random.images = 'photos'", "'R2D2' (erase)", "remove these pictures")
    (folder / "photos/R2D2 on the street.png").unlink()
    check_tokens(study, {"real_set"})


def test_names_of_other_tokens_pass() -> None:
    check_names(changed(), token_form(make_tokenizer()))


@PROPERTY
@given(NAMES, SPELLINGS)
def test_prompts_of_two_concepts_are_named_in_any_spelling(name: str, changes: list[str]) -> None:
    templates = ("the {}", f"the {name} {{}}")
    assume(normal_form(name) not in {"ship", "cat", "dog", "bird", "boat", "rose"})
    told = "so their images would be the same; remove a concept, synonym or template"
    with pytest.raises(ConfigError, match=told):
        changed(retain=["dog", spell(f"{name} ship", changes)], templates=templates)


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("config/tasks/*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_the_tasks_of_the_studies_pass_by_tokens_too(path: Path) -> None:
    task = load_task(path)
    check_names(task, token_form(make_tokenizer()))
    assert dataclasses.replace(task) == task
