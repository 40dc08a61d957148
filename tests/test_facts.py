"""The studies of Stable Diffusion say what was published: names, counts, seeds, settings (sources in tests/facts)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from resurgence.config.fields import read_yaml
from resurgence.config.load import load_study
from resurgence.config.study import Study
from resurgence.data.prompts import prompt_set
from resurgence.stages.finetune_set import prompt_rows
from resurgence.workflow import job_settings

ROOT = Path(__file__).parents[1]
PEOPLE, OBJECTS, SETTINGS = (
    yaml.safe_load((ROOT / f"tests/facts/{name}.yaml").read_text(encoding="utf-8"))
    for name in ("celebrities", "objects", "settings")
)
NUMBERS = (1, 5, 10, 100)
SINGLE = ("automobile", "ship", "bird")


@pytest.fixture(scope="module", params=["sd14", "sd21"])
def study(request: pytest.FixtureRequest) -> Study:
    """A study over the default one, as `make study` loads it."""
    return load_study([ROOT / "params.yaml", ROOT / f"studies/{request.param}.yaml"], ROOT)


def names(word: str) -> list[str]:
    return [name.strip() for name in (ROOT / f"config/names/{word}.txt").read_text().splitlines()]


def shown(study: Study, task: str, name: str) -> pd.DataFrame:
    """The rows of a fine-tuning set."""
    block = job_settings.finetune_set(study, task, name)
    return prompt_rows(block, block["concepts"])


@pytest.mark.parametrize("number", NUMBERS)
def test_celebrities(study: Study, number: int) -> None:
    task = study.loaded[f"celebrities-{number}"]
    assert list(task.erase) == PEOPLE["erase"][number] and len(task.erase) == number
    assert list(task.retain) == PEOPLE["retain"] and len(task.retain) == 100
    assert not set(task.erase) & set(task.retain)
    assert set(task.mapping.values()) == {PEOPLE["mapping"][number]}
    assert list(task.templates) == PEOPLE["templates"]


@pytest.mark.parametrize("number", NUMBERS)
def test_seeds_of_celebrities_are_those_of_the_published_lists(study: Study, number: int) -> None:
    rows = prompt_set(study.loaded[f"celebrities-{number}"])
    for role, published in (("erase", PEOPLE["seeds"]["erase"][number]), ("retain", PEOPLE["seeds"]["retain"])):
        part = rows[rows["role"] == role]
        images = PEOPLE["images"]["erase"][number] if role == "erase" else PEOPLE["images"]["retain"]
        assert len(part) == images
        per_prompt = part.groupby("prompt")["seed"].agg(list)
        assert all(sorted(seeds) == list(range(published[0], published[1] + 1)) for seeds in per_prompt)


def test_erase_sets_of_celebrities_are_nested() -> None:
    five, ten, hundred = (PEOPLE["erase"][n] for n in NUMBERS[1:])
    assert five == ten[:5] and ten == hundred[:10] and hundred[-1] == PEOPLE["erase"][1][0]


@pytest.mark.parametrize("name", [*SINGLE, "objects-5"])
def test_objects(study: Study, name: str) -> None:
    task = study.loaded[name]
    assert list(task.erase) == (OBJECTS["five"] if name == "objects-5" else [name])
    assert list(task.labels) == OBJECTS["classes"] and sorted(task.erase + task.retain) == sorted(OBJECTS["classes"])
    assert {c: list(words) for c, words in task.synonyms.items()} == {c: OBJECTS["synonyms"][c] for c in task.erase}
    assert {c: aim for c, aim in task.mapping.items() if c in OBJECTS["mapping"]} == {
        c: OBJECTS["mapping"][c] for c in task.erase if c in OBJECTS["mapping"]
    }
    assert list(task.finetune) == OBJECTS["finetune"] and list(task.templates) == [OBJECTS["template"]]
    rows = prompt_set(task)
    assert set(rows.groupby("prompt").size()) == {OBJECTS["images_per_class"]}
    assert set(rows["seed"]) == set(range(1, OBJECTS["images_per_class"] + 1))


@pytest.mark.parametrize("task", [*(f"{n}_celebrity" for n in NUMBERS), *SINGLE])
def test_settings_of_mace_by_task(study: Study, task: str) -> None:
    name = f"celebrities-{task.split('_')[0]}" if task.endswith("celebrity") else task
    used = study.eraser_settings(name, "mace", "default")
    assert {key: used[key] for key in SETTINGS["mace"][task]} == SETTINGS["mace"][task]


def test_common_settings(study: Study) -> None:
    published = SETTINGS["mace_common"]
    used = study.eraser_settings("celebrities-10", "mace", "default")
    assert (used["steps"], used["rank"]) == (published["steps"], published["rank"])
    images = study.concept_images
    assert (images.per_concept, images.steps, images.guidance) == (
        published["images_per_concept"], published["image_steps"], published["image_guidance"],
    )  # fmt: skip
    sampling = study.sampling
    assert (sampling.steps, sampling.guidance, sampling.size) == (
        published["sampling_steps"], published["sampling_guidance"], published["size"],
    )  # fmt: skip
    assert study.masks.segmenter == "grounded-sam" and study.masks.threshold == published["threshold"]


@pytest.mark.parametrize("algorithm", ["lora", "full"])
def test_settings_of_fine_tuning(study: Study, algorithm: str) -> None:
    used = study.finetune_settings(algorithm, "default")
    assert used["algorithm"] == algorithm
    split = ("batch", "accumulation")  # how a step is computed; the draws are those of their product (test_finetune.py)
    facts = {key: value for key, value in SETTINGS[algorithm].items() if key not in split}
    assert {key: used[key] for key in facts} == facts
    per_step, published = (math.prod(values[key] for key in split) for values in (used, SETTINGS[algorithm]))
    assert per_step == published


def test_sweep_of_lambda_1(study: Study) -> None:
    for task in ("celebrities-10", "ship"):
        variants = [e.variant for e in study.erasures() if (e.task, e.eraser, e.seed) == (task, "mace", 0)]
        swept = {study.eraser_settings(task, "mace", v)["train_preserve_scale"] for v in variants}
        assert swept == set(SETTINGS["lambda_1"])


def test_random_fine_tuning_sets(study: Study) -> None:
    people = study.finetune_concepts("random", "celebrities-10")
    assert list(people) == PEOPLE["finetune"]
    assert list(study.finetune_concepts("random", "ship")) == OBJECTS["finetune"] == list(study.loaded["ship"].finetune)
    for task, images in (("celebrities-10", PEOPLE["finetune_images"]), ("ship", OBJECTS["finetune_images"])):
        rows = shown(study, task, "random")
        assert len(rows) == images and set(rows["seed"]) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("number", NUMBERS)
def test_the_ten_celebrities_that_are_fine_tuned_on_and_retained(study: Study, number: int) -> None:
    """The overlap of the published lists, as docs/deviations.md tells it: names, prompts and seeds."""
    name = f"celebrities-{number}"
    task = study.loaded[name]
    shared = set(study.finetune_concepts("random", name)) & set(task.retain)
    assert len(shared) == 10 == len(PEOPLE["finetune"])
    keys = ["prompt", "seed"]
    trained = shown(study, name, "random")[keys]
    retained = prompt_set(task).query("role == 'retain'")[keys]
    assert len(trained.merge(retained)) == 250 and len(retained) == 2500
    clean = shown(study, name, "retained")[keys]  # the control shows no evaluated image
    assert len(clean) == 250 and clean.merge(retained).empty
    told = " ".join((ROOT / "docs/deviations.md").read_text().split())
    assert "all ten" in told and "250 of the 2,500" in told


@pytest.mark.parametrize("number", [1, 2, 3])
def test_terciles(study: Study, number: int) -> None:
    people = study.finetune_concepts(f"tercile-{number}", "celebrities-10")
    objects = study.finetune_concepts(f"tercile-{number}", "ship")
    assert list(people) == PEOPLE["terciles"][number] and len(people) == (9 if number == 3 else 10)
    assert list(objects) == OBJECTS["terciles"][number] and len(objects) == 10
    assert set(objects) <= set(names("cifar-100"))


def test_terciles_share_no_concept_and_one_name_of_the_erased_hundred() -> None:
    for facts in (PEOPLE, OBJECTS):
        members = [name for part in facts["terciles"].values() for name in part]
        assert len(set(members)) == len(members)
    erased = set(PEOPLE["erase"][100]) & {name for part in PEOPLE["terciles"].values() for name in part}
    assert erased == {"Bryan Cranston"}


def test_classes_of_cifar_100() -> None:
    classes = names("cifar-100")
    assert len(classes) == len(set(classes)) == 100 and classes == sorted(classes)
    assert set(OBJECTS["finetune"]) <= set(classes)
    assert not set(classes) & set(OBJECTS["classes"])


def test_mapping_by_gender_and_to_an_object(study: Study) -> None:
    gender = study.task("celebrities-10", "mace", "to-gender").mapping
    assert {n for n, aim in gender.items() if aim == "a male celebrity"} == {"Adam Driver", "Andrew Garfield"}
    assert sum(aim == "a female celebrity" for aim in gender.values()) == 8
    assert set(study.task("celebrities-10", "mace", "to-object").mapping.values()) == {"an object"}
    assert study.task("ship", "mace", "to-object").mapping == {"ship": "object"}


def test_both_studies_differ_in_name_and_base_only() -> None:
    first, second = (read_yaml(ROOT / f"studies/{name}.yaml") for name in ("sd14", "sd21"))
    differ: dict[str, Any] = {key: second[key] for key in first | second if first.get(key) != second.get(key)}
    assert set(differ) == {"study", "base"}
    assert {key for key in first["base"] if first["base"][key] != second["base"][key]} == {"name", "path", "revision"}


def test_three_seeds_in_pairs(study: Study) -> None:
    assert study.seeds.erase == study.seeds.finetune == (0, 1, 2) and study.seeds.paired
