"""Computed cost of the jobs of a study on a GPU: counted arithmetic, divided by the rate of the GPU.

Work is in TFLOP, from workflow/rates.yaml; that of a job is a sum over images, training steps and captions of its
settings. Nothing here is measured, and `resurgence plan` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resurgence.config.erasers import EraserConfig, Passes, eraser_config
from resurgence.config.fields import ConfigError, build, read_yaml
from resurgence.config.hints import nearest
from resurgence.config.lists import PROMPTS
from resurgence.config.model_path import ModelPath
from resurgence.config.optimisation import Optimisation
from resurgence.config.task import Task
from resurgence.files import read_rows, resolve_path

if TYPE_CHECKING:
    from resurgence.config.study import Study
    from resurgence.workflow.jobs import Job

RATES = Path("workflow/rates.yaml")
SPEEDS = ("eager", "channels-last", "compiled", "graphs")  # of base.speed, the slowest first
PNG = 2.0  # bytes a pixel of a lossless image, about
KV, XATTN = 0.0223, 0.051  # of the UNet's parameters: keys and values, all projections of the cross-attentions
# share of `parameters` in those of the UNet; the text encoder is that of SD 1.4 (SD 2.1: 0.39)
SHARES = {"xattn": XATTN, "xattn-kv": KV, "selfattn": XATTN, "attention": 2 * XATTN, "noxattn": 1 - XATTN}
SHARES |= {"noxattn-official": 1 - XATTN, "noxattn-2025": 1 - XATTN, "full": 1.0, "text-encoder": 0.143}


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
class CpuRates:
    """Seconds of one core: see the comment of workflow/rates.yaml."""

    start: float
    graded: float
    full: float
    plain: float
    sample: float
    tune: float
    score: float


@dataclass(frozen=True)
class Rates:
    """The numbers of workflow/rates.yaml."""

    work: dict[str, Work]
    mask: float
    gpus: dict[str, dict[str, float]]
    half: dict[str, dict[str, float]]
    utilisation: dict[str, float]
    auto: dict[str, str]
    seconds: dict[str, float]
    cpu: dict[str, CpuRates]
    captions: int


@dataclass
class Cost:
    """Cost of one job or several."""

    seconds: float = 0.0
    images: int = 0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.images + other.images, self.bytes + other.bytes)


def read_rates(root: Path = Path()) -> Rates:
    """The rates of the project; ConfigError for a wrong key or value."""
    return build(Rates, read_yaml(root / resolve_path(RATES, root)), str(RATES))


def general_images(study: Study, task: str) -> int:
    """Number of general prompts of a task, also where a rule has not written the file yet: 5,000 of MS-COCO."""
    path = study.general_of(task)
    if path is None:
        return 0
    if not Path(path).is_file():
        return PROMPTS.get(path, 5000)
    return len(read_rows(Path(path)))


def prompts_of(task: Task) -> int:
    """Images of a task's prompts by each of its models."""
    words = sum(len(words) for words in task.synonyms.values())
    counts = {"erase": len(task.erase), "retain": len(task.retain), "synonym": words}
    return sum(number * len(task.templates) * task.seeds.get(role, 0) for role, number in counts.items())


def set_images(settings: Mapping[str, Any]) -> int:
    """Images of a fine-tuning set; without a size of the concepts that a rule draws, ten of them."""
    prompts = len(settings["concepts"] or range(10)) * len(settings["templates"])
    return int(settings["size"] or prompts * settings["images_per_prompt"])


def images_of(study: Study, job: Job) -> int:
    """Images of the model of a job that samples or scores, of all its checkpoints."""
    model = ModelPath.parse(job.wildcards["model"])
    count = prompts_of(study.task(model.task)) + general_images(study, model.task)
    if model.state != "finetuned":
        return count
    step = model.steps[-1]
    return count * max(1, len(study.finetune_settings(step.method, step.variant)["checkpoints"]))


def eraser_passes(settings: Mapping[str, Any]) -> tuple[EraserConfig, Passes]:
    """The configuration of an eraser's job, and its passes through the UNet."""
    config = build(eraser_config(settings["method"]), settings["settings"], "settings")
    erased, retained = (len(settings["task"].get(role, ())) for role in ("erase", "retain"))
    return config, config.unet_passes(erased, retained)


class Coster:
    """Costs of jobs of one study on one GPU. The record of a rule names the methods that give cost and speed."""

    def __init__(self, study: Study, rates: Rates, gpu: str) -> None:
        """Raises ConfigError for a GPU that is not among the rates."""
        if gpu not in rates.gpus:
            raise ConfigError("--gpu", gpu, f"is not in {RATES}; {nearest(gpu, rates.gpus)}")
        self.study, self.rates, self.gpu = study, rates, gpu
        self.work = rates.work[study.base.name]

    def time(self, tflop: float, precision: str, speed: str = "eager") -> float:
        """Seconds of an amount of arithmetic, in TFLOP, at a speed of `base.speed`."""
        kind = "fp16" if precision == "bf16" else precision
        share = self.rates.half[self.gpu][speed] if kind == "fp16" else self.rates.utilisation[kind]
        return tflop / (self.rates.gpus[self.gpu][kind] * share)

    def base_speed(self) -> str:
        """The speed of `base.speed`, with what it means on this GPU."""
        return self.rates.auto[self.gpu] if self.study.base.speed == "auto" else self.study.base.speed

    def training_speed(self) -> str:
        """The speed of fine-tuning, which uses no graphs."""
        return "compiled" if self.base_speed() == "graphs" else self.base_speed()

    def sampling_speed(self) -> str:
        """The speed of sampling with the settings of the study, which may ask for a faster one than `base.speed`."""
        sampling = self.study.sampling
        by_settings = "compiled" if sampling.compile else "channels-last" if sampling.channels_last else "eager"
        return max(self.base_speed(), by_settings, key=SPEEDS.index)

    def sampling(self, images: int, settings: Mapping[str, Any], precision: str, speed: str = "eager") -> Cost:
        """Images sampled from the base or a model with these steps and guidance."""
        passes = settings["steps"] * (2 if settings["guidance"] > 1 else 1)
        tflop = passes * self.work.unet + self.work.decode
        size = (self.study.sampling.size or 512) ** 2
        seconds = images * (self.time(tflop, precision, speed) + self.rates.seconds["image"])
        return Cost(seconds, images, images * PNG * size)

    def sample(self, job: Job) -> Cost:
        """The image sets of a model."""
        sampling = job.settings["sampling"]
        return self.sampling(images_of(self.study, job), sampling, sampling["precision"], job.rule.speed(self))

    def score(self, job: Job) -> Cost:
        """The scores of these."""
        return Cost(images_of(self.study, job) * self.rates.seconds["score"])

    def masks(self, job: Job) -> Cost:
        """A mask of each concept image."""
        images = len(job.settings["concepts"]) * self.study.concept_images.per_concept
        return Cost(images * (self.time(self.rates.mask, "fp32") + self.rates.seconds["mask"]))

    def concept_images(self, job: Job) -> Cost:
        """Images of concepts, sampled in fp32 and, whatever the speed, counted as eager."""
        images = len(job.settings["concepts"]) * job.settings["per_concept"]
        return self.sampling(images, job.settings["sampling"], "fp32")

    def finetune_set(self, job: Job) -> Cost:
        """A fine-tuning set."""
        sampling = job.settings["sampling"]
        images = set_images(job.settings)
        return self.sampling(images, sampling, sampling["precision"], job.rule.speed(self))

    def moments(self, job: Job) -> Cost:
        """A corpus through the text encoder; 30 templates for a concept."""
        settings = job.settings
        captions = self.rates.captions if settings["corpus"] == "prior" else 30 * len(settings["concepts"])
        precision = "fp64" if settings["encoder_precision"] == "fp64" else "fp32"  # auto: on a GPU
        return Cost(self.time(captions * self.work.text, precision))

    def loras(self, job: Job) -> Cost:
        """LoRAs of an eraser, fp32: only their gradients are computed."""
        _, passes = eraser_passes(job.settings)
        return Cost(self.time(passes.graded * self.work.lora + passes.plain * self.work.unet, "fp32"))

    def closed_form(self, job: Job) -> Cost:
        """A delta of keys and values; the work is negligible beside the start of the job."""
        return Cost(bytes=KV * 4 * self.work.parameters)

    def erase(self, job: Job) -> Cost:
        """Gradient steps."""
        config, passes = eraser_passes(job.settings)
        if isinstance(config, Optimisation):
            precision, share = str(config.precision), SHARES[config.parameters]
        else:  # another package's trainer: assumed to train keys and values
            precision, share = "fp32", KV
        tflop = passes.graded * self.work.full + passes.plain * self.work.unet
        return Cost(self.time(tflop, precision), bytes=share * 4 * self.work.parameters)

    def finetune(self, job: Job) -> Cost:
        """LoRA or full fine-tuning."""
        s = job.settings["settings"]
        lora = s["algorithm"] == "lora"
        passes = (self.work.lora if lora else self.work.full) + (self.work.unet if s["gradient_checkpointing"] else 0)
        tflop = s["steps"] * s["batch"] * s["accumulation"] * passes + 250 * self.work.encode
        written = max(1, len(s["checkpoints"])) * (0.004 if lora else 1.0) * 4 * self.work.parameters
        return Cost(self.time(tflop, s["precision"], job.rule.speed(self)), bytes=written)

    def __call__(self, job: Job) -> Cost:
        """Cost of one job, its start included; nothing for one that runs no model."""
        cost = job.rule.cost
        return Cost(self.rates.seconds["job"]) + cost(self, job) if cost else Cost()


def by_rule(jobs: Iterable[Job], cost: Callable[[Job], Cost]) -> dict[str, Cost]:
    """Cost of all jobs of each rule."""
    costs: dict[str, Cost] = {}
    for job in jobs:
        costs[job.rule.name] = costs.get(job.rule.name, Cost()) + cost(job)
    return costs
