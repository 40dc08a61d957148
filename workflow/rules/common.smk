"""The checked study, and the functions that the rules take their inputs and settings from. No rules here."""

import functools
import os
import shlex
import sys
from pathlib import Path

from snakemake.utils import validate

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT / "src"))

from resurgence.config.fields import read_yaml
from resurgence.config.load import make_study
from resurgence.config.study import Cell, Erasure, printed, split
from resurgence.data import coco
from resurgence.provenance.code_version import sources as run_files
from resurgence.workflow import job_settings as blocks
from resurgence.workflow import report_settings as presentation
from resurgence.workflow import resources as limits
from resurgence.workflow import resume as recovery
from resurgence.workflow.weights_needed import check_present

STUDY = make_study(config)
validate(config, str(ROOT / "workflow/schemas/params.schema.yaml"), set_default=False)

# on a cluster: account, partitions and the way to ask for a GPU (profiles/slurm names the file)
SITE = limits.site()
# without a GPU the jobs run side by side, one core each
GPU = int(limits.uses_gpu(STUDY.base.device, SITE))
THREADS = 4 if GPU else 1
ON_GPU = limits.gpu_request(GPU, SITE)
LIMITS = read_yaml(ROOT / "workflow/limits.yaml")
PYTHONPATH = ":".join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))


def job_prefix():
    """What runs in the shell of a job before its command, read when all rules are known.

    Jobs run the package of this tree with the Python that runs Snakemake; the device is no parameter, so another one
    does not run everything again.
    """
    stages = {rule.name: limits.stage(rule.shellcmd) for rule in workflow.rules if rule.shellcmd}
    on_gpu = {stages[rule.name] for rule in workflow.rules if "gpu" in rule.resources} if GPU else {}
    checked = {stage for name, stage in stages.items() if name not in ("cost", "figures")}  # these read curves, no data
    return (
        f"set -euo pipefail; export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
        f" PYTHONPATH={shlex.quote(PYTHONPATH)} RESURGENCE_DEVICE={'cuda' if GPU else 'cpu'}"
        f" RESURGENCE_GPU_STAGES={shlex.quote('|'.join(sorted(on_gpu)))}"
        f" RESURGENCE_CHECKED={shlex.quote('|'.join(sorted(checked)))};"
        f" source {shlex.quote(str(ROOT / 'workflow/scripts/job.sh'))}; "
    )


def memory(wildcards, attempt):
    """Main memory of a job that loads the base, in MB."""
    return limits.memory(WEIGHTS, GPU, attempt)


def world_memory(wildcards, attempt):
    """Main memory in MB of a training of the world, which holds the drawings and their latents: above a GB as it begins."""
    return 8000 * 2 ** (attempt - 1)


def minutes(rule):
    """Time limit of a rule."""

    def of_attempt(wildcards, attempt):
        return LIMITS[rule] * attempt

    return of_attempt


def inside(files):
    """Paths as Snakemake is to show them: from this folder where they lie below it."""
    return [file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file.as_posix() for file in files]


def sources(stage, *chosen):
    """The modules that a stage runs, and those that a setting chooses for it; the others of their kind are left out."""
    without = ("resurgence.data.segmenters.", "resurgence.scorers.") if stage in ("masks", "score", "reference_features") else ()
    stage_files = run_files(f"resurgence.stages.{stage}", without=without)
    return sorted({*inside(stage_files), *inside(run_files(*chosen) if chosen else ())})


def world_sources(part):
    """The modules that make a part of the world; "base" is made by text_to_image."""
    names = ("autoencoder", "clip", "drawings", "quality", "recogniser", "text_to_image")
    build = run_files("resurgence.miniature.build", without=tuple(f"resurgence.miniature.{name}" for name in names))
    own = run_files(f"resurgence.miniature.{'text_to_image' if part == 'base' else part}")
    return sorted({*inside(build), *inside(own)})


def task(wildcards):
    return wildcards.task


def erasure(wildcards):
    return Erasure(wildcards.task, *split(wildcards.eraser), int(wildcards.erase_seed))


def erasers_named(solved):
    """The pattern of the erasers whose last step is solved, or is not; one that nothing matches when there is none."""
    modules = {eraser: method.module for eraser, method in STUDY.erasers.items() if method.module}
    names = "|".join(eraser for eraser, module in modules.items() if blocks.is_solved(module) == solved)
    return rf"({names})(\.[a-z0-9][a-z0-9_-]*)?" if names else r"\.^"


def cell(wildcards):
    return Cell(erasure(wildcards), *split(wildcards.finetune), int(wildcards.finetune_seed))


def domain_templates(wildcards):
    """The caption templates of a task's domain corpus."""
    return STUDY.templates_of(STUDY.task(wildcards.task).kind)


def set_name(wildcards):
    return wildcards.set


def experiment_name(wildcards):
    return wildcards.experiment


def model_task(wildcards):
    """The task of any model: the first folder of its path."""
    return wildcards.model.split("/")[0]


def block(make, *take):
    """A rule's settings as one sorted text: what `make` returns for the study and what is taken from the wildcards."""

    def of_wildcards(wildcards):
        return blocks.text(make(STUDY, *(take_one(wildcards) for take_one in take)))

    return of_wildcards


def files_of(place):
    """The weights and settings in a local folder, or one file of weights; none for a hub id, which its revision fixes."""
    suffixes = {".json", ".safetensors", ".txt"}
    if Path(place).is_file():
        return [Path(place).as_posix()]
    return sorted(path.as_posix() for path in Path(place).rglob("*") if path.suffix in suffixes)


BASE = files_of(STUDY.base.path)
WEIGHTS = sum(Path(file).stat().st_size for file in BASE) or None
SCORER_WEIGHTS = [file for cfg in STUDY.scorers.values() if "path" in cfg for file in files_of(cfg["path"])]
CLIP_WEIGHTS = files_of(STUDY.scorers["clip"]["path"]) if "path" in STUDY.scorers.get("clip", {}) else []
SCORERS = [f"resurgence.scorers.{name}" for name, cfg in STUDY.scorers.items() if "features" not in cfg]
MODEL = r"[a-z0-9][a-z0-9_-]*(/[a-z0-9][a-z0-9_.-]*/s\d+(/[a-z0-9][a-z0-9_.-]*/f\d+)?)?"


def segmenter():
    """The module of the segmenter that the study uses."""
    return f"resurgence.data.segmenters.{STUDY.masks.segmenter.replace('-', '_')}"


def mask_base():
    """The base, for the segmenter that reads its attention."""
    return BASE if STUDY.masks.segmenter == "cross-attention" else []


def eraser_sources(wildcards):
    """The stage's modules and those of the eraser."""
    return sources("erase", STUDY.erasers[split(wildcards.eraser)[0]].module)


def named_files(item):
    """The files that an eraser's settings name: caption templates, words."""
    settings = STUDY.eraser_settings(item.task, item.eraser, item.variant)
    return [settings[key] for key in ("captions", "words") if settings.get(key) and isinstance(settings[key], str)]


# what an eraser may need of a task, and the folder that holds it
DATA = {
    "domain": "moments",
    "images": "concept_images",
    "masks": "masks",
    "anchors": "anchor_images",
    "retained": "retained_images",
}


def data_of(wildcards, wanted):
    """Manifests of what an eraser needs, of the wanted kinds."""
    found = blocks.reads(STUDY, erasure(wildcards)) & wanted
    folders = {kind: STUDY.folder(wildcards.task, part) for kind, part in DATA.items()}
    folders["prior"] = STUDY.folder(None, "moments")
    return [f"{folders[kind]}/manifest.json" for kind in sorted(found)]


def loras_data(wildcards):
    """What LoRAs are trained on."""
    return data_of(wildcards, {"prior", *DATA}) + named_files(erasure(wildcards))


def eraser_inputs(wildcards):
    """What an eraser works on: its data, or its trained LoRAs and the corpora."""
    item = erasure(wildcards)
    if not blocks.has_loras(STUDY, item.eraser):
        return loras_data(wildcards)
    trained = f"{STUDY.folder(blocks.loras_of(STUDY, item), 'loras')}/manifest.json"
    return [trained, *data_of(wildcards, {"prior", "domain"}), *named_files(item)]


def erased(item):
    """The erased delta of a model; none for the eraser that changes nothing."""
    return [f"{STUDY.folder(item, 'delta')}/manifest.json"] if STUDY.erasers[item.eraser].module else []


def tercile_candidates(wildcards):
    """The file of concepts that a fine-tuning set is drawn from."""
    return STUDY.finetune_sets[wildcards.set].tercile["candidates"]


def drawn_concepts(wildcards):
    """The concepts of a fine-tuning set that is a tercile."""
    if STUDY.finetune_sets[wildcards.set].tercile is None:
        return []
    return f"{STUDY.folder(wildcards.task, f'terciles/{wildcards.set}')}/manifest.json"


def finetune_inputs(wildcards):
    """The fine-tuning set and the erased delta."""
    chosen = STUDY.folder(wildcards.task, f"finetune_sets/{STUDY.set_of(*split(wildcards.finetune))}")
    return [f"{chosen}/manifest.json", *erased(erasure(wildcards))]


def model_weights(wildcards):
    """The prompt set of a model's task, and the weights that make the model from the base."""
    parts = wildcards.model.split("/")
    found = [f"{STUDY.folder(parts[0], 'prompts')}/manifest.json"]
    if len(parts) > 1:
        found += erased(Erasure(parts[0], *split(parts[1]), int(parts[2][1:])))
    if len(parts) > 3:
        found.append(f"{STUDY.folder(wildcards.model, 'weights')}/manifest.json")
    return found


WORLD = read_yaml(STUDY.world)


def world_files(part):
    """The word lists that a part of the world is made from; the base is also trained more on the tasks' concepts."""
    tasks = sorted(path.as_posix() for path in Path(WORLD["tasks"]).glob("*.yaml"))
    templates = [WORLD["templates"]] if part in ("base", "clip") else []
    return [WORLD["concepts"], *templates, *(tasks if part in ("base", "quality") else [])]


def world_block(part):
    """The settings of a part of the world."""
    return blocks.text({"settings": WORLD["packages"] if part == "drawings" else WORLD[part]})


def general_prompts(wildcards):
    """The file of general prompts of a task, if it has one."""
    file = STUDY.general_of(wildcards.task)
    return [file] if file else []


def reference_scorer():
    """The module whose features of real images are compared with."""
    return [f"resurgence.scorers.{STUDY.scorers['frechet']['features']}"] if blocks.has_reference(STUDY) else []


def reference_pictures(wildcards):
    """The folder of real images."""
    return STUDY.scorers["frechet"]["reference"]


def reference_manifest():
    """The features of real images, where the study has any."""
    return [f"{STUDY.folder(None, 'reference')}/manifest.json"] if blocks.has_reference(STUDY) else []


def score_manifests():
    """The scores of every model of the study; a control that changes nothing has those of the base."""
    items = [*STUDY.tasks.names, *STUDY.cells(), *(presentation.seen_as(STUDY, item) for item in STUDY.erasures())]
    return [f"{folder}/manifest.json" for folder in dict.fromkeys(STUDY.folder(item, "scores") for item in items)]


def whole_config():
    """The configuration as one text, for the Snakemake that makes the report; the device makes no difference to it."""
    place = {key: value for key, value in config["base"].items() if key != "device"}
    return blocks.text({**config, "base": place})


@functools.cache
def every_manifest():
    """All artefacts of the study."""
    found = list(shared_artefacts())
    for item in STUDY.erasures():
        if STUDY.erasers[item.eraser].module:
            found += [STUDY.folder(item, part) for part in ("delta", "images", "scores")]
        if blocks.has_loras(STUDY, item.eraser):
            found.append(STUDY.folder(blocks.loras_of(STUDY, item), "loras"))
    for item in STUDY.cells():
        found += [STUDY.folder(item, part) for part in ("weights", "images", "scores")]
    return [f"{folder}/manifest.json" for folder in dict.fromkeys(found)]


def shared_artefacts():
    """Folders of what the models of a task share, where some model of the study needs it."""
    for name in STUDY.tasks.names:
        items = [item for item in STUDY.erasures() if item.task == name]
        wanted = {kind for item in items for kind in blocks.reads(STUDY, item)}
        sets = {STUDY.set_of(item.finetune, item.variant) for item in STUDY.cells() if item.erasure.task == name}
        drawn = [f"terciles/{one}" for one in sorted(sets) if STUDY.finetune_sets[one].tercile is not None]
        parts = ["prompts", "images", "scores", *drawn, *(part for kind, part in DATA.items() if kind in wanted)]
        yield from (STUDY.folder(name, part) for part in (*parts, *(f"finetune_sets/{one}" for one in sorted(sets))))
        if "prior" in wanted:
            yield STUDY.folder(None, "moments")
    if blocks.has_reference(STUDY):
        yield STUDY.folder(None, "reference")


def of_stage(stage):
    """The artefacts of one stage: what DVC tracks as one folder."""
    return [manifest for manifest in every_manifest() if manifest.startswith(f"results/{stage}/")]


def drawn_manifests():
    """The artefacts whose training curves are drawn."""
    return [f"{folder}/manifest.json" for folder in dict.fromkeys(presentation.weights(STUDY).values())]


def shown_manifests():
    """The image sets and masks that the grids show."""
    shown = presentation.grids(STUDY)
    found = [folder for columns in shown["columns"].values() for folder in columns.values()]
    found += [folder for folders in shown["masks"].values() for folder in folders]
    return [f"{folder}/manifest.json" for folder in dict.fromkeys(found)]


def updates(wildcards):
    """The weights of an erased and of its fine-tuned model."""
    item = cell(wildcards)
    return [*erased(item.erasure), f"{STUDY.folder(item, 'weights')}/manifest.json"]


def experiment_inputs(wildcards):
    """The artefacts that an experiment reads."""
    return [f"{folder}/manifest.json" for folder in presentation.experiment_reads(STUDY, wildcards.experiment)]


def figure(path, category, caption, **labels):
    """A picture of the report. Two labels must be a full table: the report breaks on a combination that is missing."""
    return report(path, category=category, caption=f"../report/{caption}.rst", labels=labels)


FIGURES = [
    figure(f"results/figures/{stem}_{metric}.png", category, caption, content=f"{title}, {metric.replace('_', ' ')}")
    for stem, category, caption, title in (
        ("before_after", "Overview", "before_after", "before and after"),
        ("compare", "Overview", "compare", "all erasers"),
        ("resurgence", "Curves", "resurgence_steps", "resurgence over steps"),
        ("steps", "Curves", "steps", "metric over steps"),
    )
    for metric in STUDY.figures.metrics
]
FIGURES += [
    figure(f"results/figures/training_{name}.png", "Training", "training", task=name)
    for name in STUDY.tasks.names
    if any(title.startswith(f"{name}: ") for title in presentation.weights(STUDY))
]
FIGURES += [
    figure(f"results/figures/sensitive_{name}.png", "Sensitive concepts", "sensitive", model=name)
    for name in presentation.searched(STUDY)
]
COMPARED = [
    figure(
        f"results/cost/compare_{metric}.png",
        "Cost",
        "price",
        content=f"all erasers: resurgence, seconds, size, {metric.replace('_', ' ')}",
    )
    for metric in STUDY.figures.metrics
]
GRIDS = [
    figure(f"results/grids/{name}/{role}.png", "Samples", "samples", model=name, concepts=told)
    for name in presentation.grids(STUDY)["columns"]
    for role, told in (("erase", "erased"), ("retain", "retained"))
]
GRIDS += [
    figure(f"results/grids/{name}/masks.png", "Masks", "masks", task=name)
    for name in presentation.grids(STUDY)["masks"]
]
