"""The records of the rules, and what names rules, stages or folders beside them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
import yte

from resurgence.config.fields import ConfigError
from resurgence.config.load import load_study
from resurgence.config.model_path import WILDCARDS
from resurgence.config.study import STAGE_OF, Study
from resurgence.workflow import archive, jobs, report_settings
from resurgence.workflow.rule_table import BASE, ERASED, RULES, TASK, check_folders, folders_beside, outputs, reported

ROOT = Path(__file__).parents[1]
OTHERS = {"world", "run_summary"}  # stages that no record names: of the miniature, and of the end of a run
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
MODELS = ["images", "scores"]  # folders of every model, the base included


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study([ROOT / "params.yaml"], ROOT)


def main_modules() -> set[str]:
    """The modules of resurgence/stages that run as a job."""
    files = (ROOT / "src/resurgence/stages").glob("*.py")
    return {file.stem for file in files if '__name__ == "__main__"' in file.read_text()}


def test_every_stage_has_a_record_and_every_record_a_stage() -> None:
    assert {rule.stage for rule in RULES.values()} == main_modules() - OTHERS


def test_wildcards_of_outputs_have_a_pattern(study: Study) -> None:
    for rule in RULES.values():
        assert set(re.findall(r"{(\w+)}", rule.output)) <= WILDCARDS.keys(), rule.name
        assert rule.constraints(study).keys() <= WILDCARDS.keys()


def test_wildcards_match_the_jobs_of_the_study_and_nothing_else(study: Study) -> None:
    """An output names one job: of all rules, only that of the job has a pattern that matches it, with its wildcards."""
    patterns = {}
    for rule in RULES.values():
        of = WILDCARDS | rule.constraints(study)
        parts = re.split(r"{(\w+)}", rule.output)
        text = "".join(re.escape(p) if n % 2 == 0 else f"(?P<{p}>{of[p]})" for n, p in enumerate(parts))
        patterns[rule.name] = re.compile(text)
    for rule in RULES.values():
        for item, output in zip(rule.items(study), outputs(study, rule), strict=True):
            matches = {name: m for name, pattern in patterns.items() if (m := pattern.fullmatch(output))}
            assert matches.keys() == {rule.name}, output
            assert item.items() <= matches[rule.name].groupdict().items()


def test_parts_that_the_study_names_are_written_by_a_rule_into_that_folder() -> None:
    written = {(rule.part, rule.folder) for rule in RULES.values()}
    assert set(STAGE_OF.items()) <= written


def test_dvc_tracks_the_folders_of_the_rules(study: Study) -> None:
    """Each stage of dvc.yaml has the folders and pages that its target writes; experiments have none."""
    tracked: dict[str, set[str]] = {name: set() for name in DVC if name != "expected"}
    for rule in RULES.values():
        if outputs(study, rule):
            files = [rule.output, *(file for file in rule.files(study) if "{" not in file)]
            tracked.setdefault(rule.dvc_stage, set()).update("/".join(Path(file).parts[:2]) for file in files)
    tracked.pop("experiments", None)
    assert tracked == {name: {*map(only_key, stage["outs"])} for name, stage in DVC.items() if name != "expected"}
    targets = set(re.findall(r"^rule (\w+):", (ROOT / "workflow/rules/targets.smk").read_text(), flags=re.MULTILINE))
    assert {stage["cmd"].rpartition(" ")[2] for name, stage in DVC.items() if name != "expected"} == targets


def only_key(out: dict) -> str:
    """The path of an output in dvc.yaml."""
    (path,) = out
    return path


def test_each_stage_of_dvc_depends_on_the_folders_that_its_jobs_read(study: Study) -> None:
    read: dict[str, set[str]] = {}
    for job in jobs.jobs(study):
        folders = {"/".join(path.parts[:2]) for path in job.above}
        read.setdefault(job.rule.dvc_stage, set()).update(folders)
    for name, folders in read.items():
        if name in DVC:
            own = {*map(only_key, DVC[name]["outs"])}
            assert set(DVC[name].get("deps", ())) <= folders - own, name  # the others are behind these
            behind = {folder for dep in DVC[name].get("deps", ()) for folder in read_before(dep, read)}
            assert folders - own <= behind, name


def read_before(folder: str, read: dict[str, set[str]]) -> set[str]:
    """A folder, and those behind it."""
    stage = folder.removeprefix("results/")
    return {folder, *(f for above in read.get(stage, set()) - {folder} for f in read_before(above, read))}


@pytest.mark.parametrize(
    ("owner", "among", "without"),
    [
        (BASE, ["moments", "reference"], ["prompts", *MODELS]),
        (
            TASK,
            ["prompts", "moments", "masks", "finetune_sets", "terciles", *MODELS],
            ["delta", "weights", "reference"],
        ),
        (ERASED, ["delta", "loras", "erased_sets", *MODELS], ["prompts", "moments", "geometry"]),
    ],
)
def test_folders_of_rules_beside_those_of_models(owner: str, among: list[str], without: list[str]) -> None:
    assert set(among) <= set(folders_beside(owner)) and not set(without) & set(folders_beside(owner))


@pytest.mark.parametrize(
    ("key", "name"),
    [("erasers", "masks"), ("finetunes", "erased_sets")],
)
def test_a_model_named_as_a_folder_of_its_rules_is_refused(study: Study, key: str, name: str) -> None:
    check_folders(study)
    with pytest.raises(ConfigError, match=rf"{key} = '{name}': is the name of a folder .*; choose another"):
        check_folders(dataclasses.replace(study, **{key: {name: next(iter(getattr(study, key).values()))}}))


def test_the_archive_leaves_out_images_alone(study: Study) -> None:
    """Whole: what the tables follow from, and the models. The pages are those that rules write beside the folders."""
    assert {"tables", "figures", "experiments", "cost", "erased", "finetuned", "scores"} < set(archive.WHOLE)
    assert set(archive.WITH_IMAGES) == {"data", "images", "grids"} and {"erased_sets"} == archive.SETS
    beside = {Path(file).name for rule in RULES.values() for file in rule.files(study) if len(Path(file).parts) == 2}
    assert set(archive.PAGES) == beside


def test_groups_of_slurm_have_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only short jobs, not local ones, are in a group."""
    monkeypatch.setenv("RESURGENCE_SITE", str(ROOT / "profiles/slurm/site.yaml"))  # the profile would set it
    profile = yte.process_yaml((ROOT / "profiles/slurm/profile.yaml").read_text(), require_use_yte=True)
    assert set(profile["groups"].values()) == profile["group-components"].keys()
    assert profile["groups"] == {rule.name: rule.group for rule in RULES.values() if rule.group}
    assert not any(rule.local for rule in RULES.values() if rule.group or rule.gpu)


def test_the_report_shows_the_rules_with_pictures(study: Study) -> None:
    """Those of experiments through the page of all experiments, where there are some."""
    shown = {rule.name for rule in RULES.values() if rule.reported}
    assert {name for name, of in report_settings.pictures(study).items() if of} - {"experiment"} <= shown
    assert "results" in shown and RULES["results"].inputs(study, None).keys() == {"experiments"}
    folders = [Path(path).parts[1] for path in reported(study)]
    assert ("experiments" in folders) == bool(study.experiments) and "tables" in folders


def test_jobs_that_cost_seconds_of_a_gpu_use_one() -> None:
    assert all(rule.gpu for rule in RULES.values() if rule.cost is not None)
    assert {rule.name for rule in RULES.values() if rule.gpu and rule.cost is None} == {"reference_features"}


def test_models_run_on_a_gpu_but_for_words_sizes_and_distances() -> None:
    """CLIP compares some words for terciles and experiments; a real set reads only the size and tokens of the base."""
    without = {rule.name for rule in RULES.values() if rule.loads and not rule.gpu}
    assert without == {"terciles", "real_set", "geometry", "experiment"}


def test_jobs_with_the_weights_of_a_base_or_of_scorers_among_their_inputs_load_them() -> None:
    """The plan and the first check of a run look for these weights by the record; a hub id is no input."""
    loads = {"base": {"base", "attention", "other base"}, "scorers": {"scorers", "features"},
             "clip": {"clip", "similarity"}}  # fmt: skip
    study, inputs = load_study([ROOT / "params.yaml", ROOT / "studies/sd14.yaml"], ROOT), set()
    for job in jobs.jobs(study):
        inputs |= {(job.rule.name, name) for name in loads.keys() & job.inputs.keys()}
    assert {rule for rule, name in inputs if not loads[name] & set(RULES[rule].loads)} == set()
    assert {"geometry", "sample", "loras", "finetune"} <= {rule for rule, name in inputs if name == "base"}
