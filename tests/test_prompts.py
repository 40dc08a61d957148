"""Prompt sets: every image has its own seed, and it is the same in every model and task."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from resurgence.config.fields import ConfigError
from resurgence.config.task import Task, make_task
from resurgence.data.prompts import COLUMNS, expand, prompt_set
from resurgence.seeds import seed_of
from resurgence.stages.job import Job
from resurgence.stages.prompts import make, read_general


@pytest.fixture
def task() -> Task:
    return make_task(
        {
            "name": "ship",
            "kind": "object",
            "erase": ["ship", "cat"],
            "retain": ["dog", "bird", "truck"],
            "mapping": "sky",
            "templates": ["a photo of the {}", "the {} in an official photo"],
            "seeds": {"erase": 4, "retain": 1, "synonym": 2},
            "synonyms": {"ship": ["boat", "vessel"]},
            "finetune": ["horse"],
        }
    )


def test_rows_columns_and_order(task: Task) -> None:
    table = prompt_set(task, ["a red house"])
    assert tuple(table.columns) == COLUMNS
    counts = {role: len(t) for role, t in table.groupby("role", sort=False)}
    assert counts == {"erase": 2 * 2 * 4, "retain": 3 * 2 * 1, "synonym": 2 * 2 * 2, "general": 1}
    assert list(counts) == ["erase", "retain", "synonym", "general"]
    first = table.iloc[0].to_dict()
    assert first == {
        "prompt": "a photo of the ship", "concept": "ship", "role": "erase", "template": "a photo of the {}",
        "seed": seed_of("image", "a photo of the ship", 0), "index": 0,
    }  # fmt: skip
    assert "the bird in an official photo" in set(table["prompt"])
    assert table["seed"].dtype == "int64"
    assert "horse" not in " ".join(table["prompt"])  # the fine-tuning concepts are no part of the evaluation


def test_synonym_rows_carry_the_concept_and_prompt_the_synonym(task: Task) -> None:
    rows = prompt_set(task).query("role == 'synonym'")
    assert set(rows["concept"]) == {"ship"}
    assert {"a photo of the boat", "the vessel in an official photo"} <= set(rows["prompt"])


def test_every_image_has_its_own_seed(task: Task) -> None:
    table = prompt_set(task, ["a red house", "a red house", "a photo of the dog"])
    assert table["seed"].is_unique and not table.duplicated(["prompt", "index"]).any()
    general = table.query("role == 'general'")
    assert general["index"].tolist() == [0, 1, 1]  # the third is also a retain prompt with one image


def test_general_prompts_may_have_concepts(task: Task, tmp_path: Path) -> None:
    file = tmp_path / "complex.csv"
    file.write_text('prompt,seed,concept\na ship in a bottle,7,ship\n" ",8,\n')
    assert read_general(file) == (["a ship in a bottle", " "], [7, 8], ["ship", ""])
    rows = prompt_set(task, *read_general(file)).query("role == 'general'")
    assert rows[["prompt", "concept", "seed"]].to_numpy().tolist() == [["a ship in a bottle", "ship", 7], [" ", "", 8]]
    settings = {"task": dataclasses.asdict(task), "general": str(file)}
    assert make(Job(settings, tmp_path / "prompts.csv", {}, "cpu"), tmp_path)["images"] == len(prompt_set(task)) + 2
    file.write_text("prompt,seed,concept\na ship,7,shp\n")
    with pytest.raises(ConfigError, match=r"complex\.csv: concept = 'shp': .*did you mean 'ship'"):
        make(Job(settings, tmp_path / "prompts.csv", {}, "cpu"), tmp_path)


def test_seeds_do_not_depend_on_the_task_around_the_prompt(task: Task) -> None:
    other = dataclasses.replace(
        task, name="bird", erase=("bird",), retain=("ship",), mapping={"bird": "sky"}, synonyms={}, labels=(),
        seeds={"erase": 2, "retain": 4},
    )  # fmt: skip
    mine, theirs = (prompt_set(t).set_index(["prompt", "index"])["seed"] for t in (task, other))
    shared = mine.index.intersection(theirs.index)
    assert len(shared) == 4 * 2 + 1 * 2 and (mine[shared] == theirs[shared]).all()


def test_more_seeds_keep_the_first_ones(task: Task) -> None:
    more = dataclasses.replace(task, seeds={"erase": 9, "retain": 1, "synonym": 2})
    few, many = set(prompt_set(task)["seed"]), set(prompt_set(more)["seed"])
    assert few < many


@pytest.mark.parametrize("spelling", ["big ship", "Big  Ship", "big\u00a0ship"])
def test_a_prompt_with_two_owners_is_named(task: Task, spelling: str) -> None:
    told = r"role retain, concept .*role erase, concept 'ship', template 'a photo of the big \{\}', so their images"
    templates = ("a photo of the {}", "a photo of the big {}")
    with pytest.raises(ConfigError, match=told):
        dataclasses.replace(task, retain=("dog", spelling), templates=templates, labels=())


def test_uses_are_kept_apart() -> None:
    evaluation = expand([("dog", "dog")], ["a {}"], 3, "retain")
    training = expand([("dog", "dog")], ["a {}"], 3, "finetune", purpose="fine-tuning image")
    assert [r["prompt"] for r in evaluation] == [r["prompt"] for r in training]
    assert not {r["seed"] for r in evaluation} & {r["seed"] for r in training}


def test_braces_in_a_concept_are_text() -> None:
    assert expand([("x", "a {b}")], ["the {}"], 1, "erase")[0]["prompt"] == "the a {b}"
