"""The search over settings: other concepts and noise than those that score, equal budgets, one rule of the choice."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import parts
import pytest
import studies
import yaml

from resurgence.analysis import tuning
from resurgence.analysis.score_sets import ImageSet, image_set
from resurgence.config.erasers import eraser_config, erasers
from resurgence.config.experiment import Cells, Claim, Experiment
from resurgence.config.experiment_cells import models_of
from resurgence.config.fields import ConfigError, build, read_yaml
from resurgence.config.load import make_study, merge
from resurgence.config.model_path import method_name
from resurgence.config.optimisation import Optimisation
from resurgence.config.study import Study
from resurgence.config.task import load_task
from resurgence.config.word_sets import words_by_concept
from resurgence.data.prompts import prompt_set
from resurgence.files import read_json
from resurgence.seeds import seed_of
from resurgence.stages import experiment
from resurgence.stages import prompts as prompts_stage
from resurgence.stages.job import Job
from resurgence.workflow import experiment_settings, job_settings, report_settings
from resurgence.workflow.jobs import jobs
from scored import prompt_rows, score, write_scores_folder

ROOT = Path(__file__).parents[1]
OVERLAY = read_yaml(ROOT / "studies/tuning.yaml")
FOLDER = ROOT / OVERLAY["tasks"]["folder"]
CLOSED_FORM, GRADIENT = 5, 7  # settings of each eraser
KEYS = ("method", "seeds", "tasks", "variants")  # of an eraser in a study, beside its settings


# the study


def test_every_eraser_has_as_many_settings_on_the_same_tasks() -> None:
    shown = {experiment["erasers"][0]: experiment for experiment in OVERLAY["experiments"].values()}
    assert set(shown) == set(OVERLAY["erasers"]) == set(erasers()) - {"checkpoint", "update"}  # these have no training
    for name, block in OVERLAY["erasers"].items():
        names = [method_name(name, variant) for variant in block["variants"]]
        number = GRADIENT if issubclass(eraser_config(name), Optimisation) else CLOSED_FORM
        assert shown[name]["erasers"] == names and len(names) == number, name
        assert shown[name]["kind"] == "tuning" and shown[name]["tasks"] == OVERLAY["tasks"]["names"]
        written = {key: value for key, value in block.items() if key != "variants"}
        configs = [build(eraser_config(name), {**written, **changes}, name) for changes in block["variants"].values()]
        assert len({str(config) for config in configs}) == number, name
        if "space" in vars(configs[0]) and configs[0].compares_predictions:
            assert {config.space for config in configs} >= {"prediction", "noise"}, name


def test_the_study_of_all_erasers_has_the_settings_that_the_search_chose() -> None:
    """Those of docs/tuning.csv, with what params.yaml writes for MACE and UCE."""
    found = merge(read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "studies/methods.yaml"))["erasers"]
    chosen = studies.settings_for_methods(pd.read_csv(ROOT / "docs/tuning.csv", keep_default_na=False))
    assert chosen.keys() == found.keys() == OVERLAY["erasers"].keys()
    for name, setting in chosen.items():
        written = {key: value for key, value in found[name].items() if key not in KEYS}
        config = eraser_config(name)
        assert build(config, written, name) == build(config, studies.settings_of(OVERLAY, setting), name), name


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(20, 85, "chosen"), (0, 84, "")], "esd.a"),  # the rule's, whatever is better otherwise
        ([(60, 85, "chosen"), (20, 70, "")], "esd.b"),  # it leaves more than half
        ([(5, 60, "front"), (1, 57, "front")], "esd.b"),
    ],
)
def test_a_study_has_a_setting_also_where_none_keeps_enough(rows: list[tuple], expected: str) -> None:
    table = pd.DataFrame(rows, columns=["left", "kept", "choice"]).assign(eraser=["esd.a", "esd.b"])
    assert studies.settings_for_methods(table) == {"esd": expected}


def test_its_seeds_are_of_no_study_that_scores() -> None:
    used = set()
    for path in (ROOT / "params.yaml", *(ROOT / "studies").glob("*.yaml")):
        seeds = read_yaml(path).get("seeds", {})
        if not path.stem.startswith("tuning"):
            used |= {*seeds.get("erase", ()), *seeds.get("finetune", ())}
    for name in ("tuning", "tuning-eap", "tuning-doco"):
        seeds = read_yaml(ROOT / f"studies/{name}.yaml")["seeds"]
        assert used and used.isdisjoint({*seeds["erase"], *seeds["finetune"]}), name


def test_its_concepts_share_no_word_with_those_that_score() -> None:
    world = read_yaml(ROOT / OVERLAY["tasks"]["concepts"])
    words, scored = words_by_concept(world), set()
    for path in (ROOT / OVERLAY["tasks"]["tuning_for"]).glob("*.yaml"):
        task = load_task(path)
        scored |= {word for concept in (*task.erase, *task.retain) for word in words[concept]}
    tasks = [load_task(FOLDER / f"{name}.yaml") for name in OVERLAY["tasks"]["names"]]
    assert {task.kind for task in tasks} == {"person", "object", "character"} and len(scored) > 100
    assert len(next(task for task in tasks if task.kind == "person").erase) == 10
    for task in tasks:
        for concept in (*task.erase, *task.retain):
            assert words[concept].isdisjoint(scored), concept


# the configuration


def tuned(tmp_path: Path, task: dict[str, Any] | None = None, **tasks: Any) -> Study:
    """The study with the base and the scorers of the first miniature, and with one task changed."""
    for path in FOLDER.glob("*.yaml"):
        changed = read_yaml(path) | (task or {} if path.stem == "tuning-object" else {})
        (tmp_path / path.name).write_text(yaml.safe_dump(changed))
    first = {"base": {"path": "data/miniature/base"}, "world": "config/world.yaml"}
    first["scorers"] = {name: {"path": f"data/miniature/{name}"} for name in ("recogniser", "clip")}
    layers = [OVERLAY, first, {"tasks": {"folder": str(tmp_path)} | tasks}]
    study = read_yaml(ROOT / "params.yaml")
    for layer in layers:
        study = merge(study, layer)
    return make_study(study, ROOT)


@pytest.mark.world("miniature")
@pytest.mark.parametrize(
    ("task", "tasks", "message"),
    [
        ({"retain": ["bus", "sailboat"]}, {}, r"tuning-object.yaml: retain = 'sailboat': shares 'sailboat' with"),
        ({"erase": ["police car"], "mapping": "sky"}, {}, r"erase = 'police car': shares 'car' with 'automobile' of"),
        ({"first_seed": 1}, {}, r"tuning-object.yaml: first_seed = 1: may be the seed of an image that is scored"),
        ({}, {"general": "config/prompts/miniature/general-100.csv"}, r"tasks.general = .*: holds prompts and seeds"),
        ({}, {"tuning_for": "config/prompts"}, r"tasks.tuning_for = 'config/prompts': holds no tasks; write the"),
        ({}, {"concepts": None}, r"tasks.concepts = None: is no list with shared_words, .*remove tasks.tuning_for"),
    ],
)  # fmt: skip
def test_what_would_tune_on_what_scores_is_refused(
    task: dict[str, Any], tasks: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        tuned(tmp_path, task, **tasks)


@pytest.mark.world("miniature")
def test_images_have_other_noise_than_those_that_score(tmp_path: Path) -> None:
    study = tuned(tmp_path)
    settings = job_settings.prompts(study, "tuning-object")
    (tmp_path / "prompts").mkdir()
    prompts_stage.make(Job(settings, tmp_path / "prompts/manifest.json", {}, "cpu"), tmp_path / "prompts")
    rows = pd.read_csv(tmp_path / "prompts/prompts.csv")
    scored = prompt_set(study.loaded["tuning-object"])
    assert list(rows["prompt"]) == list(scored["prompt"]) and set(rows["seed"]).isdisjoint(scored["seed"])
    assert rows["seed"].tolist() == [
        seed_of("tuning", prompt, index) for prompt, index in zip(rows["prompt"], rows["index"], strict=True)
    ]
    assert "purpose" not in job_settings.prompts(tuned(tmp_path, tuning_for=None), "tuning-object")


@pytest.mark.world("miniature")
def test_one_eraser_is_one_target(tmp_path: Path) -> None:
    """It reads the bases and the erased models of its settings, and a study without fine-tuning has no others."""
    study = tuned(tmp_path)
    assert not list(study.cells()) and report_settings.whole(study) == ["results/experiments/results.md"]
    models = {"tuning-object", "tuning-object/esd/s1000", "tuning-people/esd.noise/s1000"}
    assert models <= set(models_of(study, "tune_esd")) and len(models_of(study, "tune_esd")) == 3 * (1 + GRADIENT)
    made = {job.out.as_posix(): job for job in jobs(study)}
    reads = experiment_settings.experiment_reads(study, "tune_esd")
    assert len(reads) == 3 * (1 + GRADIENT) and {f"{folder}/manifest.json" for folder in reads} <= set(made)
    settings = made["results/experiments/tune_esd/made.json"].settings
    assert settings["settings"]["esd.long"] == {**settings["settings"]["esd"], "steps": 600}


@pytest.mark.world("miniature")
def test_settings_are_compared_on_the_same_tasks(tmp_path: Path) -> None:
    limited = {"esd": {"variants": {"long": {"tasks": ["tuning-object"]}}}}
    study = tuned(tmp_path).source
    with pytest.raises(ConfigError, match=r"experiments.tune_esd.erasers = 'esd.long': leaves out tuning-people"):
        make_study(merge(study, {"erasers": limited}), ROOT)


@pytest.mark.parametrize(("key", "value"), [("finetunes", "lora"), ("claims", Claim("x", Cells(), "above"))])
def test_tuning_compares_erased_models_alone(key: str, value: Any) -> None:
    shown = {"title": "x", "kind": "tuning", "tasks": ("ship",), "erasers": ("uce",)}
    assert Experiment(**shown).finetunes == ()
    with pytest.raises(ConfigError, match=rf"{key} = \['(lora|x)'\]: has no effect in an experiment of kind tuning"):
        Experiment(**shown, **{key: (value,)})
    with pytest.raises(ConfigError, match=r"erasers = \[\]: must not be empty for tuning"):
        Experiment(**{**shown, "erasers": ()})


# the choice


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(40, 95), (10, 81), (0, 79.9)], ["", "chosen", ""]),  # the least left, of those that keep 80 %
        ([(10, 80), (10, 85), (12, 99)], ["", "chosen", ""]),  # of equal ones, the one that keeps more
        ([(10, 85), (10, 85)], ["chosen", ""]),  # the one written first
        ([(0, 80.0)], ["chosen"]),
        ([(40, 70), (10, 60), (50, 65), (5, 20)], ["front", "front", "", "front"]),
        ([(40, 70), (50, 70)], ["front", ""]),  # of two that keep as much, the one that leaves less
        ([(40, 70), (40, 70), (40, 60)], ["front", "front", ""]),  # equal settings do not exclude each other
        ([(math.nan, 90), (30, 85)], ["", "chosen"]),  # no image of the erased concepts has a value
        ([(math.nan, 90), (30, 70), (20, math.nan)], ["", "front", ""]),
        ([(math.nan, 90)], [""]),
    ],
)
def test_the_rule_of_the_choice(points: list[tuple[float, float]], expected: list[str]) -> None:
    assert tuning.choices(pd.DataFrame(points, columns=["left", "kept"])) == expected


def test_a_setting_is_told_by_what_differs() -> None:
    settings = {"a": {"lr": 1, "steps": 2}, "a.b": {"lr": 3, "steps": 2}, "a.c": {"lr": 1, "steps": 2, "x": 4}, "d": {}}
    told = [tuning.differing(name, settings) for name in settings]
    assert told == ["lr: 1", "lr: 3", "lr: 1, x: 4", ""]


PEOPLE = {"erase": ["doctor", "clerk"], "retain": ["boy", "girl"]}
BICYCLE = {"erase": ["bicycle"], "retain": ["bus", "train"]}
SHOWN = {  # share of recognised images of the erased and retained concepts: task -> model -> both
    "people": {"": (1, 0.5), "esd": (0.5, 0.5), "esd.long": (0.25, 0.375)},
    "bicycle": {"": (1, 1), "esd": (0.0, 0.75), "esd.long": (0.0, 1)},
}


def scored_sets() -> list[ImageSet]:
    """Two tasks, two settings, exactly the shares of SHOWN in each concept."""
    sets = []
    for (task, models), concepts in zip(SHOWN.items(), (PEOPLE, BICYCLE), strict=True):
        prompts = prompt_rows(concepts)
        place = prompts.groupby("concept").cumcount() / (len(prompts) / prompts["concept"].nunique())
        for name, (left, kept) in models.items():
            eraser, _, variant = name.partition(".")
            key = {"eraser": eraser, "variant": variant or "default", "erase_seed": 1000} if name else {}
            rows = score(prompts, {"erase": left, "retain": kept}, 0)
            rows["recogniser_correct"] = (place < rows["role"].map({"erase": left, "retain": kept})).astype(float)
            state = "erased" if name else "base"
            sets.append(image_set({"base": "m", "task": task, **key, "state": state}, rows, np.zeros((len(rows), 2))))
    return sets


def test_what_is_left_is_a_mean_over_tasks_and_what_is_kept_the_least() -> None:
    cells = tuning.left_and_kept(scored_sets(), "recogniser_accuracy")
    settings = {"esd": {"steps": 300}, "esd.long": {"steps": 600}}
    table = tuning.tuning_table(cells, settings, ["people", "bicycle"]).set_index("eraser")
    assert table["left"].to_dict() == {"esd": 25.0, "esd.long": 12.5}
    assert table["kept"].to_dict() == {"esd": 75.0, "esd.long": 75.0}  # of bicycle and of people
    assert table.loc["esd", ["left people", "kept people", "left bicycle", "kept bicycle"]].tolist() == [50, 100, 0, 75]
    assert table.loc["esd.long", ["left people", "kept people"]].tolist() == [25, 75]
    assert (table["base"] == 100).all() and (table[["base people", "base bicycle"]] == 100).all(axis=None)
    assert table["choice"].to_dict() == {"esd": "", "esd.long": "front"}
    assert table["setting"].to_dict() == {"esd": "steps: 300", "esd.long": "steps: 600"}


def test_the_base_may_draw_few_of_the_erased_concepts_itself() -> None:
    """A quarter of the people: what is left of them, a quarter, is then nothing that an eraser did."""
    sets = scored_sets()
    rows = sets[0].rows
    erased = rows.index[rows["role"] == "erase"]
    rows.loc[erased, "recogniser_correct"] = [float(place % 4 == 0) for place in range(len(erased))]
    cells = tuning.left_and_kept(sets, "recogniser_accuracy")
    table = tuning.tuning_table(cells, {"esd.long": {"steps": 600}}, ["people", "bicycle"])
    assert table[["base people", "left people", "base bicycle", "base"]].iloc[0].tolist() == [25, 25, 100, 62.5]


def test_a_base_that_shows_nothing_retained_is_refused() -> None:
    sets = [s for s in scored_sets() if s.key["task"] == "people"]
    sets[0].rows.loc[sets[0].rows["role"] == "retain", "recogniser_correct"] = 0.0
    with pytest.raises(ValueError, match="people: the base shows none of the retained concepts by recogniser_accuracy"):
        tuning.left_and_kept(sets, "recogniser_accuracy")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A folder with the results of one experiment of the study, `tune_esd`, with known scores."""
    models = []
    for one in scored_sets():
        name = method_name(one.key["eraser"], one.key["variant"]) if one.key["eraser"] else ""
        models.append(f"{one.key['task']}/{name}/s1000" if name else one.key["task"])
        write_scores_folder(tmp_path / f"results/scores/m/{models[-1]}/scores/step-000000", one)
    written = {"esd": {"steps": 300, "captions": ["{}"]}, "esd.long": {"steps": 600, "captions": ["{}"]}}
    settings = {"name": "tune_esd", "title": "ESD", "kind": "tuning", "metric": "recogniser_accuracy", "note": "",
                "erasers": ["esd", "esd.long"], "base": "m", "controls": [], "models": models, "tasks": [*SHOWN],
                "settings": written, "claims": []}  # fmt: skip
    with contextlib.chdir(tmp_path):
        experiment.make(Job(settings, Path("results/experiments/tune_esd/made.json"), {}, "cpu"))
    return tmp_path


def test_the_page_holds_table_and_rule(page: Path) -> None:
    folder = page / "results/experiments/tune_esd"
    text, table = (folder / "tune_esd.md").read_text(), pd.read_csv(folder / "tune_esd.csv")
    assert tuning.RULE in text and "Chosen:\n" not in text and list(table["choice"].fillna("")) == ["", "front"]
    assert (
        "| esd.long | steps: 600 | 1 | 100.0 | 12.5 | 75.0 | 100.0 | 25.0 | 75.0 | 100.0 | 0.0 | 100.0 | front |"
        in text
    )
    assert (folder / "tune_esd.svg").is_file()


def test_a_chosen_setting_is_written_as_it_stands_in_the_study(page: Path) -> None:
    made = read_json(page / "results/experiments/tune_esd/made.json")["parameters"]
    models = [model for model in made["models"] if model.startswith("bicycle")]  # of which esd.long keeps all
    settings = made | {"models": models, "tasks": ["bicycle"], "name": "x"}
    with contextlib.chdir(page):
        experiment.make(Job(settings, Path("results/experiments/x/made.json"), {}, "cpu"))
    text = (page / "results/experiments/x/x.md").read_text()
    chosen = yaml.safe_load(text.partition("```yaml")[2].partition("```")[0])
    assert chosen == {"esd.long": {"steps": 600, "captions": ["{}"]}}


def written(names: dict[str, float], **changes: Any) -> dict[str, Any]:
    """The file of a study with three experiments, of which the second has run."""
    block = {"steps": 300, "captions": ["{}"], "variants": {"default": {}, "long": {"steps": 600}}} | changes
    shown = {"tune_mace": ["mace"], "tune_esd": ["esd", "esd.long"], "tune_not_run": ["ca"]}
    return {"base": {"name": "m"}, "tasks": {"names": [*names]}, "seeds": {"erase": [1000]},
            "erasers": {"mace": None, "esd": block, "ca": {}},
            "experiments": {name: {"erasers": erasers} for name, erasers in shown.items()}}  # fmt: skip


def write_runs(page: Path, names: dict[str, float], **commits: str) -> None:
    """The runs that erased each task in these seconds.

    Args:
        commits: task -> commit, where another one than aaaa...
    """
    for (task, taken), eraser in itertools.product(names.items(), ("esd", "esd.long")):
        folder = page / f"results/erased/m/{task}/{eraser}/s1000/delta"
        folder.mkdir(parents=True)
        commit = commits.get(task, 40 * "a")
        (folder / "run.json").write_text(json.dumps({"seconds": taken, "commit": commit}))


def test_an_experiment_that_ran_with_other_settings_than_the_study_has_now_does_not_take_the_place_of_rows(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"people": 40, "bicycle": 2.4}
    write_runs(page, names, people=40 * "b")
    known, columns = page / "tuning.csv", [f"{part} {task}" for task in names for part in ("left", "kept", "seconds")]
    before = pd.DataFrame([["esd", "steps: 7", 1.5, 90.0, *[1.0, 90.0, 3] * 2, "chosen", ""]],
                          columns=["eraser", "setting", "left", "kept", *columns, "choice", "commit"])  # fmt: skip
    other = {"variants": {"default": {}, "long": {"steps": 900}}}
    for changes in (other, {"steps": 200}, {"lr": 1e-3}):
        before.to_csv(known, index=False)
        (page / "study.yaml").write_text(yaml.safe_dump(written(names, **changes)))
        text = studies.tuning(page / "results", page / "study.yaml", known)
        assert "steps: 7" in text and "steps: 300" not in text
        assert "tune_esd has run with other settings than the study has now" in capsys.readouterr().out
    (page / "study.yaml").write_text(yaml.safe_dump(written(names)))
    studies.tuning(page / "results", page / "study.yaml", known)
    rows = pd.read_csv(known)
    assert rows["setting"].tolist() == ["steps: 300", "steps: 600"]
    assert set(rows["commit"]) == {f"{10 * 'b'} {10 * 'a'}"}  # of both tasks


def test_docs_hold_one_table_of_what_has_run(page: Path) -> None:
    names = {"people": 40, "bicycle": 2.4}
    (page / "study.yaml").write_text(yaml.safe_dump(written(names)))
    write_runs(page, names)
    columns = "eraser,setting,left,kept,left people,kept people,left bicycle,kept bicycle,choice,seconds people"
    known = page / "tuning.csv"
    other = "1.5,90.0,1.0,90.0,2.0,95.0,chosen,3,4,\n"
    known.write_text(f"{columns},seconds bicycle,commit\nesd,steps: 7,{other}mace,lamb: 1,{other}")
    text = studies.tuning(page / "results", page / "study.yaml", known)
    assert "| esd | steps: 300 | 100.0 / 100.0 | 25.0 | 75.0 | 50.0 / 100.0 | 0.0 / 75.0 | 40 / 2 |  |" in text
    old = "| mace | lamb: 1 | - / - | 1.5 | 90.0 | 1.0 / 90.0 | 2.0 / 95.0 | 3 / 4 | chosen |"  # without the base's
    assert old in text
    of_methods = studies.methods(known, page / "study.yaml")
    assert of_methods.keys() == {"mace", "esd"} and "Aim" not in of_methods["esd"]
    assert "| default | steps: 300 | 100.0 / 100.0 | **50.0 / 100.0** | 0.0 / 75.0 | 40 / 2 |  |" in of_methods["esd"]
    assert (
        "| long | steps: 600 | 100.0 / 100.0 | **25.0 / 75.0** | **0.0 / 100.0** | 40 / 2 | front |"
        in of_methods["esd"]
    )
    assert "| default | lamb: 1 | - / - | **1.0 / 90.0** | **2.0 / 95.0** | 3 / 4 | chosen |" in of_methods["mace"]
    assert "Chosen: mace. No setting keeps enough: esd." in text and tuning.RULE in text and "steps: 7" not in text
    aim = "Aim: of people at most 10 % left and at least 80 % kept: met by mace; by no setting of esd."
    assert studies.aim(pd.read_csv(known, keep_default_na=False), "people") == aim and "Aim:" not in text
    assert "| mace | default 1.0 / 90.0 | default 2.0 / 95.0 |" in text  # the fronts
    once = known.read_bytes()
    shutil.rmtree(page / "results/experiments")
    assert studies.tuning(page / "results", page / "study.yaml", known) == text and known.read_bytes() == once
    with pytest.raises(ValueError, match=r"has no finished experiment of .*study.yaml; run the study first"):
        studies.tuning(page / "results", page / "study.yaml", page / "other.csv")
    for name in ("tuning", "sources"):
        filled = parts.filled(ROOT / f"docs/{name}.md", {f"{name} study": text})
        assert filled.count(text) == 1


def test_the_page_of_each_method_has_its_rows() -> None:
    """As they are in docs/tuning.csv; of a method that has none, the place for them."""
    shown = studies.methods(ROOT / "docs/tuning.csv", ROOT / "studies/tuning.yaml")
    assert shown.keys() >= {"mace", "uce", "esd", "eap", "ca", "doco"}
    for name in OVERLAY["erasers"]:
        page = ROOT / f"docs/methods/{name}.md"
        text = parts.filled(page, {"tuning": shown[name]}) if name in shown else page.read_text(encoding="utf-8")
        assert text == page.read_text(encoding="utf-8") and text.count("<!-- end of tuning -->") == 1, name


@pytest.mark.parametrize(
    ("rows", "said"),
    [([(5, 85), (0, 70)], "met by esd.a."), ([(5, 79), (11, 90)], "met by no setting; the bold cells")],
)
def test_a_method_that_misses_the_aim_shows_what_it_reaches(rows: list[tuple[float, float]], said: str) -> None:
    table = pd.DataFrame(rows, columns=[f"left {studies.PEOPLE}", f"kept {studies.PEOPLE}"])
    table = table.assign(eraser=["esd.a", "esd.b"], setting="", choice="", **{f"seconds {studies.PEOPLE}": 3})
    assert said in studies.method(table, [studies.PEOPLE], {})


def test_a_setting_with_another_objective_is_marked_in_each_table(page: Path) -> None:
    names = {"people": 40, "bicycle": 2.4}
    study = written(names) | {"erasers": {"mace": None, "esd": {}, "ca": {}, "rece": {"accumulate": True}}}
    study["experiments"]["tune_rece"] = {"erasers": ["rece"]}
    (page / "study.yaml").write_text(yaml.safe_dump(study))
    columns = "eraser,setting,left,kept,left people,kept people,left bicycle,kept bicycle,choice,seconds people"
    known = page / "tuning.csv"
    known.write_text(f"{columns},seconds bicycle,commit\nrece,mu: 1,1.5,90.0,1.0,90.0,2.0,95.0,chosen,3,4,\n")
    text, of_methods = studies.tuning(page, page / "study.yaml", known), studies.methods(known, page / "study.yaml")
    note = "† not the published objective: rece has accumulate: true."
    assert "| rece † | mu: 1 |" in text and "| default † | mu: 1 |" in of_methods["rece"]
    assert note in text and note in of_methods["rece"]


def test_settings_with_equal_values_stand_together_on_a_front() -> None:
    rows = {
        "eraser": ["uce", "uce.b", "uce.c", "uce.d"],
        "left people": [2.0, 1.0, 2.0, 3.0],
        "kept people": [99, 90, 99, 98],
    }
    table = pd.DataFrame(rows)
    assert "| uce | b 1.0 / 90.0; default, c 2.0 / 99.0 |" in studies.fronts_by_task(table, ["people"])
