"""Seconds of the jobs of a study on one core of a CPU, for bases of workflow/rates.yaml, `cpu`.

They follow from what the jobs do: the passes through the UNet that an eraser declares, images, fine-tuning steps. Jobs
that do none of this take the seconds of rule_table.py. What has run here takes the place of these numbers (plan.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from resurgence.config.optimisation import Optimisation
from resurgence.workflow.gpu_hours import Cost, CpuRates, Rates, eraser_passes, images_of, set_images

if TYPE_CHECKING:
    from resurgence.config.study import Study
    from resurgence.workflow.jobs import Job


class CpuCoster:
    """Costs of jobs of one study on one core: seconds alone. Its methods have the names of those of `Coster` that the
    records of the rules name; a rule of another cost takes the seconds of its record."""

    def __init__(self, study: Study, rates: Rates) -> None:
        self.study, self.rates = study, rates.cpu[study.base.name]

    def __call__(self, job: Job) -> Cost:
        """Cost of one job, its start included."""
        seconds = getattr(self, job.rule.cost.__name__, None) if job.rule.cost else None
        return Cost(self.rates.start + seconds(job) if seconds else job.rule.seconds)

    def sampling(self, images: int, settings: Mapping[str, Any]) -> float:
        """Seconds of images sampled with these steps and guidance."""
        passes = int(settings["steps"]) * (2 if settings["guidance"] > 1 else 1)
        return images * passes * self.rates.sample

    def sample(self, job: Job) -> float:
        """The image sets of a model."""
        return self.sampling(images_of(self.study, job), job.settings["sampling"])

    def score(self, job: Job) -> float:
        """The scores of these."""
        return images_of(self.study, job) * self.rates.score

    def concept_images(self, job: Job) -> float:
        """Images of concepts."""
        return self.sampling(len(job.settings["concepts"]) * job.settings["per_concept"], job.settings["sampling"])

    def finetune_set(self, job: Job) -> float:
        """A fine-tuning set."""
        return self.sampling(set_images(job.settings), job.settings["sampling"])

    def finetune(self, job: Job) -> float:
        """The steps of a fine-tuning."""
        settings = job.settings["settings"]
        return float(settings["steps"] * settings["accumulation"] * self.rates.tune)

    def erase(self, job: Job) -> float:
        """The steps of an erasure."""
        return erasing(job.settings, self.rates)


def erasing(settings: Mapping[str, Any], rates: CpuRates) -> float:
    """Seconds of the steps of an erasure, whose batches of a few samples take about as long as one sample."""
    config, passes = eraser_passes(settings)
    graded, batch = rates.graded, 1
    if isinstance(config, Optimisation):
        graded, batch = rates.full if config.parameters == "full" else rates.graded, config.batch
    return (passes.graded * graded + passes.plain * rates.plain) / batch
