"""The rules of the study, one record each: stage, output, jobs, settings, inputs, code, resources, time.

A rule is a record here and a file in resurgence/stages; rule.py says what a record holds, and tests/test_rules.py
compares the records with what else names rules. workflow/rules/records.smk declares each record to Snakemake. The order
is that of the graph: each comes after the rules whose results it reads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from resurgence.config.consistency import folder_name
from resurgence.config.model_path import ModelPath
from resurgence.config.study import STAGE_OF, Study
from resurgence.provenance.manifest import MANIFEST
from resurgence.workflow import (
    audit_settings,
    code_entries,
    experiment_settings,
    graph,
    job_items,
    job_settings,
    report_settings,
)
from resurgence.workflow.gpu_hours import Coster
from resurgence.workflow.job_items import cell, erasure
from resurgence.workflow.rule import Rule, Wildcards

BASE, TASK = "{base}", "{base}/{task}"
ERASED = "{base}/{task}/{eraser}/s{erase_seed}"
TUNED = ERASED + "/{finetune}/f{finetune_seed}"
MODEL = "{base}/{model}"
CELL = "{wildcards.task} / {wildcards.eraser} with {wildcards.finetune}, seed {wildcards.finetune_seed}"


def single(_: Study) -> Iterable[Mapping[str, str]]:
    """The wildcards of the single job of a rule without wildcards but the base."""
    return [{}]


def artefact(owner: str, part: str) -> str:
    """The manifest of a part of a base, task or model, each written with wildcards."""
    return f"results/{STAGE_OF[part.partition('/')[0]]}/{owner}/{part}/{MANIFEST}"


def of_task(settings: Callable[[Study, str], dict[str, Any]]) -> Callable[[Study, Wildcards], dict[str, Any]]:
    """The settings of a task's job, from a function of study and task."""
    return lambda study, wildcards: settings(study, wildcards.task)


ON_GPU: dict[str, Any] = {"gpu": True, "loads": ("base",)}
SAMPLES: dict[str, Any] = {"speed": Coster.sampling_speed, "archived": False}
DATA, ERASE, TUNE = "data", "erase", "fine-tune"
SAMPLE, SCORE, SHOW = "sample", "score", "tables, figures, report"

_RULES = (
    Rule(
        "prompts", "prompts", artefact(TASK, "prompts"), job_items.tasks,
        of_task(job_settings.prompts), DATA, 2,
        inputs=lambda study, w: {"general": [path]} if (path := study.general_of(w.task)) else {},
        message="Prompts of {wildcards.task}", local=True, reads_names=True, archived=False,
    ),
    Rule(
        "prior_moments", "moments", artefact(BASE, "moments"), job_items.prior,
        lambda study, w: job_settings.prior_moments(study), DATA, 8,
        inputs=lambda study, w: graph.base(study) | {"captions": [study.moments.prior]}, minutes=60, **ON_GPU,
        message="Second moment of the general captions under {wildcards.base}", cost=Coster.moments,
        archived=False,
    ),
    Rule(
        "domain_moments", "moments", artefact(TASK, "moments"),
        lambda study: job_items.tasks_read(study, "domain"), of_task(job_settings.domain_moments), DATA, 8,
        inputs=lambda study, w: graph.base(study) | {"captions": [study.templates_of(study.task(w.task).kind)]},
        minutes=10, **ON_GPU,
        message="Second moment of the concepts that {wildcards.task} retains", cost=Coster.moments,
        group="moments", archived=False,
    ),
    *(
        Rule(
            name, "concept_images", artefact(TASK, name),
            functools.partial(job_items.tasks_read, kind=kind), of_task(settings), DATA, seconds,
            inputs=of_task(inputs), minutes=120, **ON_GPU,
            message=f"Images of the concepts that {{wildcards.task}} {role}, made by {{wildcards.base}}",
            cost=Coster.concept_images, speed=Coster.base_speed, group=group, archived=False,
        )
        for name, settings, kind, seconds, role, group, inputs in (
            ("concept_images", job_settings.concept_images, "images", 12, "erases", "concepts", graph.task_base),
            ("anchor_images", job_settings.anchor_images, "anchors", 12, "maps to", "", graph.anchor_images),
            ("retained_images", job_settings.retained_images, "retained", 20, "retains", "", graph.task_base),
        )
    ),
    Rule(
        "masks", "masks", artefact(TASK, "masks"),
        lambda study: job_items.tasks_read(study, "masks"), of_task(job_settings.masks), DATA, 6,
        inputs=lambda study, w: graph.masks(study, w.task), code=code_entries.segmenter, minutes=120, gpu=True,
        message="Masks of the concepts that {wildcards.task} erases", loads=("attention", "segmenter"),
        cost=Coster.masks, group="concepts", archived=False,
    ),
    Rule(
        "terciles", "terciles", artefact(TASK, "terciles/{set}"),
        job_items.drawn_sets, lambda study, w: job_settings.terciles(study, w.task, w.set), DATA, 8,
        inputs=lambda study, w: graph.terciles(study, w.set), code=code_entries.clip,
        message="Concepts of the fine-tuning set {wildcards.set} of {wildcards.task}, by similarity",
        local=True, loads=("clip",), reads_names=True, archived=False,
    ),
    *(
        Rule(
            name, "finetune_set", artefact(TASK, "finetune_sets/{set}"),
            functools.partial(job_items.sets, makers=makers),
            lambda study, w: job_settings.finetune_set(study, w.task, w.set), DATA, 20,
            inputs=lambda study, w: graph.finetune_set(study, w.task, w.set), minutes=120, gpu=True,
            constraints=functools.partial(job_items.set_pattern, makers=makers), loads=(loads,),
            message=f"Fine-tuning set {{wildcards.set}} of {{wildcards.task}}, made by {maker}",
            reads_names=True, cost=Coster.finetune_set, **SAMPLES,
        )
        for name, makers, loads, maker in (
            ("finetune_set", ("base", "erased"), "base", "{wildcards.base}"),
            ("other_set", ("other",), "other base", "another base"),
        )
    ),
    Rule(
        "real_set", "real_set", artefact(TASK, "finetune_sets/{set}"),
        functools.partial(job_items.sets, makers=("real",)),
        lambda study, w: job_settings.real_set(study, w.task, w.set), DATA, 6,
        inputs=lambda study, w: graph.real_set(study, w.task, w.set), loads=("base",),
        constraints=functools.partial(job_items.set_pattern, makers=("real",)),
        message="Fine-tuning set {wildcards.set} of {wildcards.task}, real pictures", reads_names=True, archived=False,
    ),
    Rule(
        "loras", "loras", artefact(ERASED, "loras"), job_items.trained_loras,
        lambda study, w: job_settings.loras(study, erasure(w)), ERASE, 25,
        inputs=lambda study, w: graph.loras(study, erasure(w)), code=code_entries.loras, minutes=60, **ON_GPU,
        message="LoRAs of {wildcards.task} for {wildcards.eraser}, seed {wildcards.erase_seed}",
        cost=Coster.loras, group="closed_forms",
    ),
    *(
        Rule(
            name, "erase", artefact(ERASED, "delta"),
            functools.partial(job_items.erasures, solved=solved),
            lambda study, w: job_settings.erase(study, erasure(w)), ERASE, seconds,
            inputs=lambda study, w: graph.erase(study, erasure(w)), code=code_entries.eraser, **ON_GPU,
            minutes=minutes, constraints=functools.partial(job_items.eraser_pattern, solved=solved),
            message="Erase {wildcards.task} with {wildcards.eraser}, seed {wildcards.erase_seed}",
            cost=cost, group=group,
        )
        for name, solved, seconds, minutes, cost, group in (
            ("closed_form", True, 8, 20, Coster.closed_form, "closed_forms"),
            ("erase", False, 60, 480, Coster.erase, ""),
        )
    ),
    Rule(
        "erased_set", "finetune_set", artefact(ERASED, "erased_sets/{set}"),
        job_items.erased_sets, lambda study, w: job_settings.erased_set(study, w.task, w.set), TUNE, 20,
        inputs=lambda study, w: graph.erased_set(study, erasure(w)), minutes=120, **ON_GPU,
        message="Fine-tuning set {wildcards.set} of {wildcards.task}, made by {wildcards.eraser}, "
        "seed {wildcards.erase_seed}", reads_names=True, cost=Coster.finetune_set, **SAMPLES,
    ),
    Rule(
        "finetune", "finetune", artefact(TUNED, "weights"), job_items.cells,
        lambda study, w: job_settings.finetune(study, cell(w)), TUNE, 60,
        inputs=lambda study, w: graph.finetune(study, cell(w)), minutes=480, **ON_GPU,
        message=f"Fine-tune {CELL}", cost=Coster.finetune, speed=Coster.training_speed,
    ),
    Rule(
        "sample", "sample", artefact(MODEL, "images"), job_items.models,
        lambda study, w: job_settings.sample(study), SAMPLE, 40,
        inputs=lambda study, w: graph.sample(study, ModelPath.parse(w.model)), minutes=240, **ON_GPU,
        message="Sample {wildcards.model}", cost=Coster.sample, **SAMPLES,
    ),
    Rule(
        "reference_features", "reference_features", artefact(BASE, "reference"),
        lambda study: [{}] if job_settings.has_reference(study) else [],
        lambda study, w: job_settings.reference(study), SCORE, 60,
        inputs=lambda study, w: graph.reference_features(study), code=code_entries.reference, minutes=240, gpu=True,
        message="Features of real images", loads=("features",), archived=False,
    ),
    Rule(
        "score", "score", artefact(MODEL, "scores"), job_items.models,
        lambda study, w: job_settings.score(study, ModelPath.parse(w.model).task), SCORE, 12,
        inputs=lambda study, w: graph.score(study, ModelPath.parse(w.model)), code=code_entries.scorer, gpu=True,
        minutes=120, message="Score the images of {wildcards.model}", loads=("clip", "scorers"), cost=Coster.score,
    ),
    Rule(
        "geometry", "geometry", artefact(TUNED, "geometry"), job_items.moved,
        lambda study, w: job_settings.geometry(study), SCORE, 8,
        inputs=lambda study, w: graph.weight_movement(study, cell(w)), minutes=10,
        message=f"Weights of {CELL}", group="geometry", loads=("base",),
    ),
    Rule(
        "audit", "audit", "results/audit/manifest.json", lambda study: [{}] if study.audit else [],
        lambda study, w: audit_settings.settings(study), SHOW, 10,
        inputs=lambda study, w: audit_settings.inputs(study), code=code_entries.table, templates="figures/page",
        message="Verdict and card of the audited model", local=True, dvc="tables",
    ),
    Rule(
        "tables", "tables", "results/tables/made.json", single, lambda study, w: report_settings.tables(study), SHOW, 5,
        inputs=lambda study, w: graph.tables(study), code=code_entries.table, files=lambda study: graph.TABLES,
        message="Tables of the study", local=True, reported=True,
    ),
    Rule(
        "figures", "figures", "results/figures/made.json", single, lambda study, w: report_settings.figures(study),
        SHOW, 6, inputs=lambda study, w: graph.figures(study), code=code_entries.metric, verified=False,
        message="Figures of the study", local=True, reported=True, dvc="tables",
    ),
    Rule(
        "grids", "grids", "results/grids/made.json", single, lambda study, w: report_settings.grids(study), SHOW, 8,
        inputs=lambda study, w: graph.grids(study), message="Grids of images and masks", local=True, reported=True,
        dvc="tables", archived=False,
    ),
    Rule(
        "index", "index", "results/cost/index.json", single, lambda study, w: report_settings.index(study), SHOW, 15,
        inputs=lambda study, w: graph.index(study), code=code_entries.table, templates="figures/page",
        files=lambda study: ["results/index.html"], message="Page of the study", local=True, dvc="tables",
    ),
    Rule(
        "experiment", "experiment", "results/experiments/{experiment}/made.json",
        lambda study: ({"experiment": name} for name in study.experiments),
        lambda study, w: experiment_settings.experiment(study, w.experiment), SHOW, 12,
        inputs=lambda study, w: graph.experiment(study, w.experiment),
        code=code_entries.experiment, files=lambda study: ["results/experiments/{experiment}/{experiment}.md"],
        message="Experiment {wildcards.experiment}", local=True, loads=("similarity",),
    ),
    Rule(
        "results", "results", "results/experiments/made.json", lambda study: [{}] if study.experiments else [],
        lambda study, w: report_settings.results(study), SHOW, 1, inputs=lambda study, w: graph.results(study),
        files=lambda study: ["results/experiments/results.md"], message="Results of all experiments", local=True,
        reported=True,
    ),
    Rule(
        "cost", "cost", "results/cost/made.json", single, lambda study, w: report_settings.cost(study), SHOW, 4,
        inputs=lambda study, w: graph.cost(every_manifest(study)), code=code_entries.metric, verified=False,
        files=report_settings.cost_files, message="Cost of the study", local=True, reported=True, dvc="tables",
    ),
    Rule(
        "report", "report", "results/cost/report.json", single, lambda study, w: report_settings.report(study), SHOW,
        10, inputs=lambda study, w: {"shown": reported(study)}, verified=False,
        files=lambda study: ["results/report.html"], message="Report of the study", local=True, dvc="tables",
    ),
)  # fmt: skip
RULES = {rule.name: rule for rule in _RULES}


def outputs(study: Study, rule: Rule) -> list[str]:
    """The declared output of every job of a rule."""
    return [rule.output.format(base=study.base.name, **item) for item in rule.items(study)]


def every_manifest(study: Study) -> list[str]:
    """The manifests of all artefacts of the study."""
    return [path for rule in RULES.values() if rule.is_artefact for path in outputs(study, rule)]


def reported(study: Study) -> list[str]:
    """The outputs that the report of Snakemake shows, in the order of their folders in it."""
    return [path for rule in RULES.values() if rule.reported for path in outputs(study, rule)]


def folders_beside(owner: str) -> list[str]:
    """The folders of rules in the folder of a base, task or erased model (a pattern), beside those of its models."""
    prefixes = {f"{owner}/", f"{owner if owner == BASE else MODEL}/"}
    parts = {
        r.place.removeprefix(p).partition("/")[0] for r in RULES.values() for p in prefixes if r.place.startswith(p)
    }
    return sorted(part for part in parts if not part.startswith("{"))


def check_folders(study: Study) -> None:
    """Raise ConfigError for a task, eraser or fine-tune with the name of a folder that a rule makes beside its own."""
    named = (
        ("tasks.names", study.tasks.names, BASE),
        ("erasers", study.erasers, TASK),
        ("finetunes", study.finetunes, ERASED),
    )
    for key, names, owner in named:
        for name in names:
            folder_name(key, name, folders_beside(owner))
