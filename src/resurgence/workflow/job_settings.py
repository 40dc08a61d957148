"""The settings of each job: everything that its result depends on, and nothing else.

They are one JSON text with sorted keys. Snakemake compares it with that of the last run, and the manifest of the result
holds it, so a setting that a job does not read must not be among them: changing it would run the job again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable
from typing import Any

from resurgence.config.finetune_sets import OtherBase
from resurgence.config.scorers import scorer_class
from resurgence.config.study import Cell, Erasure, Study
from resurgence.config.task import Task


def text(settings: dict[str, Any]) -> str:
    """One line of JSON with sorted keys."""
    return json.dumps(settings, sort_keys=True, ensure_ascii=False)


def base(study: Study) -> dict[str, Any]:
    """The base that a job loads."""
    return {"path": study.base.path, "revision": study.base.revision}


def part(task: Task, *keys: str) -> dict[str, Any]:
    """Some fields of a task."""
    return {key: getattr(task, key) for key in ("name", "kind", *keys)}


def prompts(study: Study, task: str) -> dict[str, Any]:
    """The prompts of a task."""
    fields = ["erase", "retain", "synonyms", "templates", "seeds"]
    if study.task(task).first_seed is not None:
        fields.append("first_seed")
    general = {"general": path} if (path := study.general_of(task)) else {}
    purpose = {"purpose": "tuning"} if study.tasks.tuning_for else {}
    return general | purpose | {"task": part(study.task(task), *fields)}


def prior_moments(study: Study) -> dict[str, Any]:
    """Second moment of the general captions."""
    precision = study.moments.encoder_precision
    return {"base": base(study), "corpus": "prior", "captions": study.moments.prior, "encoder_precision": precision}


def domain_moments(study: Study, task: str) -> dict[str, Any]:
    """Second moment of the retain concepts in the caption templates."""
    captions, concepts = study.templates_of(study.task(task).kind), study.task(task).retain
    corpus = {"corpus": "domain", "captions": captions, "concepts": concepts}
    return {"base": base(study), **corpus, "encoder_precision": study.moments.encoder_precision}


def images_of(study: Study, task: str, kind: str, concepts: Iterable[str], number: int) -> dict[str, Any]:
    """Images of concepts sampled from the base, a number of each."""
    images, shared = study.concept_images, study.sampling
    sampling = {"batch": shared.batch, "size": shared.size, "steps": images.steps, "guidance": images.guidance}
    settings = {"kind": kind, "concepts": tuple(concepts), "per_concept": number}
    template = images.template_of(study.task(task).kind)
    return {"base": base(study), **settings, "sampling": sampling, "template": template}


def concept_images(study: Study, task: str) -> dict[str, Any]:
    """Images of the erased concepts."""
    return images_of(study, task, "concept", study.task(task).erase, study.concept_images.per_concept)


def reads(study: Study, erasure: Erasure) -> frozenset[str]:
    """The data that an eraser reads besides base and task; none for the eraser `none`."""
    config = study.eraser_config(erasure.task, erasure.eraser, erasure.variant)
    return frozenset() if config is None else config.reads(study.task(erasure.task).kind)


def anchor_images(study: Study, task: str) -> dict[str, Any]:
    """Images of the concepts that the erased ones are mapped to, by any eraser that reads them."""
    readers = [e for e in study.erasures() if e.task == task and "anchors" in reads(study, e)]
    anchors = {concept for e in readers for concept in study.task(task, e.eraser, e.variant).mapping.values()}
    settings = images_of(study, task, "anchor", sorted(anchors), study.concept_images.per_anchor)
    own = study.concept_images.anchor_captions
    captions = {anchor: own[anchor] for anchor in settings["concepts"] if anchor in own}
    return settings | ({"captions": captions} if captions else {})


def retained_images(study: Study, task: str) -> dict[str, Any]:
    """Images of the retained concepts."""
    return images_of(study, task, "retained", study.task(task).retain, study.concept_images.per_retained)


def masks(study: Study, task: str) -> dict[str, Any]:
    """Masks of the concept in each of its images."""
    settings = dataclasses.asdict(study.masks)
    if study.masks.empty == "error":  # then none is replaced
        del settings["max_replaced"]
    return {"base": base(study), "concepts": study.task(task).erase, "masks": settings}


def has_loras(study: Study, eraser: str) -> bool:
    """Whether an eraser trains LoRAs in a separate step."""
    return bool(getattr(study.erasers[eraser].config, "trains_loras", False))


def loras(study: Study, erasure: Erasure) -> dict[str, Any]:
    """LoRAs of the erased concepts: the settings without those of the fusion."""
    method = study.erasers[erasure.eraser]
    settings = study.eraser_settings(erasure.task, erasure.eraser, erasure.variant)
    training = {key: value for key, value in settings.items() if key not in method.config.fusion_settings}
    keys = ("erase", "mapping", *(("retain",) if "retained" in reads(study, erasure) else ()))
    task = part(study.task(erasure.task, erasure.eraser, erasure.variant), *keys)
    return {"base": base(study), "method": method.name, "settings": training, "task": task, "seed": erasure.seed}


@functools.cache  # the rules call it for each job
def owners(study: Study) -> dict[Erasure, Erasure]:
    """Each erasure that trains LoRAs -> the first of the same eraser, task and seed whose LoRAs are the same."""
    first: dict[tuple[Any, ...], Erasure] = {}
    shared = {}
    for erasure in study.erasures():
        if has_loras(study, erasure.eraser):
            key = (*erasure[:2], erasure.seed, study.before(erasure), text(loras(study, erasure)))
            shared[erasure] = first.setdefault(key, erasure)
    return shared


def loras_of(study: Study, erasure: Erasure) -> Erasure:
    """The first erasure of the same eraser, task and seed whose LoRAs are the same; often itself."""
    if erasure not in owners(study):
        raise LookupError(f"{erasure} is not part of the study")
    return owners(study)[erasure]


def erase(study: Study, erasure: Erasure) -> dict[str, Any]:
    """The tensors of the base that an eraser changes."""
    return {
        "base": base(study),
        "method": study.erasers[erasure.eraser].name,
        "settings": study.eraser_settings(erasure.task, erasure.eraser, erasure.variant),
        "task": part(study.task(erasure.task, erasure.eraser, erasure.variant), "erase", "retain", "mapping"),
        "seed": erasure.seed,
        "delta_precision": study.base.delta_precision,
    }


def finetune_set(study: Study, task: str, name: str) -> dict[str, Any]:
    """Images of concepts that are not erased, sampled from the base or another one."""
    images = study.finetune_sets[name]
    other = images.made_by if isinstance(images.made_by, OtherBase) else None
    first_seed = {} if images.first_seed is None else {"first_seed": images.first_seed}
    return first_seed | {
        "base": {"path": other.base, "revision": other.revision} if other else base(study),
        "concepts": study.finetune_concepts(name, task),
        "tercile": images.tercile is not None,
        "templates": study.task(task).templates if images.templates == "task" else images.templates,
        "images_per_prompt": images.images_per_prompt,
        "size": images.size,
        "sampling": {key: value for key, value in sampling(study).items() if key != "shard"},
    }


def erased_set(study: Study, task: str, name: str) -> dict[str, Any]:
    """The same images, sampled from an erased model."""
    return finetune_set(study, task, name) | {"made_by": "erased"}


def real_set(study: Study, task: str, name: str) -> dict[str, Any]:
    """Real pictures of concepts that are not erased. `pixels`: side of the images; None: the base's."""
    return {
        "base": base(study),
        "made_by": "real",
        "images": study.pictures_of(name, task),
        "concepts": study.finetune_concepts(name, task),
        "size": study.finetune_sets[name].size,
        "pixels": study.sampling.size,
        "task": part(study.task(task), "erase", "synonyms"),
    }


def terciles(study: Study, task: str, name: str) -> dict[str, Any]:
    """The concepts of a fine-tuning set that are drawn by their similarity to the erased ones."""
    return {
        "tercile": dataclasses.asdict(study.tercile_of(name)),
        "task": part(study.task(task), "erase", "synonyms"),
        "clip": without_kinds(study, "clip"),
    }


def sampling(study: Study) -> dict[str, Any]:
    """Settings of the sampler; without long_prompts where these are errors, as before there was a choice."""
    settings = {**dataclasses.asdict(study.sampling), "precision": study.base.precision}
    if settings["long_prompts"] == "error":
        del settings["long_prompts"]
    return settings


def finetune(study: Study, cell: Cell) -> dict[str, Any]:
    """A fine-tuned model."""
    settings = study.finetune_settings(cell.finetune, cell.variant)
    precision = study.base.delta_precision
    return {"base": base(study), "settings": settings, "seed": cell.seed, "delta_precision": precision}


def sample(study: Study) -> dict[str, Any]:
    """Images of a prompt set, sampled from any model."""
    return {"base": base(study), "sampling": sampling(study)}


def score(study: Study, task: str) -> dict[str, Any]:
    """Scores of images: the same settings for every model of a task."""
    scorers = study.scorers_of(study.task(task).kind)
    if "frechet" in scorers:  # other real images change no score
        scorers["frechet"] = {key: value for key, value in scorers["frechet"].items() if key != "reference"}
    return {"scorers": scorers, "task": part(study.task(task), "erase", "retain", "labels")}


def without_kinds(study: Study, scorer: str) -> dict[str, Any]:
    """The settings of a scorer that bear on a score: the kinds only say which tasks it scores."""
    return {key: value for key, value in study.scorers[scorer].items() if key != "kinds"}


def reads_base(study: Study, task: str) -> bool:
    """Whether some scorer of a task compares an image with the base's of the same row."""
    return any(scorer_class(name).reads_base for name in study.scorers_of(study.task(task).kind))


def reference(study: Study) -> dict[str, Any]:
    """Features of real images."""
    distance = study.scorers["frechet"]
    name = distance["features"]
    return {"scorer": name, "settings": without_kinds(study, name), "pictures": distance["reference"]}


def has_reference(study: Study) -> bool:
    """Whether generated images are compared with real ones."""
    return bool(study.scorers.get("frechet", {}).get("reference"))


def geometry(study: Study) -> dict[str, Any]:
    """Distances between the weights of base, erased and fine-tuned model."""
    return {"base": base(study)}
