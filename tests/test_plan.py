"""The plan: what Snakemake's table says, what was measured, and the arithmetic of images."""

from __future__ import annotations

import dataclasses
import json
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from resurgence.config.fields import ConfigError, read_yaml
from resurgence.config.load import make_study
from resurgence.config.study import Study
from resurgence.config.task import load_task, make_task
from resurgence.data.prompts import prompt_set
from resurgence.files import plain, sha256, write_json
from resurgence.workflow import plan
from resurgence.workflow.cpu_seconds import CpuCoster
from resurgence.workflow.gpu_hours import CpuRates, read_rates
from resurgence.workflow.jobs import Job, jobs
from resurgence.workflow.rule_table import RULES
from test_config import TASK, write_world

ROOT = Path(__file__).parents[1]
TOLD = """\
Host: vm
Job stats:
job               count
--------------  -------
all                   1
score                 5
tables                1
total                 7

Job stats:
job               count
--------------  -------
all                   1
score                 5
tables                1
total                 7

Reasons:
    (check individual jobs above for details)
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """The default study on one task of four concepts, with two fine-tunes."""
    write_world(tmp_path)
    values = read_yaml(ROOT / "params.yaml")
    values["tasks"] = {"folder": "tasks", "names": ["pets"]}
    values["moments"] = {"prior": "general.txt", "domain": "closed_form.txt"}
    values["sampling"]["size"] = 64
    values["finetunes"] = {"lora": {"set": "random", "steps": 4, "checkpoints": [2, 4]}}
    values["erasers"] = {"uce": {}, "none": {"method": "none"}}
    return make_study(values, tmp_path)


def test_job_counts_reads_one_of_the_two_tables() -> None:
    assert plan.job_counts(TOLD) == Counter(score=5, tables=1)
    assert plan.job_counts("Nothing to be done") == Counter()


@pytest.mark.parametrize("path", sorted((ROOT / "config/tasks").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_prompts_of_counts_the_prompt_set(path: Path) -> None:
    task = load_task(path)
    assert plan.prompts_of(task) == len(prompt_set(task))


def test_images_of_counts_every_model(study: Study) -> None:
    rows = len(prompt_set(make_task(TASK)))
    # base, erased (the control is the base), two checkpoints of each of the two fine-tuned models
    assert plan.images_of(study) == rows * (1 + 1 + 2 * 2)


def finish(job: Job, seconds: list[float], device: str = "cpu", **changes: object) -> None:
    """Write what a finished job leaves: manifest with these changes of its settings, run, and Snakemake's benchmark."""
    manifest = {"format": 2, "parameters": plain({**job.settings, **changes}), "files": {}}
    write_json(job.out, manifest)
    write_json(job.out.with_name("run.json"), {"device": device, "manifest": sha256(job.out)})
    job.benchmark.parent.mkdir(parents=True, exist_ok=True)
    job.benchmark.write_text("".join(json.dumps({"s": value}) + "\n" for value in seconds))


@pytest.fixture
def sampling(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Job]:
    """The jobs of the study that sample a model, in its folder."""
    monkeypatch.chdir(tmp_path)
    return [job for job in jobs(study) if job.rule.name == "sample"]


def test_measured_seconds_are_means_of_all_runs(sampling: list[Job]) -> None:
    finish(sampling[0], [2.0, 4.0])
    finish(sampling[1], [6.0])
    assert plan.measured_seconds(sampling, "CPU") == {"sample": 4.0}


def test_seconds_of_other_settings_count_no_more(sampling: list[Job]) -> None:
    finish(sampling[0], [2.0])
    finish(sampling[1], [90.0], sampling={**sampling[1].settings["sampling"], "size": 512})
    assert plan.measured_seconds(sampling, "CPU") == {"sample": 2.0}


def test_seconds_on_a_cpu_say_nothing_of_a_gpu_unless_the_rule_uses_none(study: Study, sampling: list[Job]) -> None:
    prompts = next(job for job in jobs(study) if job.rule.name == "prompts")
    finish(prompts, [1.0])
    finish(sampling[0], [2.0])
    finish(sampling[1], [0.5], device="NVIDIA A100")
    assert plan.measured_seconds([prompts, *sampling], "GPU") == {"prompts": 1.0, "sample": 0.5}
    assert plan.measured_seconds([prompts, *sampling], "CPU") == {"prompts": 1.0, "sample": 2.0}


def test_seconds_of_another_base_do_not_count(study: Study, sampling: list[Job]) -> None:
    """The miniature has run in this tree, and a study of SD 1.4 is planned in it."""
    for job in sampling:
        finish(job, [2.0])
    other = dataclasses.replace(study, base=dataclasses.replace(study.base, name="sd14"))
    assert plan.measured_seconds(jobs(study), "CPU") == {"sample": 2.0}
    assert plan.measured_seconds(jobs(other), "CPU") == {}


def test_an_unfinished_or_damaged_job_does_not_count(sampling: list[Job]) -> None:
    finish(sampling[0], [2.0])
    finish(sampling[1], [4.0])
    sampling[0].out.unlink()
    sampling[1].out.write_text("{")
    assert plan.measured_seconds(sampling, "CPU") == {}


def test_lines_add_up(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "device_of", lambda study: "CPU")
    total = Counter(sample=4, score=4, tables=1)
    lines = plan.lines(study, Counter(score=3, tables=1), total, {"score": 40.0, "tables": 20.0}, 2)
    assert len(lines) <= 12
    table = {line[:26].strip(): line[26:].split() for line in lines[2:9]}
    assert table["score"] == ["3", "1", "1", "min", "00", "s"]
    assert table["sample"] == ["0", "4", "-"]
    assert table["all"][:6] == ["4", "5", "about", "1", "min", "10"]


def test_seconds_on_a_cpu_grow_with_the_work_of_a_job(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By hand: images x steps x 2 for the guidance, steps of fine-tuning, and the others' seconds of the rule table."""
    monkeypatch.chdir(tmp_path)
    assert study.base.name == "miniature-2"
    rates = read_rates(ROOT)
    ones = CpuRates(start=1000.0, graded=0.0, full=0.0, plain=0.0, sample=2.0, tune=3.0, score=5.0)
    cost = CpuCoster(study, dataclasses.replace(rates, cpu={"miniature-2": ones}))
    seconds = {}
    for job in jobs(study):
        seconds.setdefault(job.rule.name, []).append(cost(job).seconds)
    images, steps = len(prompt_set(make_task(TASK))), study.sampling.steps
    sampled = [1000 + n * images * steps * 2 * 2 for n in (1, 1, 2, 2)]  # base, erased; two checkpoints of two models
    assert sorted(seconds["sample"]) == sampled
    assert sorted(seconds["score"]) == [1000 + n * images * 5 for n in (1, 1, 2, 2)]
    accumulation = study.finetune_settings("lora", "default")["accumulation"]
    assert seconds["finetune"] == [1000 + 4 * accumulation * 3] * 2
    assert seconds["closed_form"] == [RULES["closed_form"].seconds]


def test_one_model_at_a_time_on_a_gpu(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "device_of", lambda study: "GPU")
    todo = Counter(sample=4)
    lines = plan.lines(study, todo, todo, {"sample": 30.0}, 8)
    assert any("about 2 min 00 s" in line for line in lines)
    assert lines[-1].endswith("device: GPU")


def test_disk_grows_with_full_fine_tuning(study: Study, tmp_path: Path) -> None:
    unet = tmp_path / study.base.path / "unet"
    unet.mkdir(parents=True)
    (unet / "diffusion_pytorch_model.safetensors").write_bytes(b"0" * 10_000_000)
    lora = plan.bytes_of(study, tmp_path)
    method = dataclasses.replace(
        study.finetunes["lora"], settings={"algorithm": "full", "steps": 4, "checkpoints": [2, 4]}
    )
    full = plan.bytes_of(dataclasses.replace(study, finetunes={"lora": method}), tmp_path)
    assert full - lora == pytest.approx(4 * 0.97 * 10_000_000)


def test_snakemake_refusing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"snakemake = '-n': fails; it says(.|\n)*MissingRuleException"):
        plan.dry_runs([], ["no-such-target"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--target", "fig77"], r"--target = 'fig77': is no target of this study; did you mean 'fig7'\?"),
        (["--target", "sample"], r"--target = 'sample': is no target of this study; .*known: .*\btables\b"),
        (["--until", "scores"], r"--until = 'scores': is no rule; did you mean 'score'\?"),
        (["--gpu", "h1000"], r"--gpu = 'h1000': not known here; did you mean 'h100'\?"),
    ],
)
def test_an_unknown_target_rule_or_gpu_is_told_with_the_nearest(
    study: Study, words: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Snakemake says of it: tests/workflow runs it for a rule that does not exist."""
    said = "Target rules may not contain wildcards." if "sample" in words else f"No rule to produce {words[1]} (if"

    def refuse(*arguments: object) -> None:
        raise ConfigError("snakemake", "-n", f"fails; it says\n{said}")

    monkeypatch.setattr(plan, "load_study", lambda paths: dataclasses.replace(study, experiments={"fig7": None}))
    monkeypatch.setattr(plan, "dry_runs", refuse)
    parser = ArgumentParser()
    plan.plan_arguments(parser)
    with pytest.raises(ConfigError, match=told):
        plan.plan(parser.parse_args(words))


def test_the_command_for_weights_that_are_not_there_names_the_study(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [(None, "missing", ""), (None, "verified", ""), (None, "damaged", "")]
    monkeypatch.setattr(plan, "examine", lambda study, todo: states)
    (row,) = plan.lacking(study, Counter(), [Path("studies/sd14.yaml"), Path("my own.yaml")])
    assert row.startswith("2 of 3 weights and packages")
    assert row.endswith(": resurgence weights check --overlay studies/sd14.yaml 'my own.yaml'")
    monkeypatch.setattr(plan, "examine", lambda study, todo: states[1:2])
    assert plan.lacking(study, Counter(), []) == []


def test_entries_of_models() -> None:
    from resurgence.analysis.score_folders import entry

    block = {"base": "b", "controls": ["none"]}
    base = {"base": "b", "task": "ship", "state": "base", "path": "results/scores/b/ship/scores"}
    assert entry(block, "ship") == base
    erased = entry(block, "ship/none/s0")
    assert (erased["state"], erased["path"]) == ("erased", "results/scores/b/ship/scores")
    tuned = entry(block, "ship/mace.to-sky/s1/lora.long/f2")
    assert pd.Series(tuned).to_dict() == {
        "base": "b", "task": "ship", "eraser": "mace", "variant": "to-sky", "erase_seed": 1, "finetune": "lora",
        "finetune_variant": "long", "finetune_seed": 2, "state": "finetuned",
        "path": "results/scores/b/ship/mace.to-sky/s1/lora.long/f2/scores",
    }  # fmt: skip


def test_sets_matched_in_size() -> None:
    from resurgence.stages.finetune_set import prompt_rows

    block = {"concepts": ["a", "b", "c"], "templates": ["the {}", "a {}"], "images_per_prompt": None, "size": 8}
    rows = prompt_rows(block, block["concepts"])
    assert len(rows) == 8 and rows["seed"].nunique() == 8
    assert sorted(rows["prompt"].value_counts()) == [1, 1, 1, 1, 2, 2]
    all_of_them = prompt_rows({**block, "images_per_prompt": 2, "size": None}, block["concepts"])
    assert len(all_of_them) == 12
    # a set of a given size is part of the larger one: the images are the same
    assert set(rows["seed"]) <= set(all_of_them["seed"])
