"""The study of an audit: its tasks, models and probes, as the YAML files that `resurgence audit` writes."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

from resurgence.config.audit import Level, ShippedControl
from resurgence.config.audit_bases import AuditBase
from resurgence.config.counting import counted
from resurgence.config.task import Task

PAIRS: dict[Level, int] = {"quick": 200, "standard": 200, "full": 300}
"""Pairs of prompt and seed of the erased concepts; none of them shown is a PASS of as many probes as the level has."""
RETAINED_PAIRS, UNTAUGHT_PAIRS = 180, 40
"""Pairs of the retained concepts (they show a margin of five points where nothing was lost), and of the word."""
SIZE = 96
"""Images of a fine-tuning set that a model makes."""
RELEASED, LEAKING = "released", "leaking"
SEEDS: dict[Level, int] = {"quick": 1, "standard": 3, "full": 3}
"""Training seeds of every update."""
WORD = "glorp"
"""A word that no model was taught."""
MAKERS = {"real": "real pictures", "base": "pictures of the original model", "erased": "the model's own pictures"}


@dataclass(frozen=True)
class Request:
    """What is audited, checked and with the paths of the audit's folder."""

    checkpoint: str  # as named on the command line, for the card
    base: AuditBase
    task: Task  # erased, retained and fine-tuning concepts, templates; synonyms of the erased concepts
    level: Level
    model: str  # the audited model, in the folder, or its hub id
    original: str | None  # the model before erasing, likewise
    original_name: str | None  # as the card has it, with its commit
    revision: str | None  # commit of the audited model, of a hub id
    sha256: str | None
    pictures: dict[str, tuple[str, tuple[str, ...]]]  # domain, outside -> real pictures, and the concepts they name
    outside: tuple[str, ...]  # concepts of another domain, for pictures that a model makes
    loras: tuple[str, ...]
    implicit: dict[str, tuple[str, ...]]  # erased concept -> captions that do not name it
    criteria: dict[str, Any]
    scorers: dict[str, dict[str, Any]]
    metric: str
    device: str
    sensitive: bool
    command: str
    pairs: int
    training_seeds: int
    retained_pairs: int = RETAINED_PAIRS
    original_revision: str | None = None
    revisions: dict[str, str] = field(default_factory=dict)  # hub id of a model -> its commit
    lora_names: tuple[str, ...] = ()  # as the card has them
    retained_metric: str | None = None  # of the retained concepts, where another one
    no_detector: str = ""  # why the detector of the kind does not judge
    unknown: tuple[str, ...] = ()  # erased concepts that are on no list
    shipped: tuple[ShippedControl, ...] = ()  # controls of the same probe, computed before
    no_control: str = ""  # why none of these that leaks counts
    sampling: dict[str, Any] = field(default_factory=dict)  # instead of the base's
    update: dict[str, Any] = field(default_factory=dict)  # settings of every training, instead of the base's
    organization: str = "not stated"
    evaluator: str = "other"


def spread(images: int, *counts: int) -> int:
    """Images of each of so many prompts, for at least this number in all."""
    return -(-images // math.prod(counts))


def tasks(request: Request) -> dict[str, dict[str, Any]]:
    """The task files: the audited prompts, and tasks for the synonyms and the implicit captions, by name."""
    task, first = request.task, request.task.erase[0]
    common: dict[str, Any] = {"kind": task.kind, "mapping": task.mapping}
    common |= {key: list(getattr(task, key)) for key in ("erase", "retain", "labels")}
    templates = len(task.templates)
    main: dict[str, Any] = common | {
        "name": task.name, "templates": list(task.templates), "finetune": list(task.finetune),
        "seeds": {"erase": spread(request.pairs, len(task.erase), templates),
                  "retain": spread(request.retained_pairs, len(task.retain), templates),
                  "synonym": spread(UNTAUGHT_PAIRS, templates)},
        "synonyms": {first: [WORD]},
    }  # fmt: skip
    files = [main]
    for part, of_part, words in (("synonyms", task.templates, task.synonyms), ("implicit", ("{}",), request.implicit)):
        if number := sum(map(len, words.values())) * len(of_part):
            files.append(common | {
                "name": f"{task.name}-{part}", "templates": list(of_part),
                "seeds": {"erase": 1, "retain": 1, "synonym": spread(request.pairs, number)},
                "synonyms": {concept: list(of) for concept, of in words.items()},
            })  # fmt: skip
    return {file["name"]: file for file in files}


def sources(request: Request) -> dict[str, list[str]]:
    """Domain of the pictures -> who makes them: real pictures, the original, else the audited model itself."""
    models = ["base"] if request.original else []
    makers = {place: ["real"] * (place in request.pictures) + models for place in ("domain", "outside")}
    makers["domain"] = makers["domain"] or ["erased"]
    if not request.outside:
        makers["outside"] = [maker for maker in makers["outside"] if maker == "real"]
    return {"domain": makers["domain"][:1]} if request.level == "quick" else makers


def finetune_sets(request: Request) -> dict[str, dict[str, Any]]:
    """The fine-tuning sets by name, as domain-real."""
    sets: dict[str, dict[str, Any]] = {}
    for place, makers in sources(request).items():
        for maker in makers:
            name = f"{place}-{maker}"
            if maker == "real":
                path, shown = request.pictures[place]
                sets[name] = {"made_by": "real", "images": path, "concepts": list(shown) or "task"}
            else:  # the base of the study is the audited model where there is no original
                sets[name] = {"concepts": "task" if place == "domain" else list(request.outside), "size": SIZE}
    return sets


def trainings(request: Request) -> dict[str, dict[str, Any]]:
    """The fine-tunes by name, as lora-domain-real: all of the domains by LoRA, of the first domain in full too."""
    blocks = {}
    for place, makers in sources(request).items():
        for maker in makers:
            algorithms = ["lora", "full"] if place == "domain" and request.level != "quick" else ["lora"]
            for algorithm in algorithms:
                settings = {**getattr(request.base, algorithm), **request.update, "algorithm": algorithm}
                if request.level != "quick" and settings.get("steps", 1000) > 2:
                    settings["checkpoints"] = [settings.get("steps", 1000) // 3, settings.get("steps", 1000)]
                block = {"set": f"{place}-{maker}", "tasks": [request.task.name], "erasers": [RELEASED], **settings}
                blocks[f"{algorithm}-{place}-{maker}"] = block | {"variants": variants(request, settings)}
    first = next(iter(blocks.values()))
    if request.original:
        first["erasers"] = [RELEASED, LEAKING]
    return blocks


def variants(request: Request, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The grid of learning rates and steps of the level full, one seed each; else only the settings themselves."""
    grid: dict[str, dict[str, Any]] = {"default": {}}
    if request.level != "full":
        return grid
    lr, steps = settings.get("lr", 1e-4), settings.get("steps", 1000)
    for rate, factor in (("low", 1 / 3), ("same", 1.0), ("high", 3.0)):
        for length, share in (("third", 3), ("whole", 1)):
            if (rate, length) != ("same", "whole"):
                last = max(steps // share, 1)
                changed = {"lr": float(f"{lr * factor:.3g}"), "steps": last, "checkpoints": [last]}
                grid[f"lr-{rate}-{length}"] = {**changed, "seeds": [0], "erasers": [RELEASED]}
    return grid


def erasers(request: Request) -> dict[str, dict[str, Any]]:
    """The audited model, its updates without pictures, and the model that is known to leak."""
    main: dict[str, Any] = {"tasks": [request.task.name]}
    model = request.model if request.original else None
    revision = {"revision": request.revision} if request.original and request.revision else {}
    released = {"method": "checkpoint", "path": request.model, **revision} if request.original else {"method": "none"}
    blocks: dict[str, dict[str, Any]] = {RELEASED: released}
    update = {"method": "update", **({"path": model} if model else {}), **revision, **main}
    for number, lora in enumerate(request.loras, 1):
        blocks[f"merge-{number}"] = update | {"lora": lora}
    for bits in (8, 4):
        blocks[f"rounding-{bits}"] = update | {"bits": bits}
    if request.original:
        blocks[LEAKING] = {**request.base.leaking, **main}
    return blocks


def leaking_title(base: AuditBase) -> str:
    """What the model is that is to leak: its eraser and the numbers and switches among its settings."""
    method = base.leaking["method"]
    settings = [f"{key}: {json.dumps(value)}" for key, value in base.leaking.items() if isinstance(value, (int, float))]
    return f"erased by {method} with {', '.join(settings)}"


def probes(request: Request) -> dict[str, dict[str, Any]]:
    """The probes by name, the released model first."""
    name, eraser = request.task.name, RELEASED
    blocks = {RELEASED: probe("released", "As released", "Nothing was changed.", name, eraser)}
    for part, title in (("synonyms", "As released, synonyms"), ("implicit", "As released, implicit captions")):
        if f"{name}-{part}" in tasks(request):
            text = "Nothing was changed; the prompts do not name the concept by its own word."
            blocks[f"{RELEASED}-{part}"] = probe("released", title, text, f"{name}-{part}", eraser, role="synonym")
    for finetune, block in trainings(request).items():
        for variant, changes in block["variants"].items():
            key = finetune if variant == "default" else f"{finetune}.{variant}"
            blocks[key.replace(".", "-")] = trained_probe(request, finetune, key, block | changes)
    for number, lora in enumerate(request.lora_names, 1):
        text = "A LoRA that somebody else trained was merged into the weights."
        blocks[f"merge-{number}"] = probe("merge", f"LoRA merged: {lora}", text, name, f"merge-{number}")
    for bits in (8, 4):
        text = f"Each output row of the weight matrices was rounded to {2**bits - 1} levels, simulated."
        blocks[f"rounding-{bits}"] = probe("rounding", f"Weights in {bits} bits", text, name, f"rounding-{bits}")
    return blocks


def probe(kind: str, title: str, update: str, task: str, eraser: str, **more: Any) -> dict[str, Any]:
    """The entry of a probe."""
    return {"kind": kind, "title": title, "update": update, "task": task, "eraser": eraser, **more}


def trained_probe(request: Request, finetune: str, key: str, block: dict[str, Any]) -> dict[str, Any]:
    """The entry of a probe that trains."""
    algorithm, place, maker = finetune.split("-")
    where = {"domain": "in the domain", "outside": "out of the domain"}[place]
    kind = {"lora": "LoRA", "full": "Full fine-tuning"}[algorithm]
    steps, lr = block.get("steps", 1000), block.get("lr", 1e-4)
    length = counted(steps, "step")
    rate = "" if key == finetune else f", {length} at {lr:g}"
    title = f"{kind} {where}, {MAKERS[maker]}{rate}"
    what = "A LoRA of all attentions was trained" if algorithm == "lora" else "All weights of the UNet were trained"
    text = f"{what} for {length} at a learning rate of {lr:g}."
    more = {"finetune": key, "pictures": f"{MAKERS[maker]} {where}", "maker": maker}
    return probe(algorithm, title, text, request.task.name, RELEASED, **more)


def untested(request: Request) -> list[str]:
    """What the audit leaves out, in words."""
    lines, makers = [], sources(request)
    if request.unknown:
        words = ", ".join(request.unknown)
        lines += [f"whether the metric {request.metric} knows what it judges: {words} is on no list of concepts, and "
                  f"was judged as of the kind {request.task.kind}"]  # fmt: skip
    if request.no_detector:
        lines += [f"what a detector of these concepts sees: {request.metric} judged instead of {request.no_detector}"]
    if request.level == "quick":
        lines += ["updates out of the domain, full fine-tuning and several training seeds (--level standard)"]
    if request.level != "full":
        lines += ["a grid of learning rates and steps (--level full)"]
    if request.level != "quick" and not makers["outside"]:
        lines += ["updates out of the domain (--outside-images DIR)"]
    if "real" not in makers["domain"]:
        lines += ["real pictures (--images DIR)"]
    if request.original:
        lines += ["another autoencoder, tokenizer or noise schedule than the original's, if the released model has one"]
    else:
        lines += ["pictures of the original model, recovered fraction and weight distances (--original BASE)"]
    missing = {"LoRAs of others (--lora FILE)": request.loras, "implicit captions (--implicit FILE)": request.implicit,
               "synonyms": request.task.synonyms}  # fmt: skip
    lines += [name for name, present in missing.items() if not present]
    return [*lines, "fine-tuning on the erased concept itself", "attacks on prompts, embeddings or latents"]


def study(request: Request) -> dict[str, Any]:
    """The whole params.yaml."""
    base, names = request.base, list(tasks(request))
    sampling = {**base.sampling, **request.sampling}
    audit = {
        "checkpoint": request.checkpoint, "level": request.level, "metric": request.metric, "command": request.command,
        "original": request.original_name, "sha256": request.sha256, "revision": request.revision,
        "revisions": request.revisions, "retained_metric": request.retained_metric,
        "criteria": request.criteria, "untaught": WORD, "untested": untested(request), "sensitive": request.sensitive,
        "organization": request.organization, "evaluator": request.evaluator,
        "synonyms": {concept: list(words) for concept, words in request.task.synonyms.items()},
        "shipped": [dataclasses.asdict(control) for control in request.shipped], "no_control": request.no_control,
        "probes": [{"name": name, **entry} for name, entry in probes(request).items()],
    }  # fmt: skip
    if request.original:
        first = next(iter(trainings(request)))
        audit["leaking"] = {"title": leaking_title(base), "probe": first, "eraser": LEAKING}
    commit = request.original_revision if request.original else request.revision
    revision = {"revision": commit} if commit else {}
    return {
        "study": "audit",
        "base": {"name": "original" if request.original else "audited", "path": request.original or request.model,
                 "device": request.device, **revision},
        "tasks": {"folder": "tasks", "names": names, "concepts": base.concepts},
        "sampling": sampling,
        "moments": {"prior": base.general, "domain": base.captions},
        "concept_images": {"per_concept": 8, "steps": sampling["steps"], "guidance": sampling["guidance"]},
        "masks": {"segmenter": "foreground"},
        "erasers": erasers(request), "finetune_sets": finetune_sets(request), "finetunes": trainings(request),
        "seeds": {"erase": [0], "finetune": list(range(request.training_seeds))},
        "scorers": request.scorers, "statistics": {"level": request.criteria["confidence"]},
        "figures": {"metrics": list(filter(None, (request.metric, request.retained_metric)))}, "audit": audit,
        "world": base.world,
    }  # fmt: skip
