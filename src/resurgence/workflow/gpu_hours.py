"""What the jobs of a study cost on a GPU, computed: arithmetic counted, divided by what a GPU does in a second.

Work is in TFLOP and comes from workflow/rates.yaml; a job's is a sum over images, training steps and captions, which
its block names. Nothing here is measured, and `resurgence plan` says so.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resurgence.config.erasers import EraserConfig, Passes, eraser_config
from resurgence.config.fields import ConfigError, build, nearest, read_yaml
from resurgence.config.model_path import ModelPath
from resurgence.config.optimisation import Optimisation
from resurgence.config.task import Task
from resurgence.files import resolve_path
from resurgence.workflow.jobs import Job

if TYPE_CHECKING:
    from resurgence.config.study import Study

RATES = Path("workflow/rates.yaml")
PNG = 2.0  # bytes a pixel of a lossless image, about
KV, XATTN = 0.0223, 0.051  # of the UNet's parameters: keys and values, all projections of the cross-attentions
# what `parameters` selects, as a share of the UNet's; the text encoder is that of SD 1.4, of SD 2.1 it is 0.39
SHARES = {"xattn": XATTN, "xattn-kv": KV, "selfattn": XATTN, "attention": 2 * XATTN, "noxattn": 1 - XATTN}
SHARES |= {"noxattn-official": 1 - XATTN, "full": 1.0, "text-encoder": 0.143}
SETS = {"concept_images": "concept_images", "anchor_images": "anchor_images", "retained_images": "retained_images"}


@dataclass(frozen=True)
class Work:
    """TFLOP of the parts of a base: see the comment of workflow/rates.yaml."""

    unet: float
    lora: float
    full: float
    decode: float
    encode: float
    text: float
    parameters: int


@dataclass(frozen=True)
class Rates:
    """The numbers of workflow/rates.yaml."""

    work: dict[str, Work]
    mask: float
    gpus: dict[str, dict[str, float]]
    utilisation: dict[str, float]
    seconds: dict[str, float]
    captions: int


@dataclass
class Cost:
    """Of one job or several."""

    seconds: float = 0.0
    images: int = 0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.images + other.images, self.bytes + other.bytes)


def read_rates(root: Path = Path()) -> Rates:
    """The rates of the project; ConfigError for a wrong key or value."""
    return build(Rates, read_yaml(root / resolve_path(RATES, root)), str(RATES))


def general_images(study: Study, task: str) -> int:
    """General prompts of a task; those of MS-COCO that are not drawn yet are 5,000."""
    path = study.general_of(task)
    if path is None:
        return 0
    if not Path(path).is_file():
        return 5000
    with open(path, encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


def prompts_of(task: Task) -> int:
    """Images of its own prompts that each model of a task makes."""
    words = sum(len(words) for words in task.synonyms.values())
    counts = {"erase": len(task.erase), "retain": len(task.retain), "synonym": words}
    return sum(number * len(task.templates) * task.seeds.get(role, 0) for role, number in counts.items())


def eraser_passes(block: Mapping[str, Any]) -> tuple[EraserConfig, Passes]:
    """The configuration of an eraser's job, and what passes the UNet in it."""
    config = build(eraser_config(block["method"]), block["settings"], "settings")
    erased, retained = (len(block["task"].get(role, ())) for role in ("erase", "retain"))
    return config, config.unet_passes(erased, retained)


class Coster:
    """Costs of jobs of one study on one GPU."""

    def __init__(self, study: Study, rates: Rates, gpu: str) -> None:
        """Raises ConfigError for a GPU that the rates do not know."""
        if gpu not in rates.gpus:
            raise ConfigError("--gpu", gpu, f"is not in {RATES}; {nearest(gpu, rates.gpus)}")
        self.study, self.rates, self.gpu = study, rates, gpu
        self.work = rates.work[study.base.name]

    def time(self, tflop: float, precision: str) -> float:
        """Seconds of so much arithmetic."""
        kind = "fp16" if precision == "bf16" else precision
        return tflop / (self.rates.gpus[self.gpu][kind] * self.rates.utilisation[kind])

    def sampling(self, images: int, steps: int, guidance: float, precision: str) -> Cost:
        """Images made by the base or a model."""
        tflop = steps * (2 if guidance > 1 else 1) * self.work.unet + self.work.decode
        size = (self.study.sampling.size or 512) ** 2
        seconds = images * (self.time(tflop, precision) + self.rates.seconds["image"])
        return Cost(seconds, images, images * PNG * size)

    def concept_images(self, block: Mapping[str, Any]) -> Cost:
        """Images of concepts, sampled in fp32."""
        sampling = block["sampling"]
        images = len(block["concepts"]) * block["per_concept"]
        return self.sampling(images, sampling["steps"], sampling["guidance"], "fp32")

    def finetune_set(self, block: Mapping[str, Any]) -> Cost:
        """A fine-tuning set."""
        sampling, prompts = block["sampling"], len(block["concepts"] or range(10)) * len(block["templates"])
        images = block["size"] or prompts * block["images_per_prompt"]
        return self.sampling(images, sampling["steps"], sampling["guidance"], sampling["precision"])

    def moments(self, block: Mapping[str, Any]) -> Cost:
        """A corpus through the text encoder, in float64; 30 templates for a concept."""
        captions = self.rates.captions if block["corpus"] == "prior" else 30 * len(block["concepts"])
        return Cost(self.time(captions * self.work.text, "fp64"))

    def loras(self, block: Mapping[str, Any]) -> Cost:
        """LoRAs of an eraser, fp32: only their gradients are computed."""
        _, passes = eraser_passes(block)
        return Cost(self.time(passes.graded * self.work.lora + passes.plain * self.work.unet, "fp32"))

    def closed_form(self, block: Mapping[str, Any]) -> Cost:
        """No work that counts beside the start of the job."""
        return Cost(bytes=KV * 4 * self.work.parameters)

    def erase(self, block: Mapping[str, Any]) -> Cost:
        """Gradient steps."""
        config, passes = eraser_passes(block)
        if isinstance(config, Optimisation):
            precision, share = str(config.precision), SHARES[config.parameters]
        else:  # a trainer that is not ours: taken to train keys and values
            precision, share = "fp32", KV
        tflop = passes.graded * self.work.full + passes.plain * self.work.unet
        return Cost(self.time(tflop, precision), bytes=share * 4 * self.work.parameters)

    def finetune(self, block: Mapping[str, Any]) -> Cost:
        """LoRA or full fine-tuning."""
        s, lora = block["settings"], block["settings"]["algorithm"] == "lora"
        passes = (self.work.lora if lora else self.work.full) + (self.work.unet if s["gradient_checkpointing"] else 0)
        tflop = s["steps"] * s["batch"] * s["accumulation"] * passes + 250 * self.work.encode
        written = max(1, len(s["checkpoints"])) * (0.004 if lora else 1.0) * 4 * self.work.parameters
        return Cost(self.time(tflop, s["precision"]), bytes=written)

    def images_of(self, job: Job) -> int:
        """Images of the model that a path names: of all its checkpoints."""
        model = ModelPath.parse(job.wildcards["model"])
        count = prompts_of(self.study.task(model.task)) + general_images(self.study, model.task)
        if model.state != "finetuned":
            return count
        step = model.steps[-1]
        return count * max(1, len(self.study.finetune_settings(step.method, step.variant)["checkpoints"]))

    def __call__(self, job: Job) -> Cost:
        """Cost of one job, its start included."""
        rule, block = job.rule.name, job.settings
        start = Cost(self.rates.seconds["job"])
        if rule == "sample":
            s = block["sampling"]
            return start + self.sampling(self.images_of(job), s["steps"], s["guidance"], s["precision"])
        if rule == "score":
            return start + Cost(self.images_of(job) * self.rates.seconds["score"])
        if rule == "masks":
            images = len(block["concepts"]) * self.study.concept_images.per_concept
            return start + Cost(images * (self.time(self.rates.mask, "fp32") + self.rates.seconds["mask"]))
        if rule in SETS:
            return start + self.concept_images(block)
        makers = {
            "prior_moments": self.moments, "domain_moments": self.moments, "loras": self.loras,
            "closed_form": self.closed_form, "erase": self.erase, "finetune": self.finetune,
            "finetune_set": self.finetune_set,
        }  # fmt: skip
        return start + makers[rule](block) if rule in makers else Cost()


def by_rule(jobs: Iterable[Job], cost: Coster) -> dict[str, Cost]:
    """Cost of all jobs of each rule."""
    found: dict[str, Cost] = {}
    for job in jobs:
        found[job.rule.name] = found.get(job.rule.name, Cost()) + cost(job)
    return found


def counted(jobs: Iterable[Job]) -> Counter[str]:
    """Jobs of each rule."""
    return Counter(job.rule.name for job in jobs)
