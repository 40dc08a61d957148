"""The studies of EAP's and DoCo's evaluations: jobs of the study compute every experiment, from published lists."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from transformers import CLIPTokenizer

from resurgence.config.experiment_cells import cells_of
from resurgence.config.fields import read_yaml
from resurgence.config.load import load_study
from resurgence.config.study import Erasure, Study
from resurgence.config.task import load_task
from resurgence.erasers.gradient.eap import whole_words
from resurgence.files import read_lines
from resurgence.workflow import experiment_settings, report_settings
from resurgence.workflow.jobs import jobs
from shipped_worlds import require_world

ROOT = Path(__file__).parents[1]
SD = ROOT / "config/tasks/sd-papers"
WORLD = read_yaml(ROOT / "config/concepts/miniature-2.yaml")
STEPS = ("first", "second", "third")  # one character after the other
ALONE = {  # variants of DoCo on the miniature -> what differs
    "half": {"lr"},
    "double": {"lr"},
    "long": {"steps"},
    "last": {"ema"},
    "current": {"anchor_from"},
    "to-quimbo": set(),
}


def load(name: str) -> Study:
    """A study over the default one; without the second miniature, a test of its studies is skipped."""
    if not name.startswith("sd14"):
        require_world("miniature-2")
    return load_study([ROOT / "params.yaml", ROOT / f"studies/{name}.yaml"], ROOT)


@pytest.mark.parametrize("name", ["eap", "doco", "sd14-eap", "sd14-doco"])
def test_every_experiment_reads_what_jobs_of_its_study_write(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = load(name)
    written = {job.out.parent.as_posix() for job in jobs(study)}
    for experiment in study.experiments:
        read = experiment_settings.experiment_reads(study, experiment)
        assert set(read) <= written and bool(read) == (study.experiments[experiment].kind != "similarity"), experiment
    shown = {item for name in study.experiments for cell in cells_of(study, name) for item in (cell, cell.erasure)}
    assert {*study.erasures(), *study.cells()} <= shown  # nothing is made in vain


@pytest.mark.parametrize("name", ["eap", "sd14-eap"])
def test_the_splits_are_the_random_units_of_eap(name: str) -> None:
    study = load(name)
    tasks = study.experiments["eap_tab1"].tasks
    splits = [set(study.loaded[task].erase) for task in tasks]
    assert len(splits) == 4 and all(len(split) == 5 for split in splits)
    every = set.union(*splits)
    assert len(every) == 10 and splits[0] | splits[1] == splits[2] | splits[3] == every
    assert all(set(study.loaded[task].retain) >= every - set(study.loaded[task].erase) for task in tasks)
    seeds = Counter((e.task, e.eraser, e.variant) for e in study.erasures() if e.task in tasks)
    assert set(seeds.values()) == {1} and all(cell.seed == 0 for cell in study.cells())


def test_eap_searches_fifty_words_for_nudity_and_a_hundred_for_the_rest() -> None:
    """Appendix B.1 of the paper: K = 50 for nudity, K = 100 for other concepts; table 6 has others."""
    study = load("sd14-eap")
    closest = {
        (e.task, e.variant): study.eraser_settings(*e[:3])["closest"] for e in study.erasures() if e.eraser == "eap"
    }
    assert {key: k for key, k in closest.items() if key[0] == "nudity"} == {("nudity", "x"): 50, ("nudity", "u"): 50}
    others = {k for (task, variant), k in closest.items() if task != "nudity" and not variant.startswith("k-")}
    assert others == {100} and len(closest) == 8 + 2 + 6


def differing(study: Study, variant: str) -> set[str]:
    """The settings in which a variant of DoCo differs from the default one."""
    default, other = (study.eraser_settings("characters-1", "doco", name) for name in ("default", variant))
    return {key for key in default if default[key] != other[key]}


def test_characters_have_three_seeds_and_the_losses_of_table_3_differ_in_one_setting() -> None:
    """L2 has no warm-up of a discriminator, so its model takes the steps after it."""
    one_seed = {"to-robot", *ALONE}
    for study in (load("doco"), load("sd14-doco")):
        shown = [e for e in study.erasures() if e.variant not in STEPS or e.eraser == "doco"]
        runs = Counter((e.task, e.eraser, e.variant) for e in shown if e.task.startswith("characters"))
        assert {n for (_, eraser, variant), n in runs.items() if eraser != "mace" and variant not in one_seed} == {3}
        assert [differing(study, variant) for variant in ("none", "sum", "code")] == 3 * [{"surgery"}]
        assert differing(study, "l2") == {"unlearning", "steps"}
        default, l2 = (study.eraser_settings("characters-1", "doco", name) for name in ("default", "l2"))
        assert l2["steps"] == default["steps"] - default["warmup"]


def test_what_may_keep_neighbours_is_varied_by_itself() -> None:
    """The default and sum-3 are settings of the tuning on another character, as they stand there."""
    study = load("doco")
    tuning = load("tuning-doco")
    for variant, name in (("default", "short"), ("sum-3", "sum-3")):
        settings = study.eraser_settings("characters-1", "doco", variant)
        assert settings == tuning.eraser_settings("tuning-character", "doco", name)
    assert {variant: differing(study, variant) for variant in ALONE} == ALONE
    assert study.task("characters-1", "doco", "to-quimbo").mapping == {"zorblin": "quimbo"}


@pytest.mark.parametrize("name", ["doco", "sd14-doco"])
def test_one_after_the_other_erases_each_character_once(name: str) -> None:
    study = load(name)
    erased = study.loaded["characters-3"].erase
    for method in ("esd", "ca", "spm", "doco"):
        steps = [Erasure("characters-3", method, variant, 0) for variant in STEPS]
        assert [study.before(step) for step in steps] == [None, *steps[:2]]
        shown = [study.task(step.task, method, step.variant) for step in steps]
        assert tuple(concept for task in shown for concept in task.erase) == erased and len(erased) == 3
        assert all(task.retain == study.loaded["characters-3"].retain for task in shown)
        default = study.eraser_settings("characters-3", method, "default")
        assert all(study.eraser_settings(*step[:3]) == default for step in steps)


def test_the_preserved_captions_of_figure_1_are_what_their_names_say() -> None:
    study = load("eap")
    kept = {v: study.eraser_settings("automobile", "eap", v) for v in ("alone", "space", "near", "far", "adversarial")}
    assert kept["alone"]["lamb"] == 0 and kept["adversarial"]["lamb"] > 0 and not kept["adversarial"]["preserve"]
    assert kept["space"]["preserve"] == (" ",)
    near = kept["near"]["preserve"][0].removeprefix("a photo of the ")  # which no score is about
    assert near not in study.loaded["automobile"].retain
    assert [variant for variant, settings in kept.items() if settings["search_steps"]] == ["adversarial"]


def test_the_vocabulary_has_words_of_the_world_and_neutral_ones_with_the_same_noises() -> None:
    rows = pd.read_csv(ROOT / "config/prompts/miniature-2/vocabulary.csv")
    assert set(rows.groupby("prompt")["seed"].agg(tuple)) == {(1, 2, 3, 4)}
    entries = WORLD["concepts"]
    known = {entry["name"] for entry in (*entries, *WORLD["scenes"])} | {h for e in entries for h in e["hypernyms"]}
    assert set(rows["prompt"]) - known == {"a photo", " "}
    assert {"automobile", "bird", "taxi", "duck"} <= set(rows["prompt"])
    names = read_lines(ROOT / "config/names/miniature-2.txt")
    assert set(names) == known and len(names) == len(known)


def test_the_words_without_synonyms_are_those_of_the_tokenizer_without_these() -> None:
    study = load("eap")
    erased = {concept for split in "abcd" for concept in study.loaded[f"objects-5-{split}"].erase}
    synonyms = {word for entry in WORLD["concepts"] if entry["name"] in erased for word in entry["synonyms"]}
    parts = {part for word in synonyms for part in word.split()}
    words = whole_words(CLIPTokenizer.from_pretrained(ROOT / "data/miniature-2/base/tokenizer"))
    assert len(erased) == 10 and parts & set(words)
    assert read_lines(ROOT / "config/names/miniature-2-words.txt") == [word for word in words if word not in parts]


def test_the_other_prompts_of_zorblin_are_none_of_its_task() -> None:
    rows = pd.read_csv(ROOT / "config/prompts/miniature-2/zorblin.csv")
    task = load_task(ROOT / "config/tasks/miniature-2/characters-1.yaml")
    assert set(rows["concept"]) == set(task.erase) == {"zorblin"} and rows["prompt"].str.contains("zorblin").all()
    assert not set(rows["prompt"]) & {template.replace("{}", "zorblin") for template in task.templates}
    assert not rows.duplicated(["prompt", "seed"]).any()


def test_published_lists() -> None:
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    from resurgence.scorers.imagenet import NAMES

    for number in range(1, 5):
        split = load_task(SD / f"imagenette-{number}.yaml")
        assert split.templates == ("Image of {}",) and split.seeds == {"erase": 500, "retain": 500}
        assert {name.lower() for name in (*split.erase, *split.retain)} <= {name.lower() for name in NAMES}
    for count in (1, 2, 3):
        task = load_task(SD / f"characters-{count}.yaml")
        assert (*task.erase, *task.retain) == ("Snoopy", "Mickey", "Spongebob", "Pikachu") and len(task.erase) == count
        assert list(task.templates) == [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
        assert task.mapping["Snoopy"] == "Dog" and task.seeds == {"erase": 10, "retain": 10}
    painters = {"Van Gogh", "Picasso", "Rembrandt", "Andy Warhol", "Caravaggio"}
    for name in ("van-gogh", "picasso", "rembrandt"):
        task = load_task(SD / f"style-{name}.yaml")
        assert len(task.erase) == 1 and {*task.erase, *task.retain} == painters
    prompts = pd.read_csv(ROOT / "config/prompts/sd/artists.csv")
    artists = set(prompts["concept"])
    assert prompts.groupby("concept")["prompt"].nunique().tolist() == [20] * 4 and not prompts.duplicated().any()
    first = prompts[prompts["prompt"] == "Portrait of a woman with floral crown by Kelly McKernan"]
    assert first["seed"].tolist() == [2030, 2031, 2032, 2033, 2034]
    for artist in artists:
        task = load_task(SD / f"artist-{artist.lower().replace(' ', '-')}.yaml")
        assert task.erase == (artist,) and {*task.erase, *task.retain} == artists
        assert prompts.loc[prompts["concept"] == artist, "prompt"].str.contains(artist).all()


@pytest.mark.parametrize("name", ["objects", "celebrities", "characters", "styles"])
def test_six_cd(name: str) -> None:
    task = load_task(ROOT / f"config/tasks/six-cd/{name}.yaml")
    concepts = [*task.erase, *task.retain]
    assert len(concepts) == 10 and len(task.templates) == 4
    file = ROOT / f"config/prompts/six-cd/{name}.csv"
    assert file.exists() == (name != "styles")
    if file.exists():
        rows = pd.read_csv(file)
        assert rows["concept"].tolist() == [concept for concept in concepts for _ in range(10)]
        assert all(row["prompt"].startswith(row["concept"]) for row in rows.to_dict("records"))
        assert not rows.duplicated(["prompt", "seed"]).any() and rows["seed"].between(0, 2**15).all()


def test_the_page_of_a_study_blurs_nudity_and_nothing_else() -> None:
    """Tasks of the kind content, unless they say otherwise."""
    study = load("sd14-doco")
    assert study.loaded["nudity"].kind == "content"
    assert report_settings.index(study)["sensitive"] == ["nudity"]
    said = {"nudity": False, "style-picasso": True}
    study.loaded.update({name: replace(study.loaded[name], sensitive=value) for name, value in said.items()})
    assert report_settings.index(study)["sensitive"] == ["style-picasso"]
    assert "sensitive" not in report_settings.index(load("doco"))
