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
    """Costs of jobs of one study on one core: seconds alone."""

    def __init__(self, study: Study, rates: Rates) -> None:
        self.study, self.rates = study, rates.cpu[study.base.name]

    def sampling(self, images: int, settings: Mapping[str, Any]) -> float:
        """Seconds of images sampled with these steps and guidance."""
        passes = int(settings["steps"]) * (2 if settings["guidance"] > 1 else 1)
        return images * passes * self.rates.sample

    def __call__(self, job: Job) -> Cost:
        """Cost of one job, its start included."""
        rates, settings = self.rates, job.settings
        if job.rule.name == "sample":
            seconds = self.sampling(images_of(self.study, job), settings["sampling"])
        elif job.rule.stage == "concept_images":
            seconds = self.sampling(len(settings["concepts"]) * settings["per_concept"], settings["sampling"])
        elif job.rule.stage == "finetune_set":
            seconds = self.sampling(set_images(settings), settings["sampling"])
        elif job.rule.name == "score":
            seconds = images_of(self.study, job) * rates.score
        elif job.rule.name == "finetune":
            seconds = settings["settings"]["steps"] * settings["settings"]["accumulation"] * rates.tune
        elif job.rule.name == "erase":
            seconds = erasing(settings, rates)
        else:
            return Cost(job.rule.seconds)
        return Cost(rates.start + seconds)


def erasing(settings: Mapping[str, Any], rates: CpuRates) -> float:
    """Seconds of the steps of an erasure, whose batches of a few samples take about as long as one sample."""
    config, passes = eraser_passes(settings)
    batch = config.batch if isinstance(config, Optimisation) else 1
    return (passes.graded * rates.graded + passes.plain * rates.plain) / batch
