"""The graph of a study: the inputs of every job, by name.

The rules of Snakemake (workflow/rules) and jobs.py both take them from the records in rule_table.py, which name these
functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from resurgence.config.fields import read_yaml
from resurgence.config.finetune_sets import OtherBase
from resurgence.config.lists import LISTS
from resurgence.config.model_path import ModelPath
from resurgence.config.study import Cell, Erasure, Study
from resurgence.files import PEFT_CONFIG, PEFT_WEIGHTS, files_at, files_below
from resurgence.provenance.code_version import code_version
from resurgence.provenance.manifest import MANIFEST, RUN
from resurgence.workflow import experiment_settings, job_settings, report_settings

Inputs = dict[str, list[str]]
"""Name of an input -> its files."""
TABLES = tuple(
    f"results/tables/{name}"
    for name in (
        *("cells.csv", "means.csv", "resurgence.csv", "seeds.csv", "intervals.csv"),
        *("metrics.json", "resurgence.md"),
    )
)
# data that an eraser may read of a task, and its folder
DATA = {
    "domain": "moments",
    "images": "concept_images",
    "masks": "masks",
    "anchors": "anchor_images",
    "retained": "retained_images",
}
WEIGHTS = {".json", ".safetensors", ".txt"}  # endings of the files of a model in a folder; RUN of an export is none


def files_of(place: str | Path) -> list[str]:
    """The weights and settings in a local folder, or one file of weights, of a LoRA of peft with its configuration;
    none for a hub id: its revision fixes it."""
    place = Path(place)
    if place.is_file():
        beside = [place.with_name(PEFT_CONFIG)] if place.name == PEFT_WEIGHTS else []
        return sorted(path.as_posix() for path in (place, *beside) if path.is_file())
    return sorted(path.as_posix() for path in files_below(place) if path.suffix in WEIGHTS and path.name != RUN)


def named(inputs: Mapping[str, str | Iterable[str]]) -> list[str]:
    """The inputs of a job as NAME=FILE, for its command line."""
    files = {name: [value] if isinstance(value, str) else value for name, value in inputs.items()}
    return [f"{name}={path}" for name, paths in files.items() for path in paths]


def manifest(study: Study, item: str | Erasure | Cell | ModelPath | None, part: str) -> str:
    """The manifest of a part of a model or task."""
    return f"{study.folder(item, part)}/{MANIFEST}"


def base(study: Study) -> Inputs:
    """The base's weights."""
    return {"base": files_of(study.base.path)}


def task_base(study: Study, task: str) -> Inputs:
    """The base's weights, for what it samples for a task."""
    return base(study)


def anchor_images(study: Study, task: str) -> Inputs:
    """The base's weights, and the files of captions of a task's anchors."""
    captions = job_settings.anchor_images(study, task).get("captions", {})
    files = sorted({path for path in captions.values() if isinstance(path, str)})
    return base(study) | ({"captions": files} if files else {})


def data_of(study: Study, item: Erasure, kinds: frozenset[str]) -> Inputs:
    """The data that an eraser reads of its task, of some kinds, by the names of EraserData."""
    places = {"prior": (None, "moments"), **{kind: (item.task, part) for kind, part in DATA.items()}}
    return {kind: [manifest(study, *places[kind])] for kind in sorted(job_settings.reads(study, item) & kinds)}


def named_files(study: Study, item: Erasure) -> Inputs:
    """The files that an eraser's settings name: caption templates, words, a checkpoint."""
    settings = study.eraser_settings(item.task, item.eraser, item.variant)
    config = study.eraser_config(item.task, item.eraser, item.variant)
    keys = [key for key in (config.files if config else ()) if settings.get(key) and isinstance(settings[key], str)]
    return {key: [settings[key]] if settings[key] in LISTS.values() else files_of(settings[key]) for key in keys}


def loras(study: Study, item: Erasure) -> Inputs:
    """The training data of an eraser's LoRAs, and the erasures that it works after."""
    return before(study, item) | data_of(study, item, frozenset({"prior", *DATA})) | named_files(study, item)


def before(study: Study, item: Erasure) -> Inputs:
    """The base, and the steps to the erased model that an erasure works on, if it is not the base."""
    earlier = study.before(item)
    return base(study) | ({} if earlier is None else {"changes": changes(study, study.model(earlier))})


def erase(study: Study, item: Erasure) -> Inputs:
    """Data of an eraser, or its trained LoRAs and the corpora."""
    if not job_settings.has_loras(study, item.eraser):
        return loras(study, item)
    trained = {"loras": [manifest(study, job_settings.loras_of(study, item), "loras")]}
    corpora = data_of(study, item, frozenset({"prior", "domain"}))
    return before(study, item) | trained | corpora | named_files(study, item)


def changes(study: Study, model: ModelPath) -> list[str]:
    """The deltas and weights from the base to a model, in the order of application.

    An eraser that changes nothing has none.
    """
    steps = [(path, path.steps[-1]) for path in model.prefixes()]
    changing = [(path, step) for path, step in steps if step.kind == "finetune" or study.erasers[step.method].config]
    return [manifest(study, path, "weights" if step.kind == "finetune" else "delta") for path, step in changing]


def masks(study: Study, task: str) -> Inputs:
    """The concept images, and the base for the segmenter that reads its attention."""
    attention = base(study) if study.masks.segmenter == "cross-attention" else {}
    return attention | {"images": [manifest(study, task, "concept_images")]}


def finetune_set(study: Study, task: str, name: str) -> Inputs:
    """The base of the set, and the concepts of one that is a tercile."""
    made_by = study.finetune_sets[name].made_by
    if isinstance(made_by, OtherBase):
        return {"base": files_of(made_by.base)}
    is_drawn = study.finetune_sets[name].tercile is not None
    return base(study) | ({"terciles": [manifest(study, task, f"terciles/{name}")]} if is_drawn else {})


def erased_set(study: Study, item: Erasure) -> Inputs:
    """The base, and the delta of the erased model that samples the set."""
    return base(study) | {"changes": changes(study, study.model(item))}


def real_set(study: Study, task: str, name: str) -> Inputs:
    """The base, for its size and tokens, and every file of the pictures."""
    return base(study) | {"pictures": [path.as_posix() for path in files_at(study.pictures_of(name, task))]}


def terciles(study: Study, name: str) -> Inputs:
    """CLIP, and the file of concepts that a fine-tuning set is drawn from."""
    return {"clip": scorer_files(study, ["clip"]), "candidates": [study.tercile_of(name).candidates]}


def scorer_files(study: Study, names: Iterable[str]) -> list[str]:
    """The local weights of scorers, each file once, and their pictures."""
    blocks = [study.scorers[name] for name in names]
    paths = dict.fromkeys(block["path"] for block in blocks if "path" in block)
    weights = [file for path in paths for file in files_of(path)]
    pictures = [file.as_posix() for block in blocks if "pictures" in block for file in files_at(block["pictures"])]
    return weights + pictures


def finetune(study: Study, item: Cell) -> Inputs:
    """The base, the steps before, and the fine-tuning set."""
    name, owner = study.set_of(item.finetune, item.variant), study.set_owner(item)
    images = manifest(study, owner, f"{'finetune_sets' if isinstance(owner, str) else 'erased_sets'}/{name}")
    return base(study) | {"set": [images], "changes": changes(study, study.model(item.erasure))}


def sample(study: Study, model: ModelPath) -> Inputs:
    """The base, the prompts of the task, and the steps from the base to the model."""
    prompts = {"prompts": [manifest(study, model.task, "prompts")]}
    return base(study) | prompts | {"changes": changes(study, model)}


def score(study: Study, model: ModelPath) -> Inputs:
    """The images, the scorers, and the base's images of the same rows if a scorer compares with them."""
    scorers = scorer_files(study, study.scorers_of(study.task(model.task).kind))
    inputs = {"scorers": scorers, "images": [manifest(study, model, "images")]}
    reads_base = job_settings.reads_base(study, model.task)
    return inputs | ({"base_images": [manifest(study, model.task, "images")]} if reads_base else {})


def reference_features(study: Study) -> Inputs:
    """The real images, and the scorer whose features are compared."""
    distance = study.scorers["frechet"]
    return {"scorers": scorer_files(study, [distance["features"]]), "pictures": [distance["reference"]]}


def weight_movement(study: Study, item: Cell) -> Inputs:
    """The base, and the steps of a fine-tuned model."""
    return base(study) | {"changes": changes(study, study.model(item))}


def tables(study: Study) -> Inputs:
    """The scores of every model; those of the base for a control that changes nothing."""
    items = [*study.tasks.names, *study.cells(), *(report_settings.seen_as(study, item) for item in study.erasures())]
    scores = {"scores": list(dict.fromkeys(manifest(study, item, "scores") for item in items))}
    return scores | ({"reference": [manifest(study, None, "reference")]} if job_settings.has_reference(study) else {})


def figures(study: Study) -> Inputs:
    """The tables, and the artefacts with the training curves."""
    curves = dict.fromkeys(f"{folder}/{MANIFEST}" for folder in report_settings.weights(study).values())
    return {"tables": list(TABLES), "curves": list(curves)}


def grids(study: Study) -> Inputs:
    """The image sets and masks that the grids show."""
    shown = report_settings.grids(study)
    groups = [*(columns.values() for columns in shown["columns"].values()), *shown["masks"].values()]
    return {"images": list(dict.fromkeys(f"{folder}/{MANIFEST}" for folders in groups for folder in folders))}


def index(study: Study) -> Inputs:
    """The tables of the page, and images and scores of the models that it shows."""
    models = [ModelPath.parse(name) for name in report_settings.index(study)["models"]]
    parts = {part: [manifest(study, model, part) for model in models] for part in ("images", "scores")}
    return {"tables": [f"results/tables/{name}.csv" for name in ("cells", "means", "resurgence", "seeds")]} | parts


def experiment(study: Study, name: str) -> Inputs:
    """The artefacts that an experiment reads; CLIP for one that compares words."""
    if study.experiments[name].kind == "similarity":
        return {"clip": scorer_files(study, ["clip"])}
    return {"artefacts": [f"{folder}/{MANIFEST}" for folder in experiment_settings.experiment_reads(study, name)]}


def results(study: Study) -> Inputs:
    """The pages of all experiments."""
    files = [(name, file) for name in study.experiments for file in ("made.json", f"{name}.md")]
    return {"experiments": [f"results/experiments/{name}/{file}" for name, file in files]}


def cost(artefacts: list[str]) -> Inputs:
    """The tables, and every artefact with its run."""
    return {"tables": list(TABLES), "artefacts": artefacts}


def world_files(study: Study, part: str) -> list[str]:
    """The word lists behind a part of the miniature, and the weights that it starts from.

    The base is trained more on the tasks' concepts.
    """
    world = read_yaml(Path(study.world))
    tasks = sorted(path.as_posix() for path in Path(world["tasks"]).glob("*.yaml"))
    templates = [world["templates"]] if part in ("base", "clip", "starter") else []
    start = [world[part]["start"]["path"]] if "start" in world.get(part, {}) else []
    return [world["concepts"], *templates, *(tasks if part in ("base", "quality", "starter") else []), *start]


def has_world_part(study: Study, part: str) -> bool:
    """Whether the world of the study has settings for a part; every world has drawings."""
    return part == "drawings" or part in read_yaml(Path(study.world))


def world_settings(study: Study, part: str) -> str:
    """The settings of a part of the miniature, as text."""
    world = read_yaml(Path(study.world))
    shared = {"drawings": ("size",), "base": ("captions", "vocabulary"), "clip": ("captions", "vocabulary")}
    more = {key: world[key] for key in shared.get(part, ()) if key in world}
    return job_settings.text({"settings": world["packages"] if part == "drawings" else world[part], **more})


def world_code(part: str) -> str:
    """Version of the code behind a part of the miniature."""
    module = "text_to_image" if part == "base" else part
    return code_version(f"resurgence.miniature.{module}", "resurgence.miniature.build:emphasised")
