"""The record of a rule: what the workflow knows about it. The records of all rules are in rule_table.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resurgence.config.study import Study
from resurgence.provenance.code_version import code_version
from resurgence.provenance.manifest import MANIFEST
from resurgence.provenance.templates import templates_version
from resurgence.workflow.gpu_hours import Cost, Coster
from resurgence.workflow.graph import Inputs

if TYPE_CHECKING:
    from resurgence.workflow.jobs import Job

Wildcards = Any  # with an attribute for each wildcard
ALTERNATIVES = (
    "resurgence.data.segmenters",
    "resurgence.scorers",
    "resurgence.config.scorers.SCORERS",
)
"""Packages and registries of which a setting chooses members: code_version follows only those that are chosen."""


def no_code(study: Study, wildcards: Wildcards) -> tuple[str, ...]:
    """No further code."""
    return ()


@dataclass(frozen=True)
class Rule:
    """One rule of the workflow."""

    name: str
    stage: str  # module of resurgence.stages
    output: str  # manifest.json of an artefact, or made.json in a shared folder; with wildcards
    items: Callable[[Study], Iterable[Mapping[str, str]]]  # wildcards of every job of a study
    settings: Callable[[Study, Wildcards], dict[str, Any]]
    phase: str  # line of `resurgence plan`
    seconds: float  # of a job of the default study on two cores, while no measurement exists
    inputs: Callable[[Study, Wildcards], Inputs]
    message: str  # of a job, in Snakemake's words
    files: Callable[[Study], Iterable[str]] = lambda study: ()  # outputs beside that one, but those of the report
    constraints: Callable[[Study], dict[str, str]] = lambda study: {}  # regular expressions of wildcards
    code: Callable[[Study, Wildcards], tuple[str, ...]] = no_code  # further code that the settings choose
    minutes: int = 30  # limit on one GPU at the size of SD 1.4; twice and three times that for a second, third attempt
    gpu: bool = False  # uses a GPU where there is one
    local: bool = False  # runs where Snakemake runs, also on a cluster
    group: str = ""  # short jobs of the same group share a SLURM job; profiles/slurm/profile.yaml says how many
    loads: tuple[str, ...] = ()  # weights from elsewhere that its jobs read, by the names of weights.py
    reads_names: bool = False  # first reads new names of concepts, which must differ by the tokens of the base
    cost: Callable[[Coster, Job], Cost] | None = None  # of a job on a GPU, computed; None: nothing
    speed: Callable[[Coster], str] = lambda coster: "eager"  # at which its jobs run, as run.json names it
    dvc: str = ""  # stage of dvc.yaml that tracks its output; empty: the one named as the folder
    archived: bool = True  # False: images and what follows from them, in an archive only on request
    reported: bool = False  # shown in the report of Snakemake
    templates: str = ""  # folder of the package with those of its page
    verified: bool = True  # files of the inputs are hashed first; False for rules that read curves of many models

    @property
    def folder(self) -> str:
        """The folder of results/ with its output."""
        return self.output.split("/")[1]

    @property
    def is_artefact(self) -> bool:
        """Whether its output is one artefact, a folder with a manifest."""
        return self.output.endswith(MANIFEST)

    @property
    def dvc_stage(self) -> str:
        """The stage of dvc.yaml that tracks its output."""
        return self.dvc or self.folder

    @property
    def place(self) -> str:
        """The path of its output below that folder, with wildcards; empty for a rule of one job."""
        return "/".join(self.output.split("/")[2:-1])

    @property
    def part(self) -> str:
        """The folder of its output among those of a model or task: the last one without a wildcard; or empty."""
        return next((name for name in reversed(self.place.split("/")) if not name.startswith("{")), "")

    @property
    def log(self) -> str:
        """The log of a job."""
        return f"logs/{self.place or self.name}.log"

    @property
    def benchmark(self) -> str:
        """The file of Snakemake's measurements of a job: seconds, memory."""
        return f"results/benchmarks/{self.name}/{self.place or 'study'}.jsonl"

    @property
    def options(self) -> list[str]:
        """Options of the stage's command line that are the same for all jobs."""
        return ["--gpu"] * self.gpu + ["--unverified"] * (not self.verified)

    def version(self, study: Study, wildcards: Wildcards) -> str:
        """Version of the code that bears on a job's result."""
        entries = self.code(study, wildcards)
        version = code_version(f"resurgence.stages.{self.stage}", *entries, without=ALTERNATIVES)
        return templates_version(self.templates, version) if self.templates else version
